package ops

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"

	"papermap-worker/events"
	"papermap-worker/worker"
	"papermap-worker/worker/workertest"
)

// becomes waits until the tenant's mapping shows the status.
func (w *world) becomes(tenant, status string) {
	w.t.Helper()
	w.Eventually(func() error {
		if got := w.ask("GET", api+"/"+url.PathEscape(tenant), admin(w.t),
			"").field("status"); got != status {
			return fmt.Errorf("%s is %q, want %q", tenant, got, status)
		}
		return nil
	})
}

func TestRoutesDoTheirWorkAndAnswerAsDocumented(t *testing.T) {
	virtual(t, secretOnly.JWT, func(t *testing.T, w *world) {
		root := admin(t)

		a := w.ok(w.ask("POST", api, root, `{"tenant_id":"org-1","name":"Acme","description":"the first"}`),
			201)
		if got, want := a.header.Get("Location"), api+"/org-1"; got != want {
			t.Errorf("Location %q, want %q", got, want)
		}
		if a.field("title") != "Dashboard - Acme" || a.field("status") != "active" ||
			a.field("workspace_id") != "ws-a" || a.field("dashboard_id") == "" {
			t.Errorf("created %s", a.body)
		}
		if shown := w.ok(w.ask("GET", a.header.Get("Location"), root, ""),
			200); !bytes.Equal(bytes.TrimSpace(shown.body), bytes.TrimSpace(a.body)) {
			t.Errorf("shown %s, created %s", shown.body, a.body)
		}
		if again := w.ok(w.ask("POST", api, root, `{"tenant_id":"org-1","name":"Acme"}`),
			201); again.field("dashboard_id") != a.field("dashboard_id") {
			t.Errorf("created again: %s, before %s", again.body, a.body)
		}
		var list struct{ Dashboards []worker.Dashboard }
		if w.Must(json.Unmarshal(w.ok(w.ask("GET", api+"?status=active", root, ""), 200).body,
			&list)); len(list.Dashboards) != 1 || list.Dashboards[0].TenantID != "org-1" {
			t.Errorf("listed %+v", list)
		}
		if w.Must(json.Unmarshal(w.ok(w.ask("GET", api+"?status=failed", root, ""), 200).body,
			&list)); len(list.Dashboards) != 0 {
			t.Errorf("listed as failed %+v", list)
		}
		var minted worker.EmbedToken
		w.Must(json.Unmarshal(w.ok(w.ask("POST", api+"/org-1/embed-token", root, `{"ttl_seconds":60}`),
			200).body, &minted))
		if left := time.Until(time.Unix(minted.ExpiresAt, 0)); left > time.Minute || left < 0 ||
			minted.TenantID != "org-1" {
			t.Errorf("minted %+v", minted)
		}
		page, err := w.client.Get(minted.EmbedURL)
		w.Must(err)
		if page.Body.Close(); page.StatusCode != 200 {
			t.Errorf("Papermap answers %d to the address for the iframe", page.StatusCode)
		}

		_, err = w.SQL.Exec(`INSERT INTO tenant_usage
			(workspace_id, tenant_id, period, credits, requests, synced_at)
			VALUES ('ws-a', 'org-1', '2025-01', '1.50', 3, '2025-02-01T00:00:00.000Z'),
			('ws-a', 'org-2', '2025-01', '7', 4, '2025-02-01T00:00:00.000Z')`)
		w.Must(err)
		var usage worker.UsagePage
		w.Must(json.Unmarshal(w.ok(w.ask("GET",
			"/api/v1/usage?tenant_id=org-1&workspace_id=ws-a&from_period=2025-01&to_period=2025-01"+
				"&page=1&per_page=1", root, ""), 200).body, &usage))
		if usage.Total != 1 || usage.Page != 1 || len(usage.Usage) != 1 || usage.Usage[0].Credits != "1.50" ||
			usage.Usage[0].Requests != 3 {
			t.Errorf("usage %+v", usage)
		}

		const budget = "/api/v1/usage/budgets/org-1"
		w.ok(w.ask("PUT", budget, root, `{"credits":"10"}`), 200)
		w.ok(w.ask("GET", budget, root, ""), 200)
		w.ok(w.ask("DELETE", budget, root, ""), 204)

		if status := w.ok(w.ask("POST", api+"/org-1/suspend", root, `{"reason":"unpaid"}`), 200).field(
			"status"); status != "suspended" {
			t.Errorf("after the suspension it is %s", status)
		}
		w.Eventually(func() error {
			if got := w.ask("POST", api+"/org-1/embed-token", root, ""); got.status != 403 ||
				got.field("code") != "TENANT_SUSPENDED" {
				return fmt.Errorf("a suspended tenant gets %d %s", got.status, got.field("code"))
			}
			return nil
		})
		w.ok(w.ask("POST", api+"/org-1/resume", root, ""), 200)
		w.becomes("org-1", "active")
		if status := w.ok(w.ask("DELETE", api+"/org-1", root, ""), 200).field("status"); status != "deleted" {
			t.Errorf("after the deletion it is %s", status)
		}
		w.Eventually(func() error {
			if got := w.ask("POST", api+"/org-1/embed-token", root, ""); got.status != 410 ||
				got.field("code") != "TENANT_DELETED" {
				return fmt.Errorf("a deleted tenant gets %d %s", got.status, got.field("code"))
			}
			return nil
		})
		for _, r := range routes {
			done := false
			for _, status := range []int{200, 201, 202, 204} {
				done = done || w.seen[fmt.Sprint(r.method, " ", r.path, " ", status)]
			}
			if !done {
				t.Errorf("%s %s has not done its work once", r.method, r.path)
			}
		}
	})
}

func TestCallersMistakesAreNamed(t *testing.T) {
	virtual(t, secretOnly.JWT, func(t *testing.T, w *world) {
		root := admin(t)
		w.create("org-1")
		large := `{"reason":"` + strings.Repeat("x", maxBody) + `"}`
		for _, c := range []struct {
			request, body string
			status        int
			detail        string
		}{
			{"POST " + api, "", 400, "missing"},
			{"POST " + api, "{", 400, "JSON"},
			{"POST " + api, "[]", 400, "not a JSON object"},
			{"POST " + api, `{"tenant_id":"x"}`, 400, "name"},
			{"POST " + api, `{"tenant_id":"x","name":5}`, 400, "name"},
			{"POST " + api, `{"tenant_id":"x","Name":"x"}`, 400, "case"},
			{"POST " + api, `{"tenant_id":"x","tenant_id":"y","name":"x"}`, 400, "same name twice"},
			{"POST " + api, `{"tenant_id":" x","name":"x"}`, 400, "white space"},
			{"POST " + api, `{"tenant_id":"x","name":"x","workspace_id":"ws-z"}`, 400,
				`workspace "ws-z" is not configured`},
			{"POST " + api, large, 413, "larger than 65536 bytes"},
			{"GET " + api + "?status=gone", "", 400, "status is one of"},
			{"GET " + api + "?limit=0", "", 400, "limit is 1 to 1000"},
			{"GET " + api + "?limit=1001", "", 400, "limit is 1 to 1000"},
			{"GET " + api + "?limit=x", "", 400, "limit is 1 to 1000"},
			{"GET " + api + "?cursor=%FF", "", 400, "cursor"},
			{"GET " + api + "/nobody", "", 404, "unknown"},
			{"GET " + api + "/" + strings.Repeat("x", 256), "", 400, "255"},
			{"GET " + api + "/%20x", "", 400, "white space"},
			{"GET " + api + "/%00", "", 400, "control"},
			{"GET " + api + "/%FF", "", 400, "UTF-8"},
			{"POST " + api + "/nobody/embed-token", "", 404, "unknown"},
			{"POST " + api + "/org-1/embed-token", "{", 400, "JSON"},
			{"POST " + api + "/org-1/embed-token", `{"ttl_seconds":0}`, 400, "at least 1"},
			{"POST " + api + "/org-1/embed-token", `{"ttl_seconds":"1"}`, 400, "ttl_seconds"},
			{"POST " + api + "/org-1/embed-token", large, 413, "larger"},
			{"DELETE " + api + "/org-1", "null", 400, "not a JSON object"},
			{"DELETE " + api + "/%20x", "", 400, "white space"},
			{"POST " + api + "/org-1/suspend", large, 413, "larger"},
			{"POST " + api + "/org-1/resume", `{"reason":1}`, 400, "reason"},
			{"POST " + api + "/org-1/suspend", `{"reason":"` + strings.Repeat("x", 501) + `"}`, 400, "500"},
			{"GET /api/v1/usage?from_period=2025-13", "", 400, "YYYY-MM"},
			{"GET /api/v1/usage?to_period=2025-1", "", 400, "YYYY-MM"},
			{"GET /api/v1/usage?page=0", "", 400, "page"},
			{"GET /api/v1/usage?per_page=1001", "", 400, "per_page"},
			{"GET /api/v1/usage?page=x", "", 400, "page is a whole number"},
			{"GET /api/", "", 404, "openapi.json"},
			{"GET /api/v2/dashboards", "", 404, "openapi.json"},
			{"PUT " + api, "", 404, "openapi.json"},
			{"GET " + api + "/a/b", "", 404, "openapi.json"},
		} {
			method, path, _ := strings.Cut(c.request, " ")
			a := w.ask(method, path, root, c.body)
			if a.status != c.status {
				t.Errorf("%s %.20s: %d, want %d", c.request, c.body, a.status, c.status)
			}
			w.refused(a, c.status, c.detail)
		}
		if got := w.ask("GET", api+"/org-1", root, "").field("status"); got != "active" {
			t.Errorf("after all that the tenant is %q, want active", got)
		}
	})
}

func TestTenantIDsInPathsArePercentEncoded(t *testing.T) {
	virtual(t, secretOnly.JWT, func(t *testing.T, w *world) {
		for _, tenant := range []string{"a/b", "../x", "100%", "ünï", "a b", "a%2Fb", "a?b#c", "a+b", "a//b",
			"embed-token"} {
			own := hs256(t, jwt.MapClaims{"tenant_id": tenant})
			location := w.create(tenant).header.Get("Location")
			if got := w.ok(w.ask("GET", location, own, ""), 200).field("tenant_id"); got != tenant {
				t.Errorf("%s shows tenant %q, want %q", location, got, tenant)
			}
			if got := w.ok(w.ask("POST", location+"/embed-token", own, ""),
				200).field("tenant_id"); got != tenant {
				t.Errorf("%s: a token for %q, want %q", location, got, tenant)
			}
			w.refused(w.ask("GET", api+"/"+url.PathEscape(tenant+"x"), own, ""), 403, "Access denied")
			w.ok(w.ask("DELETE", location, admin(t), ""), 200)
			w.becomes(tenant, "deleted")
		}
	})
}

func TestCreateThatTakesLongIsAccepted(t *testing.T) {
	virtual(t, secretOnly.JWT, func(t *testing.T, w *world) {
		w.SetFaults("on=create delay=13s")
		a := w.ok(w.ask("POST", api, admin(t), `{"tenant_id":"a/b","name":"Slow"}`), 202)
		if a.field("status") != "creating" || a.field("dashboard_id") != "" ||
			a.header.Get("Location") != api+"/a%2Fb" {
			t.Errorf("accepted %s, Location %q", a.body, a.header.Get("Location"))
		}
		w.refused(w.ask("POST", a.header.Get("Location")+"/embed-token", admin(t), ""), 409, "creating")
		w.becomes("a/b", "active")
	})
}

func TestDashboardFromBeforeADeletionIsNotCreated(t *testing.T) {
	virtual(t, secretOnly.JWT, func(t *testing.T, w *world) {
		w.create("org-1")
		w.ok(w.ask("DELETE", api+"/org-1", admin(t), ""), 200)
		w.becomes("org-1", "deleted")
		w.SetFaults("status=401")
		gone := make(chan answer)
		go func() { gone <- w.ask("POST", api, admin(t), `{"tenant_id":"org-2","name":"x"}`) }()
		w.Eventually(workertest.That("the worker is paused", func() bool {
			return w.Workers[0].Worker.State().Consuming == "paused"
		}))
		other := *w
		other.seen = map[string]bool{}
		a := other.ok(other.ask("POST", api, admin(t), `{"tenant_id":"org-1","name":"x"}`), 202)
		if a.field("status") != "deleted" {
			t.Errorf("while its event waits: %s", a.body)
		}
		<-gone
	})
}

func TestCreateThatPapermapRefusesSaysSo(t *testing.T) {
	virtual(t, secretOnly.JWT, func(t *testing.T, w *world) {
		w.SetFaults(`on=create status=422 body="{}" content-type=application/json`)
		w.refused(w.ask("POST", api, admin(t), `{"tenant_id":"org-1","name":"x"}`), 422, "")
	})
}

func TestListPagesByCursor(t *testing.T) {
	virtual(t, secretOnly.JWT, func(t *testing.T, w *world) {
		var want []string
		for i := range 250 {
			want = append(want, fmt.Sprintf("org/%03d &ü", i))
			_, err := w.Workers[0].Worker.Publish(t.Context(), events.TypeTenantCreated,
				map[string]string{"tenant_id": want[i], "name": "x"})
			w.Must(err)
		}
		w.Eventually(func() error {
			var n int
			w.Must(w.SQL.Get(&n, "SELECT count(*) FROM tenant_dashboards WHERE status = 'active'"))
			if n != len(want) {
				return fmt.Errorf("%d dashboards, want %d", n, len(want))
			}
			return nil
		})
		for _, c := range []struct {
			limit string
			pages []int
		}{{"", []int{100, 100, 50}}, {"125", []int{125, 125, 0}}, {"1000", []int{250}}} {
			var got []string
			var pages []int
			for cursor, more := "", true; more; {
				q := url.Values{"status": {"active"}}
				if c.limit != "" {
					q.Set("limit", c.limit)
				}
				if cursor != "" {
					q.Set("cursor", cursor)
				}
				var page struct {
					Dashboards []worker.Dashboard
					Next       string `json:"next_cursor"`
				}
				w.Must(json.Unmarshal(w.ok(w.ask("GET", api+"?"+q.Encode(), admin(t), ""), 200).body, &page))
				for _, d := range page.Dashboards {
					got = append(got, d.TenantID)
				}
				pages = append(pages, len(page.Dashboards))
				cursor, more = page.Next, page.Next != "" && len(pages) < 10
			}
			if diff := cmp.Diff(c.pages, pages); diff != "" || !slices.Equal(got, want) {
				t.Errorf("limit %q: %d tenants\n%s", c.limit, len(got), diff)
			}
		}
	})
}

func TestCreateAdoptsADashboard(t *testing.T) {
	virtual(t, secretOnly.JWT, func(t *testing.T, w *world) {
		root := admin(t)
		w.Existing("org-1", "old-1")
		w.Existing("org-2", "old-2")
		a := w.ok(w.ask("POST", api, root, `{"tenant_id":"org-1","dashboard_id":"old-1"}`), 201)
		if a.field("dashboard_id") != "old-1" || a.field("status") != "active" {
			t.Errorf("created %s", a.body)
		}
		w.ok(w.ask("POST", api, root, `{"tenant_id":"org-1","dashboard_id":"old-1"}`), 201)
		for body, want := range map[string][2]string{ // the code, and what the message names
			`{"tenant_id":"org-1","dashboard_id":"old-2"}`:            {"DASHBOARD_CONFLICT", `"old-1"`},
			`{"tenant_id":"org-2","dashboard_id":"old-1"}`:            {"DASHBOARD_TAKEN", `"org-1"`},
			`{"tenant_id":"org-3","name":"x","dashboard_id":"old-1"}`: {"DASHBOARD_TAKEN", `"org-1"`},
		} {
			refused := w.ask("POST", api, root, body)
			if refused.status != 409 || refused.field("code") != want[0] ||
				!strings.Contains(refused.field("detail"), want[1]) {
				t.Errorf("%s: %d %s, want 409 %s", body, refused.status, refused.body, want)
			}
		}
		for _, body := range []string{`{"tenant_id":"org-4","dashboard_id":" x"}`, `{"dashboard_id":"x"}`,
			`{"tenant_id":"org-4"}`, `{"tenant_id":"org-4","dashboard_id":"x","workspace_id":"nowhere"}`} {
			if refused := w.ask("POST", api, root, body); refused.status != 400 {
				t.Errorf("%s: %d %s, want 400", body, refused.status, refused.body)
			}
		}
		w.Eventually(w.Handled)
		w.NoDeadLetters()
		if n := len(w.Requests("create")); n != 0 {
			t.Errorf("%d creates", n)
		}
	})
}
