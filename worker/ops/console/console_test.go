package console

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"papermap-worker/events"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

var tags = regexp.MustCompile(`<[^>]*>`)

// text is what a person reads of a page, with single spaces.
func text(page string) string {
	page = strings.NewReplacer("&#39;", "'", "&#34;", `"`, "&amp;", "&", "&lt;", "<", "&gt;", ">").Replace(tags.ReplaceAllString(page, " "))
	return strings.Join(strings.Fields(page), " ")
}

func TestOverviewSaysWhichTenantsHaveNoDashboardAndWhy(t *testing.T) {
	w := start(t, Config{Dev: true}, inTrouble...)
	if got := text(w.get("/").body); !strings.Contains(got, "Nothing needs you") || !strings.Contains(got, "Every tenant that wants a dashboard has one") {
		t.Errorf("of an empty worker it says %s", got)
	}
	w.trouble()
	page := w.get("/").body
	got := text(page)
	for _, want := range []string{
		"1 held tenants", "1 failed tenants", "2 dead letters", "Tenants without a dashboard 2",
		"held The held ones held It is not known whether Papermap made it: ", "Look for the mark, then settle",
		"refused The refused ones failed papermap (refused): status 422: The workspace is full", "Working",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("it does not say %q:\n%s", want, got)
		}
	}
	for _, link := range []string{`href="/tenant?id=held"`, `href="/tenant?id=refused"`, `href="/attention"`, `href="/dead"`} {
		if !strings.Contains(page, link) {
			t.Errorf("no link %s", link)
		}
	}
	if strings.Index(page, "Needs attention") > strings.Index(page, ">Now<") {
		t.Error("what needs attention does not come first")
	}
}

func TestOverviewSaysThatCreatingIsPausedAndWhy(t *testing.T) {
	w := start(t, Config{Dev: true})
	w.sim.RevokeKey("ak_a")
	w.publish(events.TypeTenantCreated, `{"tenant_id":"a","name":"A"}`)
	w.eventually(func() error {
		got := text(w.get("/").body)
		for _, want := range []string{"Overview Paused workspace ws-a is paused: Papermap refuses the credentials", "a A pending The last try failed: papermap (credentials): status 401"} {
			if !strings.Contains(got, want) {
				return fmt.Errorf("it does not say %q:\n%s", want, got)
			}
		}
		return nil
	})
}

func TestPagesSayWhatTheyCanWhileNATSIsAway(t *testing.T) {
	w := start(t, Config{Dev: true}, inTrouble...)
	w.trouble()
	w.nats.Close()
	w.eventually(func() error {
		if got := text(w.get("/").body); !strings.Contains(got, "Overview Not working no connection to NATS") || !strings.Contains(got, "held The held ones held") {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
	if got := text(w.get("/tenant?id=held").body); !strings.Contains(got, "Not looked at: the stream's events and the dead letters: no connection to NATS") || !strings.Contains(got, "A create with an unknown outcome") {
		t.Errorf("%s", got)
	}
	if r := w.ask("GET", "/dead", nil); r.status != http.StatusServiceUnavailable || !strings.Contains(r.body, "The dead letters are in NATS: no connection") {
		t.Errorf("dead letters: %d %s", r.status, text(r.body))
	}
}

func TestHeldTenantIsSettledWithTheDashboardThatWasFound(t *testing.T) {
	w := start(t, Config{Dev: true}, inTrouble...)
	w.trouble()
	i := slices.IndexFunc(w.sim.Dashboards(), func(d simulator.Dashboard) bool { return d.TenantID == "held" })
	made := w.sim.Dashboards()[i]
	if page := w.get("/attention").body; !strings.Contains(page, made.Mark) {
		t.Errorf("the mark %s is not shown:\n%s", made.Mark, text(page))
	}
	for _, wrong := range []string{"", " ", strings.Repeat("x", 300), "a\x00b"} {
		if r := w.ask("POST", "/tenant/resolve", url.Values{"tenant": {"held"}, "dashboard": {wrong}}); r.status != http.StatusBadRequest {
			t.Errorf("%q: %d %s", wrong, r.status, text(r.body))
		}
	}
	if got := text(w.act("/tenant/resolve", url.Values{"tenant": {"held"}, "dashboard": {made.ID}}).body); !strings.Contains(got, "Settled: the tenant has its dashboard.") || !strings.Contains(got, "active has its dashboard") {
		t.Errorf("%s", got)
	}
	if m := w.becomes("held", repo.Active); m.DashboardID != made.ID {
		t.Errorf("dashboard %q, want %q", m.DashboardID, made.ID)
	}
	if r := w.ask("POST", "/tenant/resolve", url.Values{"tenant": {"held"}, "dashboard": {made.ID}}); r.status != http.StatusConflict {
		t.Errorf("a second time: %d %s", r.status, text(r.body))
	}
}

func TestHeldAndFailedTenantsAreCreatedAgain(t *testing.T) {
	w := start(t, Config{Dev: true}, inTrouble...)
	w.trouble()
	for _, id := range []string{"held", "refused"} {
		w.act("/tenant/recreate", url.Values{"tenant": {id}})
		w.becomes(id, repo.Active)
	}
	if r := w.ask("POST", "/tenant/recreate", url.Values{"tenant": {"good"}}); r.status != http.StatusConflict {
		t.Errorf("of an active tenant: %d", r.status)
	}
	page := w.get("/attention").body
	attempt := regexp.MustCompile(`name="attempt" value="([^"]+)"`).FindStringSubmatch(page)
	if attempt == nil {
		t.Fatalf("the create of the held tenant is no possible orphan:\n%s", text(page))
	}
	if got := text(w.act("/attempt/settle", url.Values{"attempt": {attempt[1]}}).body); !strings.Contains(got, "Possible orphans Creates") || !strings.Contains(got, "None.") {
		t.Errorf("%s", got)
	}
}

func TestTenantIsSuspendedAndResumedAndItsPageTellsTheStory(t *testing.T) {
	w := start(t, Config{Dev: true}, inTrouble...)
	w.trouble()
	if got := text(w.act("/tenant/suspend", url.Values{"tenant": {"good"}, "reason": {"unpaid"}}).body); !strings.Contains(got, "The tenant is suspended") || !strings.Contains(got, "suspended gets no tokens") {
		t.Errorf("%s", got)
	}
	w.becomes("good", repo.Suspended)
	got := text(w.act("/tenant/resume", url.Values{"tenant": {"good"}}).body)
	w.becomes("good", repo.Active)
	at := 0
	for _, want := range []string{"tenant.resumed", "tenant.suspended unpaid", "Told others: dashboard.created", "Papermap made the dashboard", `tenant.created name "The good ones"`} { // the newest first
		i := strings.Index(got[at:], want)
		if i < 0 {
			t.Fatalf("%q is not in its place:\n%s", want, got)
		}
		at += i
	}
	if got := text(w.get("/tenant?id=refused").body); !strings.Contains(got, "tenant.created became a dead letter number 1, API_REFUSED") || !strings.Contains(got, "Papermap did not take the create") {
		t.Errorf("%s", got)
	}
	w.publish(events.TypeTenantCreated, `{"tenant_id":"unread"}`)
	w.letters(3)
	if got := text(w.get("/tenant?id=unread").body); !strings.Contains(got, "not recorded") || !strings.Contains(got, "could not be handled and is dead letter 3") || strings.Contains(got, "Suspend") {
		t.Errorf("%s", got)
	}
	if r := w.ask("GET", "/tenant?id=nobody", nil); r.status != http.StatusNotFound {
		t.Errorf("an unknown tenant: %d", r.status)
	}
}

func TestPreviewHasATokenThatPapermapTakesAndThatLivesAMinute(t *testing.T) {
	w := start(t, Config{Dev: true}, inTrouble...)
	w.trouble()
	page := w.ask("POST", "/tenant/preview", url.Values{"tenant": {"good"}})
	frame := regexp.MustCompile(`<iframe src="([^"]+)"`).FindStringSubmatch(page.body)
	if page.status != http.StatusOK || frame == nil {
		t.Fatalf("%d %s", page.status, text(page.body))
	}
	address := strings.ReplaceAll(frame[1], "&amp;", "&")
	resp, err := w.client.Get(address)
	w.must(err)
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("Papermap answers %d", resp.StatusCode)
	}
	if origin := address[:strings.Index(address, "/embedded")]; !strings.Contains(page.header.Get("Content-Security-Policy"), "frame-src "+origin+";") {
		t.Errorf("policy %q does not let %s in", page.header.Get("Content-Security-Policy"), origin)
	}
	if strings.Contains(w.get("/tenant?id=good").body, "<iframe") {
		t.Error("a GET minted a token")
	}
	if r := w.ask("POST", "/tenant/preview", url.Values{"tenant": {"held"}}); r.status != http.StatusConflict {
		t.Errorf("of a held tenant: %d", r.status)
	}
}

func TestDeadLettersAreShownReplayedAndDiscarded(t *testing.T) {
	w := start(t, Config{Dev: true}, inTrouble...)
	w.trouble()
	list := w.letters(2)
	if got := text(w.get("/dead").body); !strings.Contains(got, "API_REFUSED") || !strings.Contains(got, "INVALID_JSON") {
		t.Errorf("%s", got)
	}
	if got := text(w.get("/dead?code=API_REFUSED").body); strings.Contains(got, "INVALID_JSON") {
		t.Errorf("the filter lets others through:\n%s", got)
	}
	if got := text(w.get(fmt.Sprintf("/dead/%d", list[0].Sequence)).body); !strings.Contains(got, `"name": "The refused ones"`) || !strings.Contains(got, "nothing was made at Papermap") {
		t.Errorf("%s", got)
	}
	if got := text(w.get(fmt.Sprintf("/dead/%d", list[1].Sequence)).body); !strings.Contains(got, `{"tenant_id":"broken"`) || !strings.Contains(got, "Let its publisher send a right one") {
		t.Errorf("%s", got)
	}
	w.act("/dead/replay", url.Values{"sequence": {fmt.Sprint(list[0].Sequence)}})
	w.becomes("refused", repo.Active)
	w.act("/dead/discard", url.Values{"sequence": {fmt.Sprint(list[1].Sequence)}})
	w.letters(0)
	for _, action := range []string{"replay", "discard"} {
		if r := w.ask("POST", "/dead/"+action, url.Values{"sequence": {fmt.Sprint(list[0].Sequence)}}); r.status != http.StatusNotFound {
			t.Errorf("%s of what is gone: %d", action, r.status)
		}
	}
}

func TestDeadLettersAreShownPageByPage(t *testing.T) {
	w := start(t, Config{Dev: true})
	for range perPage + 2 {
		w.publish(events.TypeTenantCreated, `{}`)
	}
	w.letters(perPage + 2)
	first := w.get("/dead").body
	next := regexp.MustCompile(`rel="next" href="([^"]+)"`).FindStringSubmatch(first)
	if n := strings.Count(first, `name="sequence"`); n != perPage || next == nil {
		t.Fatalf("%d on the first page, next %q", n, next)
	}
	if n := strings.Count(w.get(strings.ReplaceAll(next[1], "&amp;", "&")).body, `name="sequence"`); n != 2 {
		t.Errorf("%d on the second page, want 2", n)
	}
}

func TestTenantsAreFoundByIdElseByNameAndPaged(t *testing.T) {
	w := start(t, Config{Dev: true})
	fillTenants(t, w, 120)
	rows := func(page string) (ids []string) {
		for _, m := range regexp.MustCompile(`<th scope="row"><a href="/tenant\?id=([^"]+)"`).FindAllStringSubmatch(page, -1) {
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
	if a, b, c := rows(first), rows(second), rows(third); len(a) != 50 || len(b) != 50 || len(c) != 20 || a[0] != "t-0000000" || b[0] != "t-0000050" || c[19] != "t-0000119" {
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
		"/tenants?q=t-0000007":             {"t-0000007"},
		"/tenants?q=company+7&status=":     {"t-0000007", "t-0000070", "t-0000071", "t-0000072", "t-0000073", "t-0000074", "t-0000075", "t-0000076", "t-0000077", "t-0000078", "t-0000079"},
		"/tenants?q=company+7&status=held": {"t-0000070"},
		"/tenants?status=held&q=t-000001":  {"t-0000010"},
		"/tenants?q=nothing":               nil,
	} {
		if got := rows(w.get(path).body); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
	if r := w.ask("GET", "/tenants?status=odd", nil); r.status != http.StatusBadRequest {
		t.Errorf("an odd status: %d", r.status)
	}
}

func TestUsageIsSummedShownByRunAndDownloaded(t *testing.T) {
	w := start(t, Config{Dev: true})
	if got := text(w.get("/usage").body); !strings.Contains(got, "No usage was read yet.") {
		t.Errorf("%s", got)
	}
	month := time.Now().UTC().Format("2006-01")
	w.publish(events.TypeTenantCreated, `{"tenant_id":"a","name":"Acme"}`)
	w.becomes("a", repo.Active)
	rows := []simulator.UsageRow{{TenantID: "a", Period: month, Credits: "1234.5", Requests: 7}, {TenantID: "gone", Period: month, Credits: "1", Requests: 1}, {Period: month, Credits: "5", Requests: 1}}
	w.sim.SetUsage("ws-a", simulator.Usage{Rows: rows})
	sync := func(runs int) {
		t.Helper()
		w.act("/usage/sync", nil)
		w.eventually(func() error {
			list, err := w.db.Runs(t.Context(), "", 10)
			if err == nil && (len(list) != runs || list[0].Status != repo.RunDone) {
				err = fmt.Errorf("runs %+v", list)
			}
			return err
		})
	}
	sync(1)
	got := text(w.get("/usage").body)
	for _, want := range []string{"1,235.50 8 2", "a Acme 1,234.5 7", "gone unknown tenant 1 1"} {
		if !strings.Contains(got, want) {
			t.Errorf("it does not say %q:\n%s", want, got)
		}
	}
	rows[0].Credits = "1000"
	w.sim.SetUsage("ws-a", simulator.Usage{Rows: rows})
	sync(2)
	page := w.get("/usage").body
	if !strings.Contains(text(page), "1,001.00") {
		t.Errorf("the sums are old:\n%s", text(page))
	}
	run := regexp.MustCompile(`href="(/usage/run[^"]+)"`).FindStringSubmatch(page)
	if got := text(w.get(run[1]).body); !strings.Contains(got, "a "+monthName(month)+" 1,234.5 1,000 7 7") || !strings.Contains(got, "Rows that could not be used") {
		t.Errorf("%s", got)
	}
	if got := text(w.get("/tenant?id=a").body); !strings.Contains(got, "Usage of "+monthName(month)+" went down 1234.5 to 1000 credits") {
		t.Errorf("%s", got)
	}
	csv := w.get("/usage.csv?tenant=a")
	if !strings.HasPrefix(csv.header.Get("Content-Disposition"), "attachment") || !strings.Contains(csv.body, "a,ws-a,"+month+",1000,7,") || strings.Contains(csv.body, "gone") {
		t.Errorf("%v\n%s", csv.header, csv.body)
	}
}

func TestPagesAreWholeWithoutScriptsAndHaveNothingInline(t *testing.T) {
	w := start(t, Config{Dev: true}, inTrouble...)
	w.trouble()
	for _, path := range []string{"/", "/tenants", "/tenant?id=good", "/tenant?id=held", "/attention", "/dead", "/dead/1", "/usage", "/tenant?id=none"} {
		r := w.ask("GET", path, nil)
		for _, forbidden := range []string{`<script>`, `<style`, ` style="`, ` onclick`, ` onload`, ` hx-on`, `javascript:`, `http://`, `https://`} {
			if strings.Contains(r.body, forbidden) {
				t.Errorf("%s has %s in it", path, forbidden)
			}
		}
		if !strings.Contains(r.body, `<html lang="en"`) || strings.Count(r.body, "<h1>") != 1 || !strings.Contains(r.body, `class="skip" href="#main"`) {
			t.Errorf("%s has not one heading, a language and a way to skip:\n%s", path, r.body)
		}
	}
}

func TestScriptsAndStylesAreSmall(t *testing.T) {
	var out bytes.Buffer
	z, _ := gzip.NewWriterLevel(&out, gzip.BestCompression)
	names, err := fs.Glob(files, "assets/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, ".js") || strings.HasSuffix(name, ".css") {
			data, err := files.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = z.Write(data)
		}
	}
	_ = z.Close()
	t.Logf("%d bytes compressed", out.Len())
	if out.Len() > 120_000 {
		t.Errorf("%d bytes compressed, more than 120,000", out.Len())
	}
	for library, file := range map[string]string{"htmx": "htmx.LICENSE", "uPlot": "uPlot.LICENSE"} {
		if data, err := files.ReadFile("assets/" + file); err != nil || len(data) < 200 {
			t.Errorf("%s has no licence: %v", library, err)
		}
	}
}

func TestThemeIsKeptWithoutAScriptAndLeadsNowhereElse(t *testing.T) {
	w := start(t, Config{Dev: true})
	r := w.ask("POST", "/theme", url.Values{"theme": {"dark"}, "back": {"/tenants?q=a"}})
	if r.status != http.StatusSeeOther || r.header.Get("Location") != "/tenants?q=a" {
		t.Errorf("%d %s", r.status, r.header.Get("Location"))
	}
	chosen := cookie(r, themeCookie)
	if got := w.ask("GET", "/", nil, func(r *http.Request) { r.AddCookie(chosen) }); !strings.Contains(got.body, `data-theme="dark"`) {
		t.Error("the page is not dark")
	}
	for _, back := range []string{"//evil.example/", `/\evil.example`, "https://evil.example", "javascript:alert(1)", "", "evil"} {
		if got := w.ask("POST", "/theme", url.Values{"theme": {"light"}, "back": {back}}).header.Get("Location"); got != "/" {
			t.Errorf("back to %q leads to %q", back, got)
		}
	}
}

func TestFormatting(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for got, want := range map[string]string{
		count(0): "0", count(999): "999", count(1000): "1,000", count(-1234567): "-1,234,567", decimal(1234.5): "1,234.50", credits("1234.5678"): "1,234.5678", credits("12"): "12",
		ago(now.Add(-3*time.Second), now): "just now", ago(now.Add(-90*time.Second), now): "1 min ago", ago(now.Add(-50*time.Hour), now): "2 days ago", ago(now.Add(time.Hour), now): "in 1 h",
		perSecond(0): "0", perSecond(1.25): "1.2", perSecond(1234): "1,234", string(query("q", "a&b=<c>", "x", "")): "?q=a%26b%3D%3Cc%3E",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestRateIsOfTheLastSecondsAndItsLineOfAll(t *testing.T) {
	var samples []worker.Counts
	for _, n := range []float64{0, 20, 20, 20, 20, 20, 30} {
		samples = append(samples, worker.Counts{Events: n})
	}
	p := rateOf("events", samples, func(c worker.Counts) float64 { return c.Events })
	if p.Now != 1 || p.Most != 10 || !strings.HasPrefix(p.Line, "170,2.0 172,38.0 ") || !strings.HasSuffix(p.Line, "180,20.0") {
		t.Errorf("%+v", p)
	}
	if p := rateOf("events", samples[:1], func(c worker.Counts) float64 { return c.Events }); p.Now != 0 || p.Line != "" {
		t.Errorf("of one sample: %+v", p)
	}
}
