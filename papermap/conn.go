package papermap

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"papermap-worker/worker/failpoint"
)

// If a request is sent on a connection that the server is just closing, it ends without an answer,
// and a create is then Unknown. So a connection is reused only shortly after its last answer, and
// only if nothing arrived on it since: neither its end, nor bytes that no request asked for. Such
// bytes may announce the end (a 408), or belong to another request. http.Transport cannot guarantee
// that: a request that takes an idle connection while such bytes arrive gets them as its answer.
//
// A connection carries one request at a time, in HTTP/1.1. HTTP/2 would share it among requests.

const (
	maxIdle       = 500 * time.Millisecond // since a connection's last answer
	maxHeader     = 256 << 10              // bytes of an answer's header, interim answers included
	byteOrderMark = "\ufeff"

	noLimit = math.MaxInt64
)

// conn is a connection to the API, used by one request at a time.
type conn struct {
	net.Conn               // encrypted, if the API's address is https
	raw      *countingConn // what Conn writes to
	in       *io.LimitedReader
	r        *bufio.Reader // reads in
	w        *bufio.Writer

	reusable  bool          // the last answer is complete, and another request may follow
	idle      time.Duration // how long it may be idle
	idleSince time.Time
	quiet     chan bool // gets the result of watch, once the connection is taken
}

func newConn(c net.Conn, raw *countingConn) *conn {
	in := &io.LimitedReader{R: c}
	return &conn{Conn: c, raw: raw, in: in, r: bufio.NewReader(in), w: bufio.NewWriter(c)}
}

// errNothingSent marks an error of roundTrip after which the server has no byte of the request.
var errNothingSent = errors.New("nothing was sent")

// roundTrip sends req and reads its answer, with at most maxBody bytes of body after decompression.
// After an error the answer holds what arrived; its status is 0 if there was none.
func (c *conn) roundTrip(ctx context.Context, req *http.Request, maxBody int64) (a answer, err error) {
	c.reusable = false
	if ctx.Err() != nil {
		return answer{}, fmt.Errorf("%w: %w", errNothingSent, ctx.Err())
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(longAgo) })
	defer func() { c.reusable = stop() && c.reusable }()

	before := c.raw.written.Load()
	writeErr := req.Write(c.w)
	if writeErr == nil {
		writeErr = c.w.Flush()
	}
	failpoint.Hit(failpoint.Sent)
	if c.raw.written.Load() == before {
		return answer{}, fmt.Errorf("%w: %w", errNothingSent, writeErr)
	}
	resp, err := c.readHeader(req) // even if the server did not take all: its answer may say why
	if err != nil {
		return answer{}, errors.Join(writeErr, err)
	}
	a = answer{status: resp.StatusCode, statusLine: resp.Status, header: resp.Header}
	if a.status == http.StatusSwitchingProtocols { // its body is the rest of the connection
		return a, errors.New("the server wants to switch protocols")
	}
	if a.body, err = readBody(resp, maxBody); err != nil {
		return a, err
	}
	c.idle = min(maxIdle, announcedIdle(resp.Header)/2)
	c.reusable = writeErr == nil && !resp.Close &&
		a.status != http.StatusRequestTimeout && // closes it
		a.status != http.StatusMisdirectedRequest // would be the same again
	return a, nil
}

// readHeader reads up to the body of the final answer. Interim answers (100, 103) are skipped.
func (c *conn) readHeader(req *http.Request) (*http.Response, error) {
	c.in.N = maxHeader
	defer func() { c.in.N = noLimit }()
	for {
		resp, err := http.ReadResponse(c.r, req)
		switch {
		case err != nil && c.in.N <= 0:
			return nil, fmt.Errorf("headers are longer than %d bytes", maxHeader)
		case err != nil:
			return nil, err
		case resp.StatusCode/100 != 1, resp.StatusCode == http.StatusSwitchingProtocols:
			return resp, nil
		}
	}
}

// readBody reads a body to its end, decompressed. After an error it returns what arrived.
func readBody(resp *http.Response, limit int64) ([]byte, error) {
	body := io.Reader(resp.Body)
	if resp.ContentLength != 0 && strings.EqualFold(resp.Header.Get("Content-Encoding"), "gzip") {
		unzipped, err := gzip.NewReader(body)
		if err != nil {
			return nil, err
		}
		body = unzipped
	}
	text, err := io.ReadAll(io.LimitReader(body, limit+1))
	text = bytes.TrimPrefix(text, []byte(byteOrderMark)) // some servers put it before their JSON
	if err == nil && int64(len(text)) > limit {
		return text, fmt.Errorf("longer than %d bytes", limit)
	}
	return text, err
}

// announcedIdle returns how long the server says that it keeps an idle connection (Keep-Alive:
// timeout=5); without a readable announcement, forever.
func announcedIdle(h http.Header) time.Duration {
	for _, value := range h.Values("Keep-Alive") {
		for parameter := range strings.SplitSeq(value, ",") {
			name, text, _ := strings.Cut(parameter, "=")
			if !strings.EqualFold(strings.TrimSpace(name), "timeout") {
				continue
			}
			if d, err := time.ParseDuration(strings.Trim(text, " \t\"") + "s"); err == nil {
				return max(d, 0)
			}
		}
	}
	return math.MaxInt64
}

// longAgo as a deadline interrupts a connection's reads and writes.
var longAgo = time.Unix(1, 0)

// pool keeps idle connections for reuse.
type pool struct {
	dial func(context.Context) (*conn, error)

	mu   sync.Mutex
	idle []*conn // the oldest first
}

// get returns a connection that was idle for a short time and stayed quiet, or a new one.
func (p *pool) get(ctx context.Context) (*conn, error) {
	for {
		p.mu.Lock()
		n := len(p.idle)
		if n == 0 {
			p.mu.Unlock()
			return p.dial(ctx)
		}
		c := p.idle[n-1]
		p.idle = slices.Delete(p.idle, n-1, n)
		p.mu.Unlock()
		if c.stopWatch() {
			return c, nil
		}
		_ = c.Close()
	}
}

// put returns a connection to the pool after its request has ended.
func (p *pool) put(c *conn) {
	if !c.reusable || c.idle <= 0 {
		_ = c.Close()
		return
	}
	c.idleSince, c.quiet = time.Now(), make(chan bool, 1)
	_ = c.SetReadDeadline(c.idleSince.Add(c.idle))
	p.mu.Lock()
	p.idle = append(p.idle, c)
	p.mu.Unlock()
	go p.watch(c)
}

// watch reads an idle connection until it is taken. It closes the connection when its idle time has
// passed, or when the server closes it or sends something.
func (p *pool) watch(c *conn) {
	_, err := c.r.Peek(1)
	if p.remove(c) {
		_ = c.Close()
		return
	}
	c.quiet <- errors.Is(err, os.ErrDeadlineExceeded)
}

// stopWatch ends watch for a connection that was taken from the pool. It reports whether the
// connection can be used. The host may have been suspended, which only the wall clock shows.
func (c *conn) stopWatch() bool {
	_ = c.SetReadDeadline(longAgo)
	quiet := <-c.quiet
	_ = c.SetReadDeadline(time.Time{})
	now := time.Now()
	byWall := now.Round(0).Sub(c.idleSince.Round(0))
	// A connection that is taken at once may be taken before watch has read.
	return quiet && silent(c.raw.Conn) && max(now.Sub(c.idleSince), byWall) < c.idle
}

// remove reports whether c was idle until now.
func (p *pool) remove(c *conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.idle, c)
	if i >= 0 {
		p.idle = slices.Delete(p.idle, i, i+1)
	}
	return i >= 0
}

// close closes idle connections.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.idle {
		_ = c.SetReadDeadline(longAgo) // watch closes it
	}
}

// countingConn counts the bytes that the host's network stack accepted. While the count has not
// grown, a request was not sent.
type countingConn struct {
	net.Conn
	written atomic.Int64
}

func (c *countingConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.written.Add(int64(n))
	return n, err
}
