package simulator

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// replacesAnswer reports whether the rule's own answer is sent instead of the endpoint's.
func (f Fault) replacesAnswer() bool { return f.Status != 0 || f.Body != "" }

// reachesEndpoint reports whether the request has its usual effect. The zero rule allows it.
func (f Fault) reachesEndpoint() bool {
	return f.Drop != "before" && (f.Effect || !f.replacesAnswer())
}

// answer returns the rule's own answer. A redirect points back to the same address, so that a
// client that follows it shows in the log as a second request.
func (f Fault) answer(r *http.Request) answer {
	a := answer{status: http.StatusOK, contentType: f.ContentType, retryAfter: f.RetryAfter,
		body: []byte(f.Body)}
	if f.Status != 0 {
		a.status = f.Status
	}
	if f.Body == "" && a.status >= 400 {
		a.body = failure(a.status, "Simulated fault: "+http.StatusText(a.status)).body
	}
	if a.status >= 300 && a.status < 400 {
		a.location = r.URL.RequestURI()
	}
	return a
}

// write sends an answer with the rule's distortions. Aborting the handler in the middle of a body
// makes net/http close the connection there.
func (f Fault) write(w http.ResponseWriter, r *http.Request, a answer) {
	if f.Interim && a.status != 0 {
		w.WriteHeader(http.StatusEarlyHints)
	}
	if f.BOM && len(a.body) > 0 {
		a.body = append([]byte("\ufeff"), a.body...)
	}
	if end, ok := r.Context().Value(idleEndKey{}).(*idleEnd); ok {
		end.set(f)
	}
	switch {
	case f.Truncate:
		a.setHeader(w.Header())
		w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
		w.WriteHeader(a.status)
		_, _ = w.Write(a.body[:len(a.body)/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case f.Endless:
		a.write(w)
		spaces := bytes.Repeat([]byte(" "), 64<<10)
		for r.Context().Err() == nil {
			if _, err := w.Write(spaces); err != nil {
				break
			}
		}
		panic(http.ErrAbortHandler)
	case f.Bomb:
		a.setHeader(w.Header())
		w.Header().Set("Content-Encoding", "gzip")
		w.WriteHeader(a.status)
		_, _ = w.Write(zipped(a.body))
		spaces := zippedSpaces()
		for range 64 { // gzip streams may be concatenated
			if _, err := w.Write(spaces); err != nil {
				break
			}
		}
	case f.HeaderDelay > 0:
		a.dribble(w, r, f.HeaderDelay)
	default:
		for left := f.HeaderBytes; left > 0; left -= 4 << 10 {
			w.Header().Add("X-Filler", strings.Repeat("x", min(left, 4<<10)))
		}
		a.write(w)
	}
}

// zippedSpaces are 16 MiB of spaces.
var zippedSpaces = sync.OnceValue(func() []byte { return zipped(bytes.Repeat([]byte(" "), 16<<20)) })

func zipped(text []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, _ = z.Write(text)
	_ = z.Close()
	return out.Bytes()
}

// dribble sends the answer with a pause after each line of its header, until the client is gone or
// the server closes. net/http sends a header in one piece, so its connection is hijacked.
func (a answer) dribble(w http.ResponseWriter, r *http.Request, pause time.Duration) {
	a.setHeader(w.Header())
	header := w.Header().Clone()
	header.Set("Content-Length", strconv.Itoa(len(a.body)))
	header.Set("Connection", "close")
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(fmt.Sprintf("simulator: header-delay needs a server of HTTP/1.1: %v", err))
	}
	defer func() { _ = conn.Close() }()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, conn)
	}()
	lines := []string{fmt.Sprintf("HTTP/1.1 %d %s\r\n", a.status, http.StatusText(a.status))}
	for name := range header {
		lines = append(lines, name+": "+header.Get(name)+"\r\n")
	}
	for _, line := range append(lines, "\r\n"+string(a.body)) {
		if _, err := io.WriteString(conn, line); err != nil {
			return
		}
		select {
		case <-time.After(pause):
		case <-gone:
			return
		case <-r.Context().Done():
			return
		}
	}
}
