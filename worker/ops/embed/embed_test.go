package embed

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestModuleIsPublicAndCacheable(t *testing.T) {
	mux := http.NewServeMux()
	Register(mux)
	named := fmt.Sprintf("/embed/papermap-embed.%.8x.js", sha256.Sum256(module))
	for _, c := range []struct {
		path, match  string
		status       int
		contentType  string
		cacheControl string
		body         []byte
	}{
		{named, "", 200, "text/javascript; charset=utf-8", immutable, module},
		{"/embed/papermap-embed.js", "", 200, "text/javascript; charset=utf-8", hour, module},
		{"/embed/papermap-embed.js", `"` + hash(module) + `"`, 304, "", hour, nil},
		{"/embed/papermap-embed.d.ts", "", 200, "text/plain; charset=utf-8", hour, types},
		{"/embed/papermap-embed.0000000000000000.js", "", 404, "text/plain; charset=utf-8", "no-store",
			[]byte("404 page not found\n")},
	} {
		req := httptest.NewRequest("GET", c.path, nil)
		req.Header.Set("If-None-Match", c.match)
		answer := httptest.NewRecorder()
		mux.ServeHTTP(answer, req)
		h := answer.Header()
		if answer.Code != c.status || h.Get("Content-Type") != c.contentType ||
			h.Get("Cache-Control") != c.cacheControl || !bytes.Equal(answer.Body.Bytes(), c.body) {
			t.Errorf("%s: %d, %v, %d bytes", c.path, answer.Code, h, answer.Body.Len())
		}
		if c.status != 404 && (h.Get("Access-Control-Allow-Origin") != "*" ||
			h.Get("Cross-Origin-Resource-Policy") != "cross-origin" ||
			h.Get("X-Content-Type-Options") != "nosniff") {
			t.Errorf("%s cannot be loaded by pages of other origins, or can be sniffed: %v", c.path, h)
		}
	}
}

func TestModuleIsSmall(t *testing.T) {
	var size counter
	w, err := gzip.NewWriterLevel(&size, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(module)
	_ = w.Close()
	if size >= 6<<10 {
		t.Errorf("papermap-embed.js has %d bytes with gzip, want fewer than 6 KiB", size)
	}
}

type counter int

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
