package embed

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/domdebugger"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/google/go-cmp/cmp"
)

const onReturn = `<papermap-dashboard src="/token" refresh="on-return"></papermap-dashboard>`

func TestElementKeepsTheTokenValid(t *testing.T) {
	v := open(t)
	fiveSeconds := []string{}
	for ms := 0; ms <= 60_000; ms += 3500 {
		fiveSeconds = append(fiveSeconds, "POST "+strconv.Itoa(ms/1000))
	}
	for _, c := range []struct {
		name, script string
		life         int
		body         string
		requests     []string
		gap          float64
	}{
		{"three hours", `await clock.advance(10800)`, 3600, dashboard,
			[]string{"POST 0", "POST 2879", "POST 5758", "POST 8637"}, 0},
		{"clock 10 minutes ahead", `clock.wall += 600e3; element.remove(); document.body.append(element);
			await clock.advance(10800)`, 3600, dashboard,
			[]string{"POST 0", "POST 0", "POST 2879", "POST 5758", "POST 8637"}, 0},
		{"clock 10 minutes behind", `clock.wall -= 600e3; element.remove(); document.body.append(element);
			await clock.advance(10800)`, 3600, dashboard,
			[]string{"POST 0", "POST 0", "POST 2879", "POST 5758", "POST 8637"}, 0},
		{"clock set ahead", `await clock.advance(60); clock.wall += 600e3; await clock.advance(10740)`, 3600,
			dashboard, []string{"POST 0", "POST 2279", "POST 5158", "POST 8037"}, 0},
		{"clock set back", `await clock.advance(60); clock.wall -= 600e3; await clock.advance(10740)`, 3600,
			dashboard, []string{"POST 0", "POST 2879", "POST 5758", "POST 8637"}, 0},
		{"clock set back before a sleep", `clock.wall -= 7200e3; await clock.advance(60); clock.sleep(3700);
			clock.show(true); await clock.advance(60)`, 3600, dashboard, []string{"POST 0", "POST 3760"}, 0},
		{"sleep, visibilitychange", `await clock.advance(60); clock.sleep(7200); clock.show(true);
			await clock.advance(60)`, 3600, dashboard, []string{"POST 0", "POST 7260"}, 0},
		{"sleep, pageshow", `await clock.advance(60); clock.sleep(7200); dispatchEvent(new Event("pageshow"));
			await clock.advance(60)`, 3600, dashboard, []string{"POST 0", "POST 7260"}, 0},
		{"sleep, online", `await clock.advance(60); clock.sleep(7200); dispatchEvent(new Event("online"));
			await clock.advance(60)`, 3600, dashboard, []string{"POST 0", "POST 7260"}, 0},
		{"sleep without an event",
			`await clock.advance(60); clock.sleep(7200); await clock.advance(60)`, 3600,
			dashboard, []string{"POST 0", "POST 7261"}, 1},
		{"hidden", `clock.show(false); await clock.advance(7200); clock.show(true); await clock.advance(60)`,
			3600, dashboard, []string{"POST 0", "POST 7200"}, 0},
		{"lives of 5 s", `await clock.advance(60)`, 5, dashboard, fiveSeconds, 0},
		{"a life of 30 years", `await clock.advance(3600)`, 1e9, dashboard, []string{"POST 0"}, 0},
		{"GET", `await clock.advance(60)`, 3600, `<papermap-dashboard src="/token" method="get">`,
			[]string{"GET 0"}, 0},
		{"equal elements", `await clock.advance(3600)`, 3600,
			dashboard + dashboard + `<papermap-dashboard src="./token" method="post">`,
			[]string{"POST 0", "POST 2879"}, 0},
		{"elements that differ", `await clock.advance(60)`, 3600, dashboard +
			`<papermap-dashboard src="/token?b"></papermap-dashboard>` +
			`<papermap-dashboard src="/token" credentials="include">`,
			[]string{"POST 0", "POST 0", "POST 0"}, 0},
		{"an element that comes later", `await clock.advance(60); document.body.append(element.cloneNode())`,
			3600, dashboard, []string{"POST 0"}, 0},
		{"on-return, the person stays", `await clock.advance(7200)`, 3600, onReturn,
			[]string{"POST 0", "POST 3569", "POST 7138"}, 0},
		{"on-return, early", `clock.show(false); await clock.advance(900); clock.show(true);
			await clock.advance(60)`, 3600, onReturn, []string{"POST 0"}, 0},
		{"on-return, late", `clock.show(false); await clock.advance(2000); clock.show(true);
			await clock.advance(60)`, 3600, onReturn, []string{"POST 0", "POST 2000"}, 0},
		{"refresh()",
			`await clock.advance(60); element.refresh(); element.refresh(); await clock.advance(2900)`,
			3600, dashboard, []string{"POST 0", "POST 60", "POST 2939"}, 0},
		{"refresh() while hidden", `clock.show(false); element.refresh(); await clock.advance(60);
			clock.show(true)`, 3600, dashboard, []string{"POST 0", "POST 60"}, 0},
		{"moved without moveBefore", `await clock.advance(60); document.body.prepend(element)`,
			3600, dashboard, []string{"POST 0", "POST 60"}, 0},
		{"another title", `element.title = "Stock"; await clock.advance(60)`, 3600, dashboard,
			[]string{"POST 0"}, 0},
		{"lazy, far away", `await clock.advance(60)`, 3600,
			`<div class="tall"></div><papermap-dashboard src="/token" loading="lazy">`, []string{}, 60},
	} {
		t.Run(c.name, func(t *testing.T) {
			v.load(t, c.life, c.body, nil)
			r := v.run(c.script)
			if diff := cmp.Diff(c.requests, v.asked()); diff != "" || r.Gap > c.gap {
				t.Errorf("%v s without a valid token; requests (-want +got):\n%s%q", r.Gap, diff, r.Events)
			}
		})
	}
	for _, complaint := range v.Complaints() {
		t.Error(complaint)
	}
}

func TestElementAsksForNothingWhileOffline(t *testing.T) {
	v := open(t)
	offline := func(yes bool) {
		t.Helper()
		v.Do(network.Enable(), network.EmulateNetworkConditions(yes, 0, -1, -1))
		v.Await(fmt.Sprintf(`(async () => { while (navigator.onLine !== %t) await null })()`, !yes), nil)
	}
	v.load(t, 3600, dashboard, nil)
	v.run(`await clock.advance(2800)`)
	offline(true)
	v.run(`await clock.advance(300)`)
	offline(false)
	r := v.run(`await clock.advance(60)`)
	if got := v.asked(); !slices.Equal(got, []string{"POST 0", "POST 3100"}) || r.Gap > 0 ||
		!slices.Equal(r.Events, []string{"0 ready", "3100 refreshed"}) || v.made() != 2 {
		t.Errorf("offline for 5 minutes: requests %q, %v s without a valid token", got, r.Gap)
	}
	offline(true)
	r = v.run(`await clock.advance(7200); element.refresh()`)
	if r.Frames != 0 || !strings.Contains(r.Text, "You are offline") || v.made() != 2 {
		t.Errorf("offline for 2 hours: %+v", r)
	}
	offline(false)
	r = v.run(``)
	if r.Frames != 1 || r.Text != "" || len(v.asked()) != 3 {
		t.Errorf("online again: %+v", r)
	}
}

// made counts the requests that the page made, whether or not they reached the backend.
func (v *visit) made() (n int) {
	v.t.Helper()
	v.Do(chromedp.Evaluate(`clock.requests`, &n))
	return n
}

func TestElementEndsWithARefusal(t *testing.T) {
	v := open(t)
	for _, c := range []struct {
		status     int
		body, text string
		event      string
	}{
		{400, `{"code":"INVALID_REQUEST"}`, "The dashboard cannot be loaded.", "400 INVALID_REQUEST"},
		{401, `Log in`, "Your session has ended. Log in again.", "401 null"},
		{403, `{"code":"TENANT_SUSPENDED","retry_after":3}`, "You do not have access to this dashboard.",
			"403 TENANT_SUSPENDED"},
		{404, `{"code":7}`, "There is no such dashboard.", "404 null"},
		{410, `{"code":"TENANT_DELETED"}`, "This dashboard was deleted.", "410 TENANT_DELETED"},
		{422, `{}`, "The dashboard cannot be loaded.", "422 null"},
		{204, ``, "The dashboard cannot be loaded.", "204 null"},
		{200, `<!doctype html>`, "The dashboard cannot be loaded.", "200 null"},
		{200, `null`, "The dashboard cannot be loaded.", "200 null"},
		{200, `[]`, "The dashboard cannot be loaded.", "200 null"},
		{200, `{"embed_url":"https://papermap.invalid"}`, "The dashboard cannot be loaded.", "200 null"},
		{200, `{"expires_in":60}`, "The dashboard cannot be loaded.", "200 null"},
		{200, `{"expires_in":60,"embed_url":7}`, "The dashboard cannot be loaded.", "200 null"},
		{200, `{"expires_in":60,"embed_url":"/x"}`, "The dashboard cannot be loaded.", "200 null"},
		{200, `{"expires_in":60,"embed_url":"javascript:alert(1)"}`, "The dashboard cannot be loaded.",
			"200 null"},
		{200, `{"expires_in":"60","embed_url":"https://papermap.invalid"}`, "The dashboard cannot be loaded.",
			"200 null"},
		{200, `{"expires_in":60,"expires_at":"soon","embed_url":"https://papermap.invalid"}`,
			"The dashboard cannot be loaded.", "200 null"},
		{200, `{"expires_at":1799999999,"embed_url":"https://papermap.invalid"}`,
			"The dashboard cannot be loaded.", "200 null"},
	} {
		t.Run(fmt.Sprint(c.status, " ", c.body), func(t *testing.T) {
			v.load(t, 60, dashboard, func(n, _ int) answer {
				if n == 2 {
					return answer{status: c.status, body: c.body}
				}
				return answer{}
			})
			retryAfter := "null"
			if strings.Contains(c.body, "retry_after") {
				retryAfter = "3"
			}
			events := []string{"0 ready", fmt.Sprintf("47 error %s %s ended", c.event, retryAfter)}
			r := v.run(`await clock.advance(46); clock.granting = false; await clock.advance(600)`)
			want := result{Events: events, Text: c.text + " Try again"}
			if diff := cmp.Diff(want, r); diff != "" || len(v.asked()) != 2 {
				t.Errorf("requests %q; page (-want +got):\n%s", v.asked(), diff)
			}
			r = v.run(`element.shadowRoot.querySelector("button").click()`)
			want = result{Events: append(events, "646 ready"), Frames: 1, Timers: 1}
			if diff := cmp.Diff(want, r); diff != "" {
				t.Errorf("after refresh (-want +got):\n%s", diff)
			}
		})
	}
}

func TestElementTriesAgain(t *testing.T) {
	v := open(t)
	for _, c := range []struct {
		name     string
		answer   answer
		text     string    // before the first success
		from, to []float64 // the times of the requests after the first
		event    string
	}{
		{"409 with retry_after", answer{status: 409, body: `{"code":"DASHBOARD_NOT_READY","retry_after":2}`},
			"Loading the dashboard…", []float64{2, 4, 6}, []float64{2.2, 4.4, 6.6},
			"error 409 DASHBOARD_NOT_READY 2 retrying"},
		{"429 with retry_after", answer{status: 429, body: `{"code":"RATE_LIMITED","retry_after":7}`}, "",
			[]float64{7, 14, 21}, []float64{7.7, 15.4, 23.1}, "error 429 RATE_LIMITED 7 retrying"},
		{"503 with Retry-After", answer{status: 503, body: `<h1>Busy</h1>`, retryAfter: "30"}, "",
			[]float64{30, 60, 90}, []float64{33, 66, 99}, "error 503 null 30 retrying"},
		{"503 with an absurd retry_after", answer{status: 503, body: `{"retry_after":1e99}`}, "",
			[]float64{900, 1800, 2700}, []float64{990, 1980, 2970}, "error 503 null 1e+99 retrying"},
		{"500", answer{status: 500, body: `{"retry_after":-1}`}, "", []float64{.5, 1.5, 3.5},
			[]float64{1, 3, 7}, "error 500 null null retrying"},
		{"a lost connection", answer{drop: true}, "", []float64{.5, 1.5, 3.5}, []float64{1, 3, 7},
			"error 0 null null retrying"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v.load(t, 3600, dashboard, func(n, at int) answer {
				if c.answer.drop && at < 3 || !c.answer.drop && n <= len(c.from) {
					return c.answer // a browser may repeat what was dropped by itself
				}
				return answer{}
			})
			if c.text == "" {
				c.text = "The dashboard cannot be loaded now. Trying again… Try again"
			}
			if r := v.run(``); r.Text != c.text || r.Frames != 0 {
				t.Errorf("at first the element shows %q and %d frames, want %q", r.Text, r.Frames, c.text)
			}
			r := v.run(`clock.granting = false; await clock.advance(3000)`)
			if r.Text != "" || r.Frames != 1 || len(r.Events) <= len(c.from) {
				t.Fatalf("%+v", r)
			}
			for i, event := range r.Events[:len(c.from)+1] {
				text, what, _ := strings.Cut(event, " ")
				at, err := strconv.ParseFloat(text, 64)
				if i > 0 && (err != nil || at < c.from[i-1] || at > c.to[i-1]) {
					t.Errorf("%q: want it at %v s to %v s", event, c.from[i-1], c.to[i-1])
				}
				if i < len(c.from) && what != c.event || i == len(c.from) && what != "ready" {
					t.Errorf("event %d is %q, want %q", i, what, c.event)
				}
			}
		})
	}

	t.Run("while the token is valid", func(t *testing.T) {
		v.load(t, 600, dashboard, func(_, at int) answer {
			if at > 0 && at < 550 {
				return answer{status: 503}
			}
			return answer{}
		})
		r := v.run(`await clock.advance(600)`)
		if r.Gap > 0 || r.Frames != 1 || !strings.HasSuffix(r.Events[len(r.Events)-1], " refreshed") {
			t.Errorf("%+v", r)
		}
	})

	t.Run("until the token has ended", func(t *testing.T) {
		v.load(t, 60, dashboard, func(_, at int) answer {
			if at > 0 {
				return answer{status: 503}
			}
			return answer{}
		})
		if r := v.run(`await clock.advance(58)`); r.Frames != 1 || r.Text != "" {
			t.Errorf("before: %+v", r)
		}
		if r := v.run(`await clock.advance(1)`); r.Frames != 0 || !strings.Contains(r.Text, "Trying again") {
			t.Errorf("after: %+v", r)
		}
	})

	t.Run("a backend that does not answer", func(t *testing.T) {
		v.load(t, 3600, "", func(n, _ int) answer { return answer{hang: n == 1} })
		v.run(`clock.hangs = true; clock.granting = false;
			clock.put('` + dashboard + `'); await clock.advance(12); clock.hangs = false`)
		r := v.run(`await clock.advance(10)`)
		if len(v.asked()) != 2 || r.Frames != 1 ||
			!strings.Contains(r.Events[0], "error 0 null null retrying") {
			t.Errorf("requests %q, %+v", v.asked(), r)
		}
	})

	t.Run("at once when the network is back", func(t *testing.T) {
		v.load(t, 3600, dashboard, func(_, at int) answer { return answer{drop: at < 20} })
		v.run(`clock.granting = false; await clock.advance(20)`)
		r := v.run(`dispatchEvent(new Event("online"))`)
		if got := v.asked(); got[len(got)-1] != "POST 20" || r.Frames != 1 {
			t.Errorf("requests %q, %+v", got, r)
		}
	})
}

func TestElementFallsBackToExpiresAt(t *testing.T) {
	v := open(t)
	for _, expiresIn := range []string{"", `"expires_in":null,`, `"expires_in":0,`, `"expires_in":-5,`} {
		v.load(t, 3600, dashboard,
			func(_, at int) answer { return answer{body: v.token(at*1000, expiresIn)} })
		r := v.run(`await clock.advance(3600)`)
		if asked := v.asked(); r.Gap > 0 || !slices.Equal(asked, []string{"POST 0", "POST 2879"}) {
			t.Errorf("%s: requests %q, %+v", expiresIn, asked, r)
		}
	}
}

func TestElementLeavesNothingBehind(t *testing.T) {
	v := open(t)
	v.load(t, 3600, "", nil)
	before := v.listeners()
	r := v.run(`for (let i = 0; i < 100; i++) {
			clock.put('` + dashboard + `<papermap-dashboard src="/token?b" loading="lazy">');
			if (i % 3) await clock.settle();
			if (i % 2) await clock.advance(1);
			document.body.replaceChildren();
		}
		await clock.settle()`)
	if after := v.listeners(); r.Timers != 0 || after != before {
		t.Errorf("%d timers, and %d listeners instead of %d", r.Timers, after, before)
	}
	asked := len(v.asked())
	if v.run(`await clock.advance(7200)`); len(v.asked()) != asked {
		t.Errorf("removed elements made requests: %q", v.asked()[asked:])
	}
}

// listeners counts those of the page's window and document.
func (v *visit) listeners() (n int) {
	v.t.Helper()
	for _, object := range []string{"window", "document"} {
		var o *runtime.RemoteObject
		v.Do(chromedp.Evaluate(object, &o), chromedp.ActionFunc(func(ctx context.Context) error {
			list, err := domdebugger.GetEventListeners(o.ObjectID).Do(ctx)
			n += len(list)
			return err
		}))
	}
	return n
}

func TestElementIsReadyAfterBackForwardCache(t *testing.T) {
	v := open(t)
	v.load(t, 3600, dashboard, nil)
	v.run(`await clock.advance(60)
		addEventListener("pagehide", () => clock.sleep(7200), {once: true});
		addEventListener("pageshow", (e) => clock.persisted = e.persisted, {once: true})`)
	returned := make(chan page.NavigationType, 1)
	chromedp.ListenTarget(v.Context, func(event any) {
		e, ok := event.(*page.EventFrameNavigated)
		if ok && strings.HasPrefix(e.Frame.URL, v.site.URL+"/?") {
			returned <- e.Type
		}
	})
	v.Do(chromedp.Navigate(v.site.URL+"/style.css"), chromedp.Evaluate(`history.back()`, nil))
	select {
	case how := <-returned:
		if how != page.NavigationTypeBackForwardCacheRestore {
			t.Skip("Chromium did not keep the page in memory") // it has little
		}
	case <-time.After(time.Minute):
		t.Fatal("the page did not come back")
	}
	v.settle()
	var persisted bool
	v.Do(chromedp.Evaluate(`clock.persisted`, &persisted))
	r := v.run(`await clock.advance(60)`)
	if asked := v.asked(); !persisted || r.Gap > 0 || !slices.Equal(asked, []string{"POST 0", "POST 7260"}) {
		t.Errorf("from the cache: %t; requests %q, %+v", persisted, asked, r)
	}
}
