package workertest

import (
	"context"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"

	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
)

// API sits in front of the simulator: it counts the requests, records their signatures, and can
// answer itself.
type API struct {
	URL string

	simulator http.Handler
	answer    atomic.Pointer[http.HandlerFunc]

	mu         sync.Mutex
	signatures map[string]bool
	requests   map[string]int // signed ones, by method
}

func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	if s := r.Header.Get("X-Signature"); s != "" {
		a.signatures[s] = true
		a.requests[r.Method]++
	}
	a.mu.Unlock()
	if answer := a.answer.Load(); answer != nil {
		(*answer)(w, r)
		return
	}
	a.simulator.ServeHTTP(w, r)
}

// Requests counts the signed requests with this method, no matter what answered them.
func (a *API) Requests(method string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.requests[method]
}

// Intercept makes the API answer by h instead of the simulator; nil: by the simulator again.
func (a *API) Intercept(h http.HandlerFunc) {
	if h == nil {
		a.answer.Store(nil)
		return
	}
	a.answer.Store(&h)
}

// HoldAnswers makes the API process requests at once but hold its answers until release.
func (a *API) HoldAnswers() (release func()) {
	held := make(chan struct{})
	a.Intercept(func(w http.ResponseWriter, r *http.Request) {
		answer := httptest.NewRecorder()
		a.simulator.ServeHTTP(answer, r)
		select {
		case <-held:
		case <-r.Context().Done():
		}
		maps.Copy(w.Header(), answer.Header())
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes())
	})
	return func() { close(held) }
}

// startAPI starts the simulator behind an API.
func (w *World) startAPI(o Options) {
	w.t.Helper()
	w.Simulator = simulator.New(simulator.Options{
		Workspaces: []papermap.Workspace{WorkspaceA, WorkspaceB}, Seed: 1, Now: o.Now,
	})
	w.SetFaults(o.Faults...)
	w.API = &API{simulator: w.Simulator, signatures: map[string]bool{}, requests: map[string]int{}}
	transport := &http.Transport{}
	if w.virtual != nil {
		transport.DialContext = w.virtual.Dial
	}
	w.HTTP = &http.Client{Transport: transport}
	w.API.URL = w.Serve(w.API)
	w.t.Cleanup(transport.CloseIdleConnections)
}

// Serve serves HTTP at a new address, which [World.HTTP] reaches, until the test ends. It returns
// the address as a URL.
func (w *World) Serve(handler http.Handler) string {
	w.t.Helper()
	if w.virtual == nil {
		served, err := simulator.Serve(handler, "127.0.0.1:0")
		w.Must(err)
		w.t.Cleanup(served.Close)
		return served.URL
	}
	requests, end := context.WithCancel(context.Background())
	served := &http.Server{
		Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			w.delay()
			handler.ServeHTTP(rw, r)
		}),
		BaseContext: func(net.Listener) context.Context { return requests },
	}
	listener, done := w.virtual.Listen(), make(chan struct{})
	go func() {
		defer close(done)
		_ = served.Serve(listener)
	}()
	w.t.Cleanup(func() {
		end()
		_ = served.Close()
		<-done
	})
	return "http://" + listener.Addr().String()
}

// DialsRefused counts, in virtual time, the dials to addresses where nothing listens.
func (w *World) DialsRefused() int { return w.virtual.Refused() }

// SetFaults replaces the simulator's faults.
func (w *World) SetFaults(texts ...string) {
	w.t.Helper()
	var faults []simulator.Fault
	for _, text := range texts {
		f, err := simulator.ParseFault(text)
		w.Must(err)
		faults = append(faults, f)
	}
	w.Simulator.SetFaults(faults...)
}

// Requests are the requests of a kind, create or usage, that the simulator saw, without the probes
// of the clock.
func (w *World) Requests(kind string) []simulator.Request {
	return slices.DeleteFunc(w.Simulator.Log(), func(r simulator.Request) bool {
		return (kind == "create") != (r.Method == http.MethodPost) || r.Query == "per_page=1"
	})
}

// Creates counts the tenant's create requests that the simulator saw.
func (w *World) Creates(tenant string) int {
	return len(slices.DeleteFunc(w.Requests("create"),
		func(r simulator.Request) bool { return r.TenantID != tenant }))
}

// Existing adds a dashboard of workspace A to the simulator that no worker has made.
func (w *World) Existing(tenant, id string) {
	w.Simulator.Adopt(simulator.Dashboard{
		ID: id, WorkspaceID: WorkspaceA.ID, TenantID: tenant, Title: "Old " + tenant,
	})
}

// Dashboards are the tenant's dashboards at the simulator.
func (w *World) Dashboards(tenant string) []simulator.Dashboard {
	return slices.DeleteFunc(w.Simulator.Dashboards(),
		func(d simulator.Dashboard) bool { return d.TenantID != tenant })
}
