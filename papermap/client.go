package papermap

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"

	"papermap-worker/worker/failpoint"
)

const (
	maxCreateBody = 1 << 20 // bytes of an answer, after decompression
	maxUsageBody  = 8 << 20

	// maxCorrection is the most that a Date may shift a signature, so that what we sign stays
	// short-lived whatever the server's clock.
	maxCorrection = 24 * time.Hour
)

// ClientOptions are what a client needs besides its workspace. The zero value works.
type ClientOptions struct {
	Timeout   time.Duration    // one HTTP request, from dialling to the last byte of the answer; 0: 10 s
	Limiter   *rate.Limiter    // shared by all clients of the process; nil: no limit
	Now       func() time.Time // the host's wall clock; nil: time.Now
	UserAgent string           // empty: net/http's default

	// Observe, if set, is called after each HTTP request with its route (create, usage, history or
	// probe), the answer's status (0: there was none; 200 for every success) and how long it took.
	Observe func(route string, status int, took time.Duration)

	// Dial, if set, makes the connections instead of a net.Dialer: to an in-process server, in
	// tests in virtual time.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// HistoryPath is the path of one tenant's usage, with {workspace_id} and {tenant_id} in it. It
	// is an option because it is not documented; empty:
	// /api/v1/external/workspaces/{workspace_id}/tenants/{tenant_id}/usage.
	HistoryPath string
}

// Client calls the API of one workspace. It is safe for concurrent use.
type Client struct {
	ws        Workspace
	o         ClientOptions
	transport *http.Transport
	firstWait time.Duration // firstRetryWait; tests set others

	mu         sync.Mutex
	clock      clock
	correcting bool // sign by the server's clock: it rejected one made by the host's clock as expired
}

// NewClient returns a client for ws. It connects on first use; Close it after the last.
func NewClient(ws Workspace, o ClientOptions) *Client {
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.HistoryPath == "" {
		o.HistoryPath = defaultHistoryPath
	}
	dial := o.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: 5 * time.Second}).DialContext
	}
	return &Client{ws: ws, o: o, firstWait: firstRetryWait, transport: newTransport(dial)}
}

// newTransport returns a transport that keeps to HTTP/1.1, where one connection carries one request
// at a time. HTTP/2 shares a connection among requests, and a failed one could not be told from one
// that was never sent.
func newTransport(dial func(context.Context, string, string) (net.Conn, error)) *http.Transport {
	var http1 http.Protocols
	http1.SetHTTP1(true)
	return &http.Transport{
		// No proxy, not even the environment's: it could call the API with the signatures that it
		// sees.
		Proxy: nil,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &countingConn{Conn: conn}, nil
		},
		TLSHandshakeTimeout: 5 * time.Second,
		// Many servers close idle connections after 5 s. A create that meets such a close ends as
		// Unknown.
		IdleConnTimeout: 4 * time.Second,
		// Four times the worker's default concurrency, so that a full load keeps its connections.
		MaxIdleConnsPerHost:    256,
		MaxResponseHeaderBytes: 256 << 10,
		Protocols:              &http1,
	}
}

// Close closes idle connections.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Probe checks address, credentials and clock cheaply and changes nothing: it reads the first row
// of the tenants' usage. Any 2xx is success. It is not retried, except once with a corrected clock.
func (c *Client) Probe(ctx context.Context) error {
	path := "/api/v1/external/workspaces/" + url.PathEscape(c.ws.ID) + "/tenant-usage?per_page=1"
	r := request{route: "probe", method: http.MethodGet, path: path, maxBody: maxUsageBody, once: true}
	if err := c.call(ctx, r); err != nil {
		return err
	}
	return nil // not err: a nil *Error in an error is not nil
}

// request is one call of the API.
type request struct {
	route    string // for ClientOptions.Observe
	method   string
	path     string // escaped, with its query
	tenantID string // to attribute the request to in the usage report; empty: none
	body     []byte
	maxBody  int64              // of the answer, in bytes
	once     bool               // no retries
	read     func(answer) error // reads a 2xx; an error means that it is unusable. nil: any 2xx will do
}

// lost returns the class of a request whose answer never came or is unusable.
func (r request) lost() Class {
	if r.method == http.MethodGet {
		return Retryable
	}
	return Unknown
}

// answer is an HTTP response with its whole body.
type answer struct {
	status     int
	statusLine string
	header     http.Header
	body       []byte
}

// send sends r once, freshly signed, and classifies its failure. The Transport is used without an
// http.Client, which would follow redirects and carry our headers to another host.
func (c *Client) send(parent context.Context, r request) *Error {
	ctx, cancel := context.WithTimeout(parent, c.o.Timeout)
	defer cancel()
	var conn *countingConn // carries the request; nil while there is none
	var before int64       // bytes written to it earlier: other requests, the TLS handshake
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			raw := info.Conn
			if overTLS, ok := raw.(*tls.Conn); ok {
				raw = overTLS.NetConn()
			}
			conn = raw.(*countingConn)
			before = conn.written.Load()
		},
		WroteRequest: func(httptrace.WroteRequestInfo) { failpoint.Hit(failpoint.Sent) },
	})
	req, err := c.signedRequest(ctx, r)
	if err != nil { // not quoted: an address can hold a password
		return &Error{Class: Configuration, Message: "the workspace's API address is not a valid URL"}
	}
	hide := c.redactor(req.Header.Get("X-Signature"))
	fail := func(class Class, status int, what string, err error) *Error {
		// Not errors.Is: a dialler's own timeout is a DeadlineExceeded too.
		if ctx.Err() != nil && parent.Err() == nil {
			err = fmt.Errorf("not done within %v", c.o.Timeout)
		}
		return &Error{Class: class, Status: status, Message: oneLine(what+": "+err.Error(), hide, maxMessage)}
	}

	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		// The count is final: the Transport waits for its writer to end before it returns an error
		// (mapRoundTripError; not for its own ResponseHeaderTimeout, which therefore stays unset).
		if conn == nil || conn.written.Load() == before {
			return fail(Retryable, 0, "nothing was sent", err)
		}
		return fail(r.lost(), 0, "no answer", err)
	}
	defer func() { _ = resp.Body.Close() }()
	serverTime := c.addDate(resp.Header)
	trace.SpanFromContext(ctx).SetAttributes(attribute.Int("http.response.status_code", resp.StatusCode))
	if resp.StatusCode == http.StatusSwitchingProtocols {
		// Its body is the connection, and reading that does not end with ctx.
		err := errors.New("the server wants to switch protocols")
		return fail(r.lost(), resp.StatusCode, "no answer", err)
	}
	a, err := readAnswer(resp, r.maxBody)
	switch {
	case a.status/100 != 2: // the status decides; what arrived of the body says why
		return classify(a, r.lost(), serverTime, hide)
	case err != nil:
		return fail(r.lost(), a.status, "reading the answer", err)
	case r.read == nil:
		return nil
	}
	if err := r.read(a); err != nil {
		return fail(r.lost(), a.status, "understanding the answer", err)
	}
	return nil
}

// signedRequest returns the HTTP request of r, valid for RequestLife from now.
func (c *Client) signedRequest(ctx context.Context, r request) (*http.Request, error) {
	// The Transport cannot rewind such a body, so it never resends a request by itself, not even a
	// GET.
	body := io.NopCloser(bytes.NewReader(r.body))
	req, err := http.NewRequestWithContext(ctx, r.method, c.ws.APIURL+r.path, body)
	if err != nil {
		return nil, err
	}
	req.ContentLength = int64(len(r.body))
	validUntil := c.signingTime().Add(RequestLife).Unix()
	req.Header.Set("X-API-Key-ID", c.ws.Key.ID)
	req.Header.Set("X-Workspace-ID", c.ws.ID)
	req.Header.Set("X-Valid-Until", strconv.FormatInt(validUntil, 10))
	req.Header.Set("X-Signature", Sign(c.ws.Key.Secret, c.ws.ID, validUntil))
	if r.method == http.MethodPost {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.tenantID != "" {
		req.Header.Set("X-Tenant-ID", r.tenantID) // as UTF-8 bytes: no encoding is documented
	}
	if c.o.UserAgent != "" {
		req.Header.Set("User-Agent", c.o.UserAgent)
	}
	return req, nil
}

// readAnswer reads a response of at most maxBody bytes. After an error the answer holds what
// arrived of it.
func readAnswer(resp *http.Response, maxBody int64) (answer, error) {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err == nil && int64(len(body)) > maxBody {
		err = fmt.Errorf("longer than %d bytes", maxBody)
	}
	return answer{resp.StatusCode, resp.Status, resp.Header, body}, err
}

// countingConn counts the bytes that the host's network accepted. While the count has not grown, a
// request was not sent.
type countingConn struct {
	net.Conn
	written atomic.Int64
}

func (c *countingConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.written.Add(int64(n))
	return n, err
}
