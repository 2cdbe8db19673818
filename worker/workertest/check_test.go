package workertest_test

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"papermap-worker/worker/workertest"
)

// What checkSecrets looks for is found wherever it begins in a text that was encoded as a whole.
func TestFormsOfFindsEncodedSecrets(t *testing.T) {
	const secret = "sk_canary/+ü&=?"
	for before := range 6 {
		for after := range 6 {
			text := strings.Repeat("<", before) + secret + strings.Repeat(">", after)
			for name, encoded := range map[string]string{
				"raw": text, "hex": fmt.Sprintf("%x", text), "HEX": fmt.Sprintf("%X", text),
				"base64":         base64.StdEncoding.EncodeToString([]byte(text)),
				"base64 of URLs": base64.RawURLEncoding.EncodeToString([]byte(text)),
				"query":          url.QueryEscape(text), "path": url.PathEscape(text),
			} {
				if !slices.ContainsFunc(workertest.FormsOf(secret),
					func(form []byte) bool { return strings.Contains(encoded, string(form)) }) {
					t.Errorf("not found in %s, as %s", encoded, name)
				}
			}
		}
	}
}
