// Package embed serves the browser's half of embedding: the custom element <papermap-dashboard>.
//
//	/embed/papermap-embed.<hash>.js  the element; it never changes under this name
//	/embed/papermap-embed.js         the same, as of this version of the worker
//	/embed/papermap-embed.d.ts       its types
//
// The files are public, and pages of any origin may load them:
//
//	embed.Register(mux)
//
// papermap-embed.js has its manual in docs/embedding.md. It calls the customer's backend, never the
// worker, so this package answers no requests for tokens.
package embed

import (
	"bytes"
	"crypto/sha256"
	_ "embed" // for the two files
	"encoding/hex"
	"net/http"
	"time"
)

var (
	//go:embed papermap-embed.js
	module []byte

	//go:embed papermap-embed.d.ts
	types []byte
)

const (
	immutable = "public, max-age=31536000, immutable"
	hour      = "public, max-age=3600"
)

// hash returns the part of a file's name and ETag that changes with its content.
func hash(file []byte) string {
	sum := sha256.Sum256(file)
	return hex.EncodeToString(sum[:8])
}

// Register adds the routes to mux.
func Register(mux *http.ServeMux) {
	const javaScript = "text/javascript; charset=utf-8"
	mux.Handle("GET /embed/papermap-embed."+hash(module)+".js", serve(module, javaScript, immutable))
	mux.Handle("GET /embed/papermap-embed.js", serve(module, javaScript, hour))
	mux.Handle("GET /embed/papermap-embed.d.ts", serve(types, "text/plain; charset=utf-8", hour))
	mux.HandleFunc("GET /embed/", func(rw http.ResponseWriter, req *http.Request) {
		// An upgraded replica may already have the file.
		rw.Header().Set("Cache-Control", "no-store")
		http.NotFound(rw, req)
	})
}

func serve(file []byte, contentType, cacheControl string) http.Handler {
	etag := `"` + hash(file) + `"`
	return http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		header := rw.Header()
		header.Set("Content-Type", contentType)
		header.Set("Cache-Control", cacheControl)
		header.Set("ETag", etag)
		header.Set("Access-Control-Allow-Origin", "*")
		header.Set("Cross-Origin-Resource-Policy", "cross-origin")
		header.Set("X-Content-Type-Options", "nosniff")
		http.ServeContent(rw, req, "", time.Time{}, bytes.NewReader(file))
	})
}
