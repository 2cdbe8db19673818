package papermap

import (
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"", "1", "-1", "900", "99999999999999999999", "1e9", "soon", "Wed, 01 Jan 2025 12:01:00 GMT", "Wed, 01 Jan 0001 00:00:00 GMT"} {
		f.Add(s, int64(1735732800))
	}
	f.Fuzz(func(t *testing.T, value string, now int64) {
		d, present := parseRetryAfter(http.Header{"Retry-After": {value}}, time.Unix(now, 0))
		if !present || d < time.Second || d > 15*time.Minute {
			t.Errorf("%q at %d: %v, %v", value, now, d, present)
		}
	})
}

func FuzzCreateAnswer(f *testing.F) {
	for _, body := range []string{created, created2, `{"data":{"dashboard_id":"\ud800"}}`, `{"success":false,"error":{"message":"x"}}`, "null", "[[", "\xff"} {
		f.Add(200, "application/json", []byte(body))
		f.Add(400, "text/html", []byte(body))
	}
	f.Fuzz(func(t *testing.T, status int, contentType string, body []byte) {
		a := answer{status: status, header: http.Header{"Content-Type": {contentType}}, body: body}
		id, err := createdID(a)
		if err == nil && (status != 200 && status != 201 || id == "" || !utf8.ValidString(id) ||
			utf8.RuneCountInString(id) > MaxDashboardID || strings.ContainsFunc(id, unicode.IsControl)) {
			t.Errorf("accepted id %q of %d", id, status)
		}
		e := failure(a, Unknown, time.Time{}, strings.NewReplacer())
		if !utf8.ValidString(e.Error()) || strings.ContainsFunc(e.Error(), unicode.IsControl) || utf8.RuneCountInString(e.Message) > maxMessage {
			t.Errorf("message %q", e.Message)
		}
	})
}
