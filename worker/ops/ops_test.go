package ops

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"papermap-worker/worker/workertest"
)

func TestRESTIsOffWithoutAKey(t *testing.T) {
	t.Parallel()
	w := start(t, Config{Addr: "127.0.0.1:0"})
	for _, path := range []string{"/api/", "/api/v1/openapi.json", "/api/v1/nothing"} {
		if a := w.ask("GET", path, "", ""); a.status != 404 {
			t.Errorf("GET %s: %d, want 404", path, a.status)
		}
	}
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		if a := w.ask("GET", path, "", ""); a.status != 200 {
			t.Errorf("GET %s: %d, want 200", path, a.status)
		}
	}
}

func TestMetricsAddressMovesHealthAndLeavesREST(t *testing.T) {
	t.Parallel()
	c := secretOnly
	c.MetricsAddr = "127.0.0.1:0"
	w := start(t, c)
	probes := *w
	probes.base = w.health
	for path, want := range map[string][2]int{"/": {404, 404}, "/healthz": {404, 200}, "/readyz": {404, 200},
		"/metrics": {404, 200}, "/api/v1/openapi.json": {200, 404}} {
		if got := [2]int{w.ask("GET", path, "", "").status,
			probes.ask("GET", path, "", "").status}; got != want {
			t.Errorf("GET %s at HTTP_ADDR and METRICS_ADDR: %v, want %v", path, got, want)
		}
	}
	w.ok(w.ask("GET", api, admin(t), ""), 200)
}

// The server is the one that Start makes, in virtual time: its limits are seconds.
func TestServerCutsOffAClientThatDoesNotFinishItsRequest(t *testing.T) {
	t.Parallel()
	w := start(t, secretOnly)
	for name, request := range map[string]string{
		"header": "POST " + api + " HTTP/1.1\r\nHost: x\r\n",
		"body": "POST " + api + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + admin(t) +
			"\r\nContent-Length: 100\r\n\r\n{",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				own := w.served.servers[0]
				served := http.Server{
					Handler: own.Handler, ReadHeaderTimeout: own.ReadHeaderTimeout,
					ReadTimeout: own.ReadTimeout,
				}
				var network workertest.Network
				listener, done := network.Listen(), make(chan struct{})
				go func() {
					defer close(done)
					_ = served.Serve(listener)
				}()
				connection, err := network.Dial(t.Context(), "tcp", listener.Addr().String())
				w.Must(err)
				_, err = connection.Write([]byte(request))
				w.Must(err)
				w.Must(connection.SetReadDeadline(time.Now().Add(25 * time.Second)))
				answer, err := io.ReadAll(connection) // until it is cut off
				if err != nil {
					t.Errorf("it is still open: %v", err)
				}
				if body := name == "body"; body != strings.Contains(string(answer),
					"not come whole, or not in time") {
					t.Errorf("answered %s", answer)
				}
				_ = connection.Close()
				_ = listener.Close()
				<-done
			})
		})
	}
}

func TestNoAnswerLetsABrowserGuessItsType(t *testing.T) {
	t.Parallel()
	w := start(t, secretOnly)
	for _, path := range []string{api, api + "/none", "/api/none", "/api/v1/openapi.json",
		"/healthz", "/readyz", "/metrics", "/none"} {
		if got := w.ask("GET", path, "", "").header.Get("X-Content-Type-Options"); got != "nosniff" {
			t.Errorf("%s: X-Content-Type-Options %q", path, got)
		}
	}
}
