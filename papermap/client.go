package papermap

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"
)

const (
	maxCreateBody = 1 << 20 // bytes of an answer, after decompression
	maxUsageBody  = 8 << 20

	// maxCorrection limits how far a Date may shift a signature, so that signatures stay
	// short-lived whatever the server's clock says.
	maxCorrection = 24 * time.Hour
)

// ClientOptions are a client's options. The zero value works.
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

	// Proxy returns the proxy for requests to an https address; nil: that of the environment.
	Proxy func(*http.Request) (*url.URL, error)

	// HistoryPath is the path of one tenant's usage, with {workspace_id} and {tenant_id} in it. It
	// is an option because it is not documented; empty:
	// /api/v1/external/workspaces/{workspace_id}/tenants/{tenant_id}/usage.
	HistoryPath string
}

// Client calls the API of one workspace. It is safe for concurrent use.
type Client struct {
	ws        Workspace
	o         ClientOptions
	dialer    *dialer
	conns     *pool
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
	d := &dialer{
		network: o.Dial, proxy: o.Proxy,
		// No HTTP/2: no ALPN.
		tls: &tls.Config{ClientSessionCache: tls.NewLRUClientSessionCache(0)},
	}
	if u, err := url.Parse(ws.APIURL); err == nil && u.Host != "" {
		d.address = u
	}
	if d.network == nil {
		d.network = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	if d.proxy == nil {
		d.proxy = http.ProxyFromEnvironment
	}
	return &Client{ws: ws, o: o, firstWait: firstRetryWait, dialer: d, conns: &pool{dial: d.dial}}
}

// Close closes idle connections.
func (c *Client) Close() { c.conns.close() }

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

// lost returns the class of a request whose answer never arrived or is unusable.
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

	hide func() redactor // removes our secrets and the request's signature; costly, so only where needed
}

// send sends r once, freshly signed, and classifies its failure. It follows no redirects, which
// would send the signed headers to another host.
func (c *Client) send(parent context.Context, r request) *Error {
	ctx, cancel := context.WithTimeout(parent, c.o.Timeout)
	defer cancel()
	req, err := c.signedRequest(ctx, r)
	if err != nil || c.dialer.address == nil { // not quoted: an address can hold a password
		return &Error{Class: Configuration, Message: "the workspace's API address is not a valid URL"}
	}
	hide := func() redactor { return c.redactor(req.Header.Get("X-Signature")) }
	fail := func(class Class, status int, what string, err error) *Error {
		// Not errors.Is: a dialler's own timeout is a DeadlineExceeded too.
		if ctx.Err() != nil && parent.Err() == nil {
			err = fmt.Errorf("not done within %v", c.o.Timeout)
		}
		message := oneLine(what+": "+err.Error(), hide(), maxMessage)
		return &Error{Class: class, Status: status, Message: message}
	}

	conn, err := c.conns.get(ctx)
	if err != nil {
		return fail(Retryable, 0, errNothingSent.Error(), err)
	}
	defer c.conns.put(conn)
	a, err := conn.roundTrip(ctx, req, r.maxBody)
	a.hide = hide
	if a.status == 0 {
		if errors.Is(err, errNothingSent) {
			return fail(Retryable, 0, errNothingSent.Error(), err)
		}
		return fail(r.lost(), 0, "no answer", err)
	}
	serverTime := c.addDate(a.header)
	trace.SpanFromContext(ctx).SetAttributes(attribute.Int("http.response.status_code", a.status))
	switch {
	case a.status == http.StatusSwitchingProtocols:
		return fail(r.lost(), a.status, "no answer", err)
	case a.status/100 != 2: // the status decides; what arrived of the body says why
		return classify(a, r.lost(), serverTime, hide())
	case err != nil:
		return fail(r.lost(), a.status, "reading the answer", err)
	case r.read == nil:
		return nil
	}
	if err := r.read(a); err != nil {
		failed := fail(r.lost(), a.status, "understanding the answer", err)
		failed.Unreadable = true
		return failed
	}
	return nil
}

// signedRequest returns the HTTP request of r, valid for RequestLife from now.
func (c *Client) signedRequest(ctx context.Context, r request) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, r.method, c.ws.APIURL+r.path, bytes.NewReader(r.body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept-Encoding", "gzip")
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
