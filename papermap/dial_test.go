package papermap

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// proxyServer is an HTTP proxy that leads every CONNECT to target, after the answer of refuse if
// that has one.
func proxyServer(t *testing.T, target, refuse string) (srv *httptest.Server, connects chan *http.Request) {
	t.Helper()
	connects = make(chan *http.Request, 10)
	srv = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		connects <- r
		client, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = client.Close() }()
		if refuse != "" {
			_, _ = io.WriteString(client, refuse)
			return
		}
		server, err := net.Dial("tcp", target)
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = server.Close() }()
		_, _ = io.WriteString(client, "HTTP/1.1 200 Connection established\r\n\r\n")
		go func() { _, _ = io.Copy(server, client); _ = server.Close() }()
		_, _ = io.Copy(client, server)
	}))
	t.Cleanup(srv.Close)
	return srv, connects
}

// viaProxy returns a client of srv at an address that is not loopback, behind a proxy.
func viaProxy(t *testing.T, srv *httptest.Server, proxy string) *Client {
	c := newTestClient(t, "https://example.com", ClientOptions{
		Proxy: func(*http.Request) (*url.URL, error) { return url.Parse(proxy) },
	})
	trust(c, srv)
	return c
}

func TestHTTPSGoesThroughTheProxyByCONNECT(t *testing.T) {
	var seen atomic.Int64
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.Add(1)
		_, _ = io.WriteString(w, created)
	}))
	defer srv.Close()
	for _, scheme := range []string{"http", "https"} {
		seen.Store(0)
		proxy, connects := proxyServer(t, srv.Listener.Addr().String(), "")
		if scheme == "https" {
			proxy.StartTLS()
		} else {
			proxy.Start()
		}
		c := viaProxy(t, srv, strings.Replace(proxy.URL, "://", "://me:pa%40ss@", 1))
		for range 2 {
			if _, err := c.CreateDashboard(t.Context(), anyDashboard); err != nil {
				t.Fatal(err)
			}
		}
		if seen.Load() != 2 || len(connects) != 1 {
			t.Fatalf("%s: %d requests through %d CONNECTs", scheme, seen.Load(), len(connects))
		}
		r := <-connects
		if r.Method != http.MethodConnect || r.Host != "example.com:443" ||
			r.Header.Get("Proxy-Authorization") != "Basic bWU6cGFAc3M=" || len(r.Header) != 2 {
			t.Errorf("%s: %s %s %v", scheme, r.Method, r.Host, r.Header)
		}
	}
}

func TestProxyThatRefusesMeansThatNothingWasSent(t *testing.T) {
	srv := httptest.NewTLSServer(http.NotFoundHandler())
	defer srv.Close()
	for refuse, want := range map[string]string{
		"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n": "CONNECT: status 407 " +
			"Proxy Authentication Required",
		"HTTP/1.1 403 sk_canary\r\nContent-Length: 0\r\n\r\n":   "CONNECT: status 403 Forbidden",
		"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n": "CONNECT: status 502 Bad Gateway",
		"HTTP/1.1 302 Found\r\nLocation: http://x/\r\n\r\n":     "CONNECT: status 302 Found",
		"SSH-2.0-OpenSSH\r\n\r\n":                               "malformed HTTP",
		"HTTP/1.1 200 OK\r\n\r\nhello":                          "data before the TLS handshake",
		"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20):   "unexpected EOF",
		"HTTP/1.1 200 OK\r\n\r\n":                               "TLS: EOF",
	} {
		proxy, connects := proxyServer(t, "", refuse)
		proxy.Start()
		c := viaProxy(t, srv, strings.Replace(proxy.URL, "://", "://me:canary@", 1))
		_, err := c.CreateDashboard(t.Context(), anyDashboard)
		e := failed(t, err)
		if e == nil || e.Class != Retryable || e.Status != 0 || e.Deferred || len(connects) != 1 ||
			!strings.Contains(e.Message, "nothing was sent: ") || !strings.Contains(e.Message, want) ||
			strings.Contains(e.Message, "canary") {
			t.Errorf("%.40q: %v after %d CONNECTs", refuse, err, len(connects))
		}
	}
	for proxy, want := range map[string]string{
		"socks5://127.0.0.1:1": `"socks5" in HTTPS_PROXY is not supported`,
		"http://[::1":          "HTTPS_PROXY is not valid",
	} {
		_, err := viaProxy(t, srv, proxy).CreateDashboard(t.Context(), anyDashboard)
		if e := failed(t, err); e == nil || e.Class != Retryable || !strings.Contains(e.Message, want) {
			t.Errorf("%s: %v", proxy, err)
		}
	}
}

func TestProxyThatDoesNotAnswerIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newPipeListener(t)
		serveConns(l, func(conn net.Conn, _ func() bool) { _, _ = io.Copy(io.Discard, conn) })
		c := newTestClient(t, "https://papermap.test", ClientOptions{
			Dial:  l.dial,
			Proxy: func(*http.Request) (*url.URL, error) { return url.Parse("http://proxy.test") },
		})
		start := time.Now()
		_, err := c.CreateDashboard(t.Context(), anyDashboard)
		if classOf(t, err) != Retryable || time.Since(start) > dialTimeout {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestPlainHTTPUsesNoProxy(t *testing.T) {
	address, seen := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, created)
	})
	c := newTestClient(t, address, ClientOptions{Proxy: func(*http.Request) (*url.URL, error) {
		return url.Parse("http://127.0.0.1:1")
	}})
	if _, err := c.CreateDashboard(t.Context(), anyDashboard); err != nil || seen.Load() != 1 {
		t.Error(err)
	}
}

// The environment is read once in a process, so each row is a process of its own.
func TestProxyOfTheEnvironmentIsUsedExceptForLoopback(t *testing.T) {
	const asChild = "PAPERMAP_TEST_ADDRESS"
	if address := os.Getenv(asChild); address != "" {
		err := newTestClient(t, address, ClientOptions{}).Probe(t.Context())
		fmt.Println("probe:", err)
		return
	}
	for _, row := range []struct {
		address, environment string
		proxied              bool
	}{
		{"https://papermap.invalid", "HTTPS_PROXY=http://me:canary@127.0.0.1:1", true},
		{"https://papermap.invalid", "https_proxy=127.0.0.1:1", true},
		{"https://papermap.invalid", "HTTP_PROXY=http://127.0.0.1:1", false},
		{"https://127.0.0.1:2", "HTTPS_PROXY=http://127.0.0.1:1", false},
		{"https://localhost:2", "HTTPS_PROXY=http://127.0.0.1:1", false},
		{"https://papermap.invalid", "HTTPS_PROXY=http://127.0.0.1:1 NO_PROXY=.invalid", false},
	} {
		child := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		child.Env = append(strings.Fields(row.environment), asChild+"="+row.address)
		out, err := child.CombinedOutput()
		text := string(out)
		if err != nil || !strings.Contains(text, "nothing was sent") || strings.Contains(text, "canary") ||
			strings.Contains(text, "proxy 127.0.0.1:1") != row.proxied {
			t.Errorf("%s %s: %v\n%s", row.environment, row.address, err, out)
		}
	}
}
