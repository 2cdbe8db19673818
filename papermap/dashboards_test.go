package papermap

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

func TestCreateSendsTheDocumentedRequest(t *testing.T) {
	now := time.Unix(1735689600, 0)
	tenant := "org-é.日本🔑 ~" + "\u00a0x"
	address, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		want := map[string]string{
			"X-API-Key-ID": "ak_canary_id", "X-Workspace-ID": "ws-1", "X-Valid-Until": "1735689900",
			"X-Signature": Sign(NewSecret("sk_canary_secret"), "ws-1", 1735689900), "X-Tenant-ID": tenant,
			"Content-Type": "application/json", "User-Agent": "papermap-worker/test", "Idempotency-Key": "",
			"X-Idempotency-Key": "",
		}
		for name, value := range want {
			if got := r.Header.Get(name); got != value {
				t.Errorf("%s is %q, want %q", name, got, value)
			}
		}
		if got := r.Method + " " + r.RequestURI; got != "POST /api/v1/external/dashboards" {
			t.Errorf("request is %s", got)
		}
		_, _ = io.WriteString(w, created)
	})
	c := newTestClient(t, address, ClientOptions{Now: func() time.Time { return now },
		UserAgent: "papermap-worker/test"})
	got, err := c.CreateDashboard(t.Context(), NewDashboard{TenantID: tenant, Title: "Dashboard - Acme"})
	if want := (Dashboard{ID: "dash-1", Title: "Dashboard - Acme", Status: 200}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

func TestCreateBodyHasNoHTMLEscapesAndNoEmptyDescription(t *testing.T) {
	bodies := make(chan string, 2)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		bodies <- string(body)
		_, _ = io.WriteString(w, created)
	}))
	defer srv.Close()
	c := newTestClient(t, srv.URL, ClientOptions{})
	for description, want := range map[string]string{
		"":        `{"workspace_id":"ws-1","title":"<Acme> & \"Söhne\""}`,
		"pmw:1>2": `{"workspace_id":"ws-1","title":"<Acme> & \"Söhne\"","description":"pmw:1>2"}`,
	} {
		if _, err := c.CreateDashboard(t.Context(), NewDashboard{TenantID: "t", Title: `<Acme> & "Söhne"`,
			Description: description}); err != nil {
			t.Fatal(err)
		}
		if got := <-bodies; got != want {
			t.Errorf("body %s, want %s", got, want)
		}
	}
	_, err := c.CreateDashboard(t.Context(), NewDashboard{Title: "\xff"})
	if classOf(t, err) != Refused || len(bodies) != 0 {
		t.Errorf("a title that is not UTF-8: %v, %d requests", err, len(bodies))
	}
}

func TestDashboardIDIsReadInBothShapesAndOnlyWhenValid(t *testing.T) {
	longest := strings.Repeat("ü", MaxDashboardID)
	for body, want := range map[string]string{
		created:  "dash-1",
		created2: "dash-2",
		`{"data":{"dashboard_id":"a","data":{"dashboard_id":"b"}}}`: "a",
		`{"data":{"dashboard_id":"","data":{"dashboard_id":"b"}}}`:  "b",
		`{"data":{"dashboard_id":7,"data":{"dashboard_id":"b"}}}`:   "b",
		`{"data":{"data":{"data":{"dashboard_id":"c"}}}}`:           "",
		`{"data":{"dashboard_id":7}}`:                               "",
		`{"data":{"dashboard_id":null}}`:                            "",
		`{"data":{"dashboard_id":{}}}`:                              "",
		`{"data":{"dashboard_id":"a\u0000"}}`:                       "",
		`{"data":{"dashboard_id":"a\u0085"}}`:                       "",
		`{"data":{"dashboard_id":"a\ud800"}}`:                       "",
		"{\"data\":{\"dashboard_id\":\"a\xff\"}}":                   "",
		`{"data":{"dashboard_id":"` + longest + `"}}`:               longest,
		`{"data":{"dashboard_id":"` + longest + `x"}}`:              "",
		`{"data":["dashboard_id","a"]}`:                             "",
		`{"data":"a"}`:                                              "",
		`{"dashboard_id":"a"}`:                                      "",
		`{"success":null,"data":{"dashboard_id":"a"}}`:              "a",
		"{\"message\":\"\xff\",\"message\":\"twice\",\"success\":1,\"data\":{\"dashboard_id\":\"a\"}}": "a",
	} {
		got, err := createdID(answer{status: 200, header: http.Header{}, body: []byte(body)})
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v, want %q", body, got, err, want)
		}
	}
}

func FuzzCreateAnswer(f *testing.F) {
	for _, body := range []string{created, created2, `{"data":{"dashboard_id":"\ud800"}}`,
		`{"success":false,"error":{"message":"x"}}`, "null", "[[", "\xff"} {
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
		e := classify(a, Unknown, time.Time{}, redactor{whole: strings.NewReplacer()})
		if !utf8.ValidString(e.Error()) || strings.ContainsFunc(e.Error(), unicode.IsControl) ||
			utf8.RuneCountInString(e.Message) > maxMessage {
			t.Errorf("message %q", e.Message)
		}
	})
}

// created2 is a creation's answer in the guide's shape.
const created2 = `{"success":true,"data":{"message":"ok","data":{"dashboard_id":"dash-2"}}}`
