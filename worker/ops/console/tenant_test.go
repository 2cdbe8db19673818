package console

import (
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"papermap-worker/events"
	"papermap-worker/repo"
)

func TestTenantPageShowsSuspensionAndHistory(t *testing.T) {
	virtual(t, Config{Dev: true}, inTrouble, func(t *testing.T, w *world) {
		w.trouble()
		got := text(w.act("/tenant/suspend", url.Values{"tenant": {"good"}, "reason": {"unpaid"}}).body)
		if !strings.Contains(got, "tenant.suspended is in force: the tenant is now suspended.") ||
			!strings.Contains(got, "suspended gets no tokens") {
			t.Errorf("%s", got)
		}
		w.becomes("good", repo.Suspended)
		got = text(w.act("/tenant/resume", url.Values{"tenant": {"good"}}).body)
		w.becomes("good", repo.Active)
		at := 0
		// the newest first
		for _, want := range []string{"tenant.resumed", "tenant.suspended unpaid",
			"Published dashboard.created", "Papermap made the dashboard",
			`tenant.created name "The good ones"`} {
			i := strings.Index(got[at:], want)
			if i < 0 {
				t.Fatalf("%q is not in its place:\n%s", want, got)
			}
			at += i
		}
		if got := text(w.get("/tenant?id=refused").body); !strings.Contains(got,
			"tenant.created became a dead letter number 1, API_REFUSED") ||
			!strings.Contains(got, "Papermap did not take the create") {
			t.Errorf("%s", got)
		}
		w.Publish(events.TypeTenantCreated, `{"tenant_id":"unread"}`)
		w.letters(3)
		if got := text(w.get("/tenant?id=unread").body); !strings.Contains(got, "not recorded") ||
			!strings.Contains(got, "could not be handled and is dead letter 3") ||
			strings.Contains(got, "Suspend") {
			t.Errorf("%s", got)
		}
		if r := w.ask("GET", "/tenant?id=nobody", nil); r.status != http.StatusNotFound {
			t.Errorf("an unknown tenant: %d", r.status)
		}
	})
}

func TestPreviewHasATokenThatPapermapAccepts(t *testing.T) {
	virtual(t, Config{Dev: true}, inTrouble, func(t *testing.T, w *world) {
		w.trouble()
		page := w.ask("POST", "/tenant/preview", url.Values{"tenant": {"good"}})
		frame := regexp.MustCompile(`<iframe src="([^"]+)"`).FindStringSubmatch(page.body)
		if page.status != http.StatusOK || frame == nil {
			t.Fatalf("%d %s", page.status, text(page.body))
		}
		address := strings.ReplaceAll(frame[1], "&amp;", "&")
		resp, err := w.client.Get(address)
		w.Must(err)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("Papermap answers %d", resp.StatusCode)
		}
		if origin := address[:strings.Index(address,
			"/embedded")]; !strings.Contains(page.header.Get("Content-Security-Policy"),
			"frame-src "+origin+";") {
			t.Errorf("policy %q does not let %s in", page.header.Get("Content-Security-Policy"), origin)
		}
		if strings.Contains(w.get("/tenant?id=good").body, "<iframe") {
			t.Error("a GET minted a token")
		}
		if r := w.ask("POST", "/tenant/preview",
			url.Values{"tenant": {"held"}}); r.status != http.StatusConflict {
			t.Errorf("of a held tenant: %d", r.status)
		}
	})
}

func TestTenantsAreFoundByAPartOfIdOrNameSortedAndPaged(t *testing.T) {
	virtual(t, Config{Dev: true}, nil, func(t *testing.T, w *world) {
		fillTenants(t, w, 120)
		rows := func(page string) (ids []string) {
			row := regexp.MustCompile(`<th scope="row"><a href="/tenant\?id=([^"]+)"`)
			for _, m := range row.FindAllStringSubmatch(page, -1) {
				ids = append(ids, m[1])
			}
			return ids
		}
		follow := func(page, rel string) string {
			m := regexp.MustCompile(`rel="` + rel + `" href="([^"]+)"`).FindStringSubmatch(page)
			if m == nil {
				return ""
			}
			return w.get(strings.ReplaceAll(m[1], "&amp;", "&")).body
		}
		first := w.get("/tenants").body
		second := follow(first, "next")
		third := follow(second, "next")
		if a, b, c := rows(first), rows(second), rows(third); len(a) != 50 || len(b) != 50 || len(c) != 20 ||
			a[0] != "t-0000000" || b[0] != "t-0000050" || c[19] != "t-0000119" {
			t.Errorf("pages of %d, %d, %d: %v %v %v", len(a), len(b), len(c), a, b, c)
		}
		if follow(third, "next") != "" || follow(first, "prev") != "" {
			t.Error("there is a page before the first or after the last")
		}
		if got := rows(follow(third, "prev")); !slices.Equal(got, rows(second)) {
			t.Errorf("back from the third: %v", got)
		}
		if got := rows(follow(follow(third, "prev"), "prev")); !slices.Equal(got, rows(first)) {
			t.Errorf("back to the first: %v", got)
		}
		for path, want := range map[string][]string{
			"/tenants?q=t-0000007": {"t-0000007"},
			"/tenants?q=PANY+7&status=": {"t-0000007", "t-0000070", "t-0000071", "t-0000072",
				"t-0000073", "t-0000074", "t-0000075", "t-0000076", "t-0000077", "t-0000078", "t-0000079"},
			"/tenants?q=pany+7&status=held": {"t-0000070"},
			"/tenants?status=held&q=000001": {"t-0000010"},
			"/tenants?q=11&sort=-id": {"t-0000119", "t-0000118", "t-0000117", "t-0000116", "t-0000115",
				"t-0000114", "t-0000113", "t-0000112", "t-0000111", "t-0000110", "t-0000011"},
			"/tenants?q=company+11&sort=name": {"t-0000011", "t-0000110", "t-0000111", "t-0000112",
				"t-0000113", "t-0000114", "t-0000115", "t-0000116", "t-0000117", "t-0000118", "t-0000119"},
			"/tenants?q=dashboard": nil,
			"/tenants?page=9":      nil,
			"/tenants?q=nothing":   nil,
		} {
			if got := rows(w.get(path).body); !slices.Equal(got, want) {
				t.Errorf("%s: %v, want %v", path, got, want)
			}
		}
		if got := text(second); !strings.Contains(got, "51–100 of 120 tenants, as of") {
			t.Errorf("it does not count them: %s", got)
		}
		if got := text(w.get("/tenants?q=company&status=held").body); !strings.Contains(got,
			"1–12 of 12 tenants with “company” in id or name that are held") {
			t.Errorf("it does not count what it found: %s", got)
		}
		if r := w.ask("GET", "/tenants?status=odd", nil); r.status != http.StatusBadRequest {
			t.Errorf("an odd status: %d", r.status)
		}
	})
}
