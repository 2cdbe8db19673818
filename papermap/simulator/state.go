package simulator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
)

// Log returns a copy of all API requests so far, in the order of their effects.
func (s *Simulator) Log() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.log)
}

// Dashboards returns a copy of all dashboards made so far, in the order of their making.
func (s *Simulator) Dashboards() []Dashboard {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.dashboards)
}

// Adopt adds dashboards that another simulator made, so that one that is started anew goes on where that ended.
func (s *Simulator) Adopt(list ...Dashboard) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dashboards = append(s.dashboards, list...)
}

// serveState answers all there is, as of one moment: {"dashboards":[…],"requests":[…],"faults":["…"]}.
func (s *Simulator) serveState(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	// Entries never change, so what the slices hold now can be read without the lock.
	dashboards, requests, rules := s.dashboards, s.log, s.rules
	s.mu.Unlock()
	faults := make([]string, len(rules))
	for i, r := range rules {
		faults[i] = r.text
	}
	writeJSON(w, struct {
		Dashboards []Dashboard `json:"dashboards"`
		Requests   []Request   `json:"requests"`
		Faults     []string    `json:"faults"`
	}{dashboards, requests, faults})
}

func (s *Simulator) serveDashboards(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, s.Dashboards())
}

// serveRequests answers the log, or with ?after=SEQ what came after that entry.
func (s *Simulator) serveRequests(w http.ResponseWriter, r *http.Request) {
	after := 0
	if text := r.URL.Query().Get("after"); text != "" {
		var err error
		if after, err = strconv.Atoi(text); err != nil || after < 0 {
			writeProblem(w, errors.New("after must be a sequence number"))
			return
		}
	}
	requests := s.Log()
	writeJSON(w, requests[min(after, len(requests)):])
}

// serveFaults replaces the rules by those of a JSON list of texts, and answers 204. When one text is wrong, nothing changes.
func (s *Simulator) serveFaults(w http.ResponseWriter, r *http.Request) {
	var list []string
	if err := json.UnmarshalRead(http.MaxBytesReader(w, r.Body, maxBody), &list); err != nil {
		writeProblem(w, fmt.Errorf("body must be a JSON list of fault texts: %w", err))
		return
	}
	faults, err := parseFaults(list)
	if err != nil {
		writeProblem(w, err)
		return
	}
	s.SetFaults(faults...)
	w.WriteHeader(http.StatusNoContent)
}

func writeJSON(w http.ResponseWriter, v any) {
	answer{status: http.StatusOK, body: marshal(v)}.write(w)
}

func writeProblem(w http.ResponseWriter, err error) {
	failure(http.StatusBadRequest, err.Error()).write(w)
}

// Server serves a handler until it is closed.
type Server struct {
	URL  string // e.g. http://127.0.0.1:43211
	http *http.Server
	end  context.CancelFunc // of the requests
	done chan struct{}
}

// Serve listens on addr (host:port; port 0 takes a free one) and serves h.
func Serve(h http.Handler, addr string) (*Server, error) {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("serving on %q: %w", addr, err)
	}
	requests, end := context.WithCancel(context.Background())
	s := &Server{
		URL: "http://" + listener.Addr().String(),
		http: &http.Server{
			Handler: h, ReadHeaderTimeout: 10 * time.Second,
			BaseContext: func(net.Listener) context.Context { return requests },
		},
		end:  end,
		done: make(chan struct{}),
	}
	go func() {
		defer close(s.done)
		_ = s.http.Serve(listener)
	}()
	return s, nil
}

// Close frees the address and closes all connections, those in use too.
func (s *Server) Close() {
	s.end() // for what holds a connection that net/http no longer knows
	_ = s.http.Close()
	<-s.done
}
