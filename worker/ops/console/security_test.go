package console

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"papermap-worker/events"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
)

// paths are all ways in but for those that are open, as they stand in routes.
func paths(of access) (list [][2]string) {
	for _, r := range routes {
		if r.access == of {
			method, path, found := strings.Cut(r.pattern, " ")
			if !found {
				method, path = "GET", "/nowhere"
			}
			path = strings.NewReplacer("{$}", "", "{sequence}", "1").Replace(path)
			list = append(list, [2]string{method, path})
		}
	}
	return list
}

// everything are fields that any action would act on.
var everything = url.Values{"tenant": {"good"}, "dashboard": {"d-1"}, "sequence": {"1"}, "attempt": {"x"},
	"reason": {"r"}}

// unchanged checks that no action was done.
func (w *world) unchanged() {
	w.t.Helper()
	if m := w.becomes("good", repo.Active); m.SuspendedEvent != 0 {
		w.t.Error("the tenant was suspended")
	}
	w.letters(2)
	if strings.Contains(w.Logs.String(), `"console action"`) {
		w.t.Error("the log tells of an action")
	}
}

func TestPagesAndActionsNeedALogin(t *testing.T) {
	// Dev opens nothing where there is a token.
	virtual(t, Config{Token: token, Dev: true}, inTrouble, func(t *testing.T, w *world) {
		w.trouble()
		for _, p := range append(paths(read), paths(act)...) {
			for name, with := range map[string]func(*http.Request){
				"no cookie": func(*http.Request) {},
				"a made-up one": func(r *http.Request) {
					r.AddCookie(&http.Cookie{Name: sessionCookie, Value: strings.Repeat("A", 43)})
				},
				"the token as cookie": header("Cookie", sessionCookie+"="+token),
				"an empty one":        header("Cookie", sessionCookie+"="),
			} {
				r := w.ask(p[0], p[1], everything, with)
				if r.status != http.StatusSeeOther ||
					!strings.HasPrefix(r.header.Get("Location"), "/login") ||
					strings.Contains(r.body, "good") {
					t.Errorf("%s %s with %s: %d %q", p[0], p[1], name, r.status, r.header.Get("Location"))
				}
			}
		}
		if r := w.ask("GET", "/tenants", nil,
			header("HX-Request", "true")); r.header.Get("HX-Redirect") != "/login?back=%2Ftenants" ||
			r.body != "" {
			t.Errorf("to htmx: %v %q", r.header, r.body)
		}
		w.unchanged()
	})
}

func TestCrossSiteRequestsAreRefused(t *testing.T) {
	for name, c := range map[string]Config{"with a token": {Token: token}, "for development": {Dev: true}} {
		t.Run(name, func(t *testing.T) {
			virtual(t, c, inTrouble, func(t *testing.T, w *world) {
				w.trouble()
				if c.Token != "" {
					w.login()
				}
				for _, p := range append(paths(act), [2]string{"POST", "/logout"},
					[2]string{"POST", "/theme"}, [2]string{"POST", "/login"}) {
					for _, h := range [][2]string{
						{"Origin", "https://evil.example"}, {"Origin", "null"},
						{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"},
					} {
						if r := w.ask(p[0], p[1], everything,
							header(h[0], h[1])); r.status != http.StatusForbidden {
							t.Errorf("%s %s with %v: %d", p[0], p[1], h, r.status)
						}
					}
				}
				w.unchanged()
				w.get("/") // nor were we logged out
			})
		})
	}
}

func TestWithoutATokenOnlyLocalRequestsAreServed(t *testing.T) {
	virtual(t, Config{Dev: true}, inTrouble, func(t *testing.T, w *world) {
		w.trouble()
		port := w.base[strings.LastIndex(w.base, ":"):]
		all := slices.Concat(paths(open), paths(read), paths(act))
		for name, with := range map[string]func(*http.Request){
			"a foreign name that points here": host("evil.example" + port),
			"a name that looks like ours":     host("localhost.evil.example"),
			"the machine's address":           host("192.168.1.7" + port),
			"all addresses":                   host("0.0.0.0" + port),
			"Forwarded":                       header("Forwarded", "for=127.0.0.1"),
			"X-Forwarded-For":                 header("X-Forwarded-For", "127.0.0.1"),
			"X-Forwarded-Host":                header("X-Forwarded-Host", "localhost"),
			"Via":                             header("Via", "1.1 proxy"),
		} {
			for _, p := range all {
				if r := w.ask(p[0], p[1], everything, with); r.status != http.StatusForbidden ||
					strings.Contains(r.body, "<html") {
					t.Errorf("%s %s with %s: %d", p[0], p[1], name, r.status)
				}
			}
		}
		w.unchanged()
		for _, name := range []string{"localhost", "localhost" + port, "127.0.0.1", "[::1]" + port, "[::1]"} {
			if r := w.ask("GET", "/", nil, host(name)); r.status != http.StatusOK {
				t.Errorf("host %s: %d", name, r.status)
			}
		}
		far, _ := http.NewRequest("GET", "/", nil)
		far.Host, far.RemoteAddr = "localhost", "10.0.0.7:4711"
		if local(far) == "" {
			t.Error("a request from another computer counts as local")
		}
	})
}

func TestViewersSeeEverythingAndChangeNothing(t *testing.T) {
	file := usersFile(t, "vera:viewer:"+hashed("view-everything"), "olga:operator:"+hashed("operate-it-all"))
	virtual(t, Config{UsersFile: file}, inTrouble, func(t *testing.T, w *world) {
		w.trouble()
		w.loginAs("vera", "view-everything")
		for _, p := range paths(act) {
			if r := w.ask(p[0], p[1], everything); r.status != http.StatusForbidden ||
				!strings.Contains(r.body, "read-only") {
				t.Errorf("%s %s: %d", p[0], p[1], r.status)
			}
		}
		for _, path := range []string{"/", "/tenant?id=good", "/tenant?id=held", "/attention", "/dead",
			"/dead/1", "/usage"} {
			page := w.get(path).body
			for _, p := range paths(act) {
				if strings.Contains(page, `action="`+p[1]+`"`) && p[1] != "/dead/replay" ||
					strings.Contains(page, "<button class=\"primary\">Replay") {
					t.Errorf("%s offers %s", path, p[1])
				}
			}
		}
		w.unchanged()
		w.loginAs("olga", "operate-it-all")
		w.act("/tenant/suspend", url.Values{"tenant": {"good"}, "reason": {"unpaid"}})
		if !strings.Contains(w.Logs.String(), `"actor":"console:olga"`) {
			t.Error("the log does not name who acted")
		}
	})
}

func TestCrossSiteReadsAreRefusedExceptNavigation(t *testing.T) {
	virtual(t, Config{Dev: true}, nil, func(t *testing.T, w *world) {
		fetch := func(site, mode, dest string) func(*http.Request) {
			return func(r *http.Request) {
				r.Header.Set("Sec-Fetch-Site", site)
				r.Header.Set("Sec-Fetch-Mode", mode)
				r.Header.Set("Sec-Fetch-Dest", dest)
			}
		}
		for _, p := range slices.Concat(paths(open), paths(read)) {
			if p[0] != "GET" {
				continue
			}
			for _, site := range []string{"cross-site", "same-site"} {
				for _, how := range [][2]string{{"no-cors", "image"}, {"no-cors", "script"},
					{"cors", "empty"}, {"navigate", "iframe"}, {"no-cors", "document"}} {
					if r := w.ask("GET", p[1], nil, fetch(site, how[0], how[1])); r.status != 403 {
						t.Errorf("%s, %s, %v: %d", p[1], site, how, r.status)
					}
				}
			}
		}
		for _, ok := range []func(*http.Request){
			fetch("cross-site", "navigate", "document"), fetch("none", "navigate", "document"),
			fetch("same-origin", "cors", "empty"), func(*http.Request) {},
		} {
			if r := w.ask("GET", "/tenants", nil, ok); r.status != 200 {
				t.Errorf("a visit: %d", r.status)
			}
		}
	})
}

func TestForeignTextIsEscaped(t *testing.T) {
	const script, address = `<script>alert(1)</script>`, `javascript:alert(1)`
	virtual(t, Config{Dev: true}, nil, func(t *testing.T, w *world) {
		w.Simulator.SetFaults(simulator.Fault{
			On: "create", Tenant: "odd'\"<b>", Status: 422,
			Body: `{"success":false,"message":"<img src=x onerror=alert(1)>","status_code":422}`,
		})
		w.Publish(events.TypeTenantCreated, `{"tenant_id":"`+script+`","name":"`+script+`"}`)
		w.Publish(events.TypeTenantCreated, `{"tenant_id":"`+address+`","title":"`+address+`","name":"n"}`)
		w.Publish(events.TypeTenantCreated, `{"tenant_id":"odd'\"<b>","name":"\" onmouseover=\"alert(1)"}`)
		w.Publish(events.TypeTenantCreated, `{"tenant_id":"</pre>`+script+`"`)
		w.becomes(script, repo.Active)
		w.becomes(address, repo.Active)
		w.becomes(`odd'"<b>`, repo.Failed)
		for _, d := range w.letters(2) {
			w.get(fmt.Sprintf("/dead/%d", d.Sequence))
		}
		list := []string{"/", "/tenants", "/tenants?q=" + url.QueryEscape(script), "/attention", "/dead",
			"/dead/1", "/dead/2", "/dead?code=" + url.QueryEscape(script), "/usage"}
		for _, id := range []string{script, address, `odd'"<b>`, "<script>alert(2)</script>"} {
			list = append(list, "/tenant?id="+url.QueryEscape(id))
		}
		for _, path := range list {
			body := w.ask("GET", path, nil).body
			for _, forbidden := range []string{"<script>", `href="javascript:`, `src="javascript:`,
				"<img src=x", `" onmouseover="`, "odd'\"<b>"} {
				if strings.Contains(body, forbidden) {
					t.Errorf("%s has %s in it", path, forbidden)
				}
			}
		}
		if page := w.get("/tenant?id=" + url.QueryEscape(address)).body; !strings.Contains(text(page),
			address) {
			t.Error("the title is not shown as text")
		}
	})
}

func TestResponsesHaveSecurityHeaders(t *testing.T) {
	virtual(t, Config{Token: token}, nil, func(t *testing.T, w *world) {
		check := func(name string, r reply) {
			t.Helper()
			policy := r.header.Get("Content-Security-Policy")
			for _, want := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'",
				"frame-ancestors 'none'", "form-action 'self'", "base-uri 'none'"} {
				if !slices.Contains(strings.Split(policy, "; "), want) {
					t.Errorf("%s: policy %q has no %s", name, policy, want)
				}
			}
			if strings.Contains(policy, "unsafe") || r.header.Get("X-Content-Type-Options") != "nosniff" ||
				r.header.Get("Referrer-Policy") != "no-referrer" ||
				!strings.Contains(r.header.Get("Cache-Control")+name, "no-store") &&
					!strings.Contains(name, "/assets/") {
				t.Errorf("%s: %v", name, r.header)
			}
		}
		for _, path := range []string{"/", "/login", "/nothing", "/assets/htmx.min.js", "/assets/console.css",
			"/assets/none", "/assets/..%2fpages%2flogin.html"} {
			check(path, w.ask("GET", path, nil))
		}
		w.login()
		for _, path := range []string{"/", "/tenants", "/usage", "/tenant?id=none", "/usage.csv"} {
			check(path, w.ask("GET", path, nil))
		}
		check("a refusal", w.ask("POST", "/tenant/suspend", everything,
			header("Origin", "https://evil.example")))
	})
}

func TestActionsAreLogged(t *testing.T) {
	virtual(t, Config{Token: token}, inTrouble, func(t *testing.T, w *world) {
		w.trouble()
		w.login()
		w.act("/tenant/suspend", url.Values{"tenant": {"good"}, "reason": {"unpaid since May"}})
		w.act("/tenant/resume", url.Values{"tenant": {"good"}})
		w.act("/tenant/recreate", url.Values{"tenant": {"held"}})
		w.becomes("held", repo.Active)
		w.ask("POST", "/tenant/resolve", url.Values{"tenant": {"held"}, "dashboard": {"d-1"}}) // fails
		w.ask("POST", "/tenant/preview", url.Values{"tenant": {"good"}})
		w.act("/dead/discard", url.Values{"sequence": {"2"}})
		w.act("/dead/replay", url.Values{"sequence": {"1"}})
		w.act("/usage/sync", nil)
		var lines []string
		for line := range strings.Lines(w.Logs.String()) {
			if strings.Contains(line, "console action") {
				lines = append(lines, line)
			}
		}
		if len(lines) != 8 {
			t.Errorf("%d lines, want 8:\n%s", len(lines), strings.Join(lines, ""))
		}
		all := strings.Join(lines, "")
		for _, want := range []string{
			`"action":"tenant.suspended"`, `"tenant_id":"good","reason":"unpaid since May"`,
			`"action":"tenant.resumed"`, `"action":"recreate"`, `"action":"resolve"`,
			`"action":"preview"`,
			`"action":"discard"`, `"sequence":2`, `"action":"replay"`, `"action":"sync usage"`,
			`a console action failed`,
		} {
			if !strings.Contains(all, want) {
				t.Errorf("no %s in\n%s", want, all)
			}
		}
		mine, _ := w.console.sessions.find(&http.Request{Header: http.Header{"Cookie": {w.session.String()}}},
			time.Now())
		who := fmt.Sprintf(`"who":"session %s","actor":"console"`, mine.print)
		for _, line := range lines {
			if !strings.Contains(line, who) || !strings.Contains(line, `"remote":"127.0.0.1:`) {
				t.Errorf("no %s in %s", who, line)
			}
		}
	})
}

// host sets the host of a request that is asked.
func host(name string) func(*http.Request) {
	return func(r *http.Request) { r.Host = name }
}

func TestInvisibleCharactersAreShownEscaped(t *testing.T) {
	const id = "org\u200b-1\u202e"
	virtual(t, Config{Dev: true}, nil, func(t *testing.T, w *world) {
		w.Publish(events.TypeTenantCreated, fmt.Sprintf(`{"tenant_id":%q,"name":"A\u00a0B"}`, id))
		w.Publish(events.TypeTenantCreated, `{"tenant_id":"org\u200b-2"`)
		w.becomes(id, repo.Active)
		w.letters(1)
		for _, path := range []string{"/tenants", "/tenant?id=" + url.QueryEscape(id), "/dead", "/dead/1"} {
			page := w.get(path).body
			for _, hidden := range []string{"\u200b", "\u202e", "\u00a0"} {
				if strings.Contains(tags.ReplaceAllString(page, ""), hidden) {
					t.Errorf("%s shows %q as it is", path, hidden)
				}
			}
			if path != "/dead" && !strings.Contains(text(page), `org\u200b-`) {
				t.Errorf("%s does not show the id escaped", path)
			}
		}
		w.act("/tenant/suspend", url.Values{"tenant": {id}})
		w.becomes(id, repo.Suspended)
		page := w.get("/tenant?id=" + url.QueryEscape(id)).body
		if !strings.Contains(page, `name="tenant" value="`+id+`"`) {
			t.Error("the form does not name the tenant itself")
		}
	})
	if got := visiblePage("<p title=\"\u200b\">a\u200b\n\t–“☀◐☾€</p>"); got !=
		"<p title=\"\u200b\">a\\u200b\n\t–“☀◐☾€</p>" {
		t.Error(got)
	}
}

// FuzzActions sends forms to every action: none is answered with an error of the
// program, and none writes what it was sent into a page as markup.
func FuzzActions(f *testing.F) {
	for _, form := range []string{
		"", "%", "tenant=%00&tenant=b", "sequence=18446744073709551616", "sequence=-1&sequence=1",
		"tenant=%FF", "all=1&last=9&code=%22%3E%3Cxss%3E&type=x", "tenant=a;b=c", "reason=%E2%80%AE&tenant=none",
		"attempt=%2F..", "dashboard=%3Cxss%3E&tenant=%3Cxss%3E", "\x00\xff=\r\n&tenant==&&",
	} {
		f.Add(form)
	}
	w := start(f, Config{Token: token})
	w.login()
	f.Fuzz(func(t *testing.T, form string) {
		for _, p := range paths(act) {
			req, err := http.NewRequestWithContext(t.Context(), p[0], w.base+p[1], strings.NewReader(form))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			req.AddCookie(w.session)
			resp, err := w.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			page, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode >= http.StatusInternalServerError ||
				strings.Contains(string(page), "<xss") ||
				strings.HasPrefix(resp.Header.Get("Location"), "/login") {
				t.Fatalf("%s with %q: %d, %v\n%s", p[1], form, resp.StatusCode, err, text(string(page)))
			}
		}
	})
}
