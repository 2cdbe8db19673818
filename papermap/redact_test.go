package papermap

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// A server that echoes a request may cut it, write it in another case, or put something between.
func TestPartsOfASignatureAreRedacted(t *testing.T) {
	for name, answer := range map[string]func(signature string) string{
		"cut":        func(s string) string { return "X-Signature: " + s[:len(s)-4] },
		"half":       func(s string) string { return "X-Signature: " + s[:len(s)/2] },
		"end":        func(s string) string { return s[4:] + " was sent" },
		"upper case": strings.ToUpper,
		"divided":    func(s string) string { return fmt.Sprintf(`{"error":"%s\u0000%s"}`, s[:30], s[30:]) },
		"escaped":    func(s string) string { return fmt.Sprintf(`<p>\u%04x%s`, s[0], s[1:]) },
		"late":       func(s string) string { return strings.Repeat(" ", 9<<10) + s[:60] },
		"in a code":  func(s string) string { return fmt.Sprintf(`{"code":"X%s"}`, s[:40]) },
	} {
		var signature string
		address, _ := serve(t, func(rw http.ResponseWriter, r *http.Request) {
			signature = r.Header.Get("X-Signature")
			rw.WriteHeader(http.StatusBadRequest)
			_, _ = rw.Write([]byte(answer(signature)))
		})
		_, err := newTestClient(t, address, ClientOptions{}).CreateDashboard(t.Context(), anyDashboard)
		e := failed(t, err)
		showsNoPart(t, name+": "+e.Code+" "+e.Message, signature)
	}
}

func TestPartsOfASignatureAreStoredWithNoUsageRow(t *testing.T) {
	var signature string
	address, _ := serve(t, func(rw http.ResponseWriter, r *http.Request) {
		signature = r.Header.Get("X-Signature")
		_, _ = fmt.Fprintf(rw, `{"data":{"usage":[{"note":"%s"},{"note":"%s"},{"%s":1}]}}`,
			signature[:40], strings.ToUpper(signature[20:]), signature[4:36])
	})
	c := newTestClient(t, address, ClientOptions{})
	page, err := c.Usage(t.Context(), firstPage)
	if err != nil || len(page.Rejected) != 3 {
		t.Fatalf("%d rejected rows, %v", len(page.Rejected), err)
	}
	for _, row := range page.Rejected {
		showsNoPart(t, row.Raw, signature)
	}
	sample, err := c.SampleUsage(t.Context(), firstPage)
	if err != nil {
		t.Fatal(err)
	}
	showsNoPart(t, strings.Join(sample.Other, " "), signature)
}

func showsNoPart(t *testing.T, text, signature string) {
	t.Helper()
	if text = strings.ToLower(text); !strings.Contains(text, redacted) {
		t.Errorf("nothing is redacted: %s", text)
	}
	for i := 0; i+hiddenPart <= len(signature); i++ {
		if strings.Contains(text, signature[i:i+hiddenPart]) {
			t.Errorf("a part of the signature is shown: %s", text)
			break
		}
	}
}
