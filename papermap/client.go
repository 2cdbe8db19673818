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

	"github.com/cenkalti/backoff/v4"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"

	"papermap-worker/worker/failpoint"
)

const (
	// RetryBudget bounds a call: a try inside it starts at latest this long after the call began. With
	// ClientOptions.Timeout for that last try, it is how long a call can take.
	RetryBudget = 3 * time.Second

	maxCreateBody = 1 << 20 // bytes of an answer after decompression
	maxUsageBody  = 8 << 20
	maxCorrection = 24 * time.Hour // a Date further off is not believed whole: what we sign stays short-lived
)

// ClientOptions are the parts of a client that are not the workspace's. The zero value works.
type ClientOptions struct {
	Timeout   time.Duration    // one HTTP request, from dialling to the last byte of the answer; 0 means 10 s
	Limiter   *rate.Limiter    // shared by all clients of the process; nil: no limit
	Now       func() time.Time // the host's wall clock; nil: time.Now
	UserAgent string           // empty: Go's

	// Observe, if there is one, hears of each HTTP request: its route (create, usage, history or probe), the answer's status
	// (0 when none came, 200 for every success) and how long it took.
	Observe func(route string, status int, took time.Duration)

	// HistoryPath is where one tenant's usage is read, with {workspace_id} and {tenant_id} in it. It is not documented, hence
	// an option; empty: /api/v1/external/workspaces/{workspace_id}/tenants/{tenant_id}/usage.
	HistoryPath string
}

// Client calls the API of one workspace. It may be used by many goroutines at once.
type Client struct {
	ws        Workspace
	o         ClientOptions
	transport *http.Transport
	firstWait time.Duration // about this long before the first retry inside a call

	mu         sync.Mutex
	clock      clock
	correcting bool // sign with skew applied: the server has called a signature of our own clock expired
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
	// HTTP/2 shares a connection among requests, and then nobody could say whether a failed one was sent.
	var http1 http.Protocols
	http1.SetHTTP1(true)
	dialer := net.Dialer{Timeout: 5 * time.Second}
	return &Client{ws: ws, o: o, firstWait: 200 * time.Millisecond, transport: &http.Transport{
		Proxy: nil, // not even from the environment: whoever sees a signed request can call the API with its signature
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &countingConn{Conn: conn}, nil
		},
		TLSHandshakeTimeout:    5 * time.Second,
		IdleConnTimeout:        4 * time.Second, // many servers close idle ones after 5 s, and a create caught by that would be Unknown
		MaxIdleConnsPerHost:    256,             // four times the worker's default concurrency: a full load keeps its connections
		MaxResponseHeaderBytes: 256 << 10,
		Protocols:              &http1,
	}}
}

// Close closes idle connections.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Probe is a cheap check of address, credentials and clock that changes nothing: a signed read of the tenant usage's
// first row. Any 2xx is success. It is not retried, except once with a corrected clock.
func (c *Client) Probe(ctx context.Context) error {
	path := "/api/v1/external/workspaces/" + url.PathEscape(c.ws.ID) + "/tenant-usage?per_page=1"
	if err := c.call(ctx, request{route: "probe", method: http.MethodGet, path: path, maxBody: maxUsageBody, once: true}); err != nil {
		return err
	}
	return nil
}

// request is one call of the API.
type request struct {
	route    string // for Observe
	method   string
	path     string // escaped, with its query
	tenantID string // for the API's usage report; empty: none
	body     []byte
	maxBody  int64              // of the answer
	once     bool               // no retries
	read     func(answer) error // takes what it needs from a 2xx; an error means that it makes no sense. nil: nothing is needed
}

// lost is what an answer that never came, or makes no sense, says of the request.
func (r request) lost() Class {
	if r.method == http.MethodGet {
		return Retryable
	}
	return Unknown
}

type answer struct {
	status     int
	statusLine string
	header     http.Header
	body       []byte
}

// call sends r until its outcome is known, unknowable, or no further try may start: inside RetryBudget it sends again
// what provably was not processed, unless the server asks to stay away for a while.
func (c *Client) call(ctx context.Context, r request) *Error {
	startBy := time.Now().Add(RetryBudget)
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(startBy) {
		startBy = deadline
	}
	waits := backoff.NewExponentialBackOff(backoff.WithInitialInterval(c.firstWait), backoff.WithMaxElapsedTime(0))
	var last *Error
	for expired := false; ; {
		if err := c.waitTurn(ctx, startBy); err != nil {
			if last != nil {
				return last
			}
			return err
		}
		last = c.observed(ctx, r)
		switch {
		case last == nil:
			return nil
		case last.Status == http.StatusUnauthorized && last.Code == "TOKEN_EXPIRED":
			c.correctClock(last, expired)
			if expired {
				return last
			}
			expired = true // it was not processed, so it may go out again at once
			continue
		case last.Class != Retryable || last.Deferred || r.once: // how long to stay away is the caller's to wait: it need not keep a slot for that
			return last
		}
		wait := waits.NextBackOff()
		if time.Now().Add(wait).After(startBy) {
			return last
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return last
		}
	}
}

func (c *Client) observed(ctx context.Context, r request) *Error {
	began := time.Now()
	ctx, span := c.startSpan(ctx, r)
	failed := c.do(ctx, r)
	endSpan(span, failed)
	if c.o.Observe != nil {
		status := http.StatusOK
		if failed != nil {
			status = failed.Status
		}
		c.o.Observe(r.route, status, time.Since(began))
	}
	return failed
}

// waitTurn waits for the process's rate limit. A try that cannot start in time is a deferral, no failure of the API.
func (c *Client) waitTurn(ctx context.Context, startBy time.Time) *Error {
	deferred := &Error{Class: Retryable, Deferred: true, RetryAfter: time.Second, Message: "nothing was sent: no turn in time"}
	if c.o.Limiter != nil {
		turn, cancel := context.WithDeadline(ctx, startBy)
		defer cancel()
		if err := c.o.Limiter.Wait(turn); err != nil {
			deferred.Message = "nothing was sent: our own rate limit: " + err.Error()
			return deferred
		}
	}
	if time.Now().After(startBy) {
		return deferred
	}
	return nil
}

// correctClock makes the client sign by the server's clock from now on, and turns err, a TOKEN_EXPIRED, into one that may
// be tried again, or, if that was done already, into lost credentials.
func (c *Client) correctClock(err *Error, again bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.correcting = !c.clock.latest.at.IsZero()
	switch {
	case !again:
		err.Class = Retryable
	case c.correcting:
		err.Message = fmt.Sprintf("expired also when signed by the server's clock, which is %v from ours: set the host's clock", c.clock.latest.skew().Round(time.Second))
	default:
		err.Message = "expired as soon as it was signed, and the server does not tell its time: set the host's clock"
	}
}

// do sends r once, freshly signed, and says how that ended: nil, or the class of the failure by what is known of it.
func (c *Client) do(parent context.Context, r request) *Error {
	ctx, cancel := context.WithTimeout(parent, c.o.Timeout)
	defer cancel()
	var conn *countingConn // what the request was given to; nil while there is none
	var before int64       // written to it for earlier requests and the TLS handshake
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
	// A body that the Transport cannot get anew keeps it from sending a request again by itself, a GET too.
	req, err := http.NewRequestWithContext(ctx, r.method, c.ws.APIURL+r.path, io.NopCloser(bytes.NewReader(r.body)))
	if err != nil { // not quoted: an address can hold a password
		return &Error{Class: Configuration, Message: "the workspace's API address is not a valid URL"}
	}
	req.ContentLength = int64(len(r.body))
	validUntil := c.signingTime().Add(RequestLife).Unix()
	signature := Sign(c.ws.Key.Secret, c.ws.ID, validUntil)
	req.Header.Set("X-API-Key-ID", c.ws.Key.ID)
	req.Header.Set("X-Workspace-ID", c.ws.ID)
	req.Header.Set("X-Valid-Until", strconv.FormatInt(validUntil, 10))
	req.Header.Set("X-Signature", signature)
	if r.method == http.MethodPost {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.tenantID != "" {
		req.Header.Set("X-Tenant-ID", r.tenantID) // as UTF-8 bytes: no encoding is documented
	}
	if c.o.UserAgent != "" {
		req.Header.Set("User-Agent", c.o.UserAgent)
	}
	hide := c.redactor(signature)
	fail := func(class Class, status int, what string, err error) *Error {
		if ctx.Err() != nil && parent.Err() == nil { // not errors.Is: a dialler's own time-out is a DeadlineExceeded, too
			err = fmt.Errorf("not done within %v", c.o.Timeout)
		}
		return &Error{Class: class, Status: status, Message: oneLine(what+": "+err.Error(), hide, maxMessage)}
	}

	// The Transport itself, not an http.Client: that would follow redirects, with our headers, to any host.
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		// The count is final: the Transport waits for its writer to end before it returns an error (mapRoundTripError;
		// not for its own ResponseHeaderTimeout, which therefore stays unset).
		if conn == nil || conn.written.Load() == before {
			return fail(Retryable, 0, "nothing was sent", err)
		}
		return fail(r.lost(), 0, "no answer", err)
	}
	defer func() { _ = resp.Body.Close() }()
	serverTime := c.noteDate(resp.Header)
	trace.SpanFromContext(ctx).SetAttributes(attribute.Int("http.response.status_code", resp.StatusCode))
	a := answer{status: resp.StatusCode, statusLine: resp.Status, header: resp.Header}
	if a.status == http.StatusSwitchingProtocols {
		// Its body is the connection, and reading that does not end with ctx.
		return fail(r.lost(), a.status, "no answer", errors.New("the server wants to switch protocols"))
	}
	a.body, err = io.ReadAll(io.LimitReader(resp.Body, r.maxBody+1))
	if err == nil && int64(len(a.body)) > r.maxBody {
		err = fmt.Errorf("longer than %d bytes", r.maxBody)
	}
	if a.status/100 != 2 {
		return failure(a, r.lost(), serverTime, hide) // the status has said it; as much of the body as came says why
	}
	if err != nil {
		return fail(r.lost(), a.status, "reading the answer", err)
	}
	if r.read == nil {
		return nil
	}
	if err := r.read(a); err != nil {
		return fail(r.lost(), a.status, "understanding the answer", err)
	}
	return nil
}

// countingConn counts the bytes that the host's network took: as long as none were added, a request was not sent.
type countingConn struct {
	net.Conn
	written atomic.Int64
}

func (c *countingConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.written.Add(int64(n))
	return n, err
}
