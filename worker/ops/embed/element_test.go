package embed

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/google/go-cmp/cmp"

	"papermap-worker/worker/workertest/browser"
)

// shown are the attributes of the frame that is shown.
const shown = `Object.fromEntries(["title", "allow", "referrerpolicy", "sandbox", "loading", "inert", "src"]
	.map(name => [name, clock.frame().getAttribute(name)]))`

func TestFrameIsConfined(t *testing.T) {
	v := open(t)
	v.load(t, 3600, dashboard, nil)
	var got map[string]any
	v.Await(`(async () => `+shown+`)()`, &got)
	want := map[string]any{
		"title": "Sales", "allow": "fullscreen; clipboard-write", "referrerpolicy": "no-referrer",
		"sandbox": "allow-scripts allow-same-origin allow-forms allow-popups " +
			"allow-popups-to-escape-sandbox allow-downloads",
		"loading": "eager", "inert": nil, "src": v.papermap.URL + "/embedded/dashboard?exp=3600000",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	v.run(`element.title = "Stock"; element.setAttribute("loading", "lazy"); element.refresh()`)
	v.Await(`(async () => `+shown+`)()`, &got)
	if got["title"] != "Stock" || got["loading"] != "lazy" {
		t.Errorf("after a change: %v", got)
	}
	v.run(`element.removeAttribute("title")`)
	if v.Await(`(async () => `+shown+`)()`, &got); got["title"] != "Dashboard" {
		t.Errorf("without a title: %v", got)
	}
}

func TestRenewalKeepsTheFocusWhereItIs(t *testing.T) {
	v := open(t)
	v.load(t, 3600, dashboard, nil)
	focus := func() (where string) {
		t.Helper()
		v.Do(chromedp.Evaluate(`document.activeElement.localName + " " +
			!!document.querySelector("papermap-dashboard").shadowRoot.activeElement`, &where))
		return where
	}
	v.run(`document.querySelector("input").focus(); await clock.advance(3000)`)
	if where := focus(); where != "input false" {
		t.Errorf("the focus moved from the page's field to %s", where)
	}
	v.run(`clock.frame().focus(); await clock.advance(3000)`)
	if where := focus(); where != "papermap-dashboard true" {
		t.Errorf("the focus moved from the dashboard to %s", where)
	}
}

func TestOnReturnDisturbsOnlyWhenItMust(t *testing.T) {
	v := open(t)
	src := func() (exp string) {
		t.Helper()
		v.Do(chromedp.Evaluate(`clock.frame().src.split("=")[1]`, &exp))
		return exp
	}
	v.load(t, 3600, onReturn, nil)
	if v.run(`await clock.advance(3593)`); src() != "3600000" {
		t.Errorf("the dashboard was loaded again before the end: %s", src())
	}
	if v.run(`await clock.advance(2)`); src() != "7169000" {
		t.Errorf("the dashboard was not loaded again at the end: %s", src())
	}
	v.load(t, 3600, onReturn, nil)
	v.run(`await clock.advance(3580); clock.show(false); clock.show(true)`)
	if asked := v.asked(); src() != "7169000" || len(asked) != 2 {
		t.Errorf("the token at hand was not used on return: %s, requests %q", src(), asked)
	}
	v.load(t, 3600, onReturn+dashboard, nil)
	v.run(`await clock.advance(2900)`)
	if asked := v.asked(); src() != "3600000" || len(asked) != 2 {
		t.Errorf("the other element's renewal disturbed this one: %s, requests %q", src(), asked)
	}
}

func TestElementFollowsItsAttributes(t *testing.T) {
	v := open(t)
	v.load(t, 3600, dashboard, nil)
	r := v.run(`element.setAttribute("src", "/token?b")
		clock.at = element.shadowRoot.querySelectorAll("iframe").length`)
	var left int
	v.Do(chromedp.Evaluate(`clock.at`, &left))
	if left != 0 || r.Frames != 1 || len(v.asked()) != 2 {
		t.Errorf("another src: %d old frames are left, requests %q, %+v", left, v.asked(), r)
	}
	v.run(`element.setAttribute("method", "GET")`)
	if asked := v.asked(); asked[len(asked)-1] != "GET 0" {
		t.Errorf("another method: %q", asked)
	}
	r = v.run(`element.setAttribute("src", "https://[")`)
	if r.Frames != 0 || r.Events[len(r.Events)-1] != "0 error 0 null null ended" {
		t.Errorf("an invalid src: %+v", r)
	}
	v.load(t, 3600, `<papermap-dashboard>`, nil)
	if r = v.run(``); r.Text != "Loading the dashboard…" || len(v.asked()) != 0 {
		t.Errorf("no src: %+v", r)
	}
	v.load(t, 3600, `<div class="tall"></div><papermap-dashboard src="/token" loading="lazy">`, nil)
	v.Await(`new Promise(done => {
		addEventListener("papermap-ready", done);
		document.querySelector("papermap-dashboard").scrollIntoView() })`, nil)
	if asked := v.asked(); len(asked) != 1 {
		t.Errorf("a lazy element that is scrolled to: %q", asked)
	}
}

func TestSlotsReplaceTheMessages(t *testing.T) {
	v := open(t)
	v.load(t, 3600, `<papermap-dashboard src="/token"><p slot="loading">Wait</p><p slot="error">Sorry</p>`,
		func(n, _ int) answer {
			return answer{status: map[int]int{1: 409, 2: 404}[n], body: map[int]string{1: "{}", 2: "{}"}[n]}
		})
	var texts []string
	text := `document.body.innerText.replace(/\s+/g, " ")`
	v.Await(`(async () => {
		const first = `+text+`; await clock.advance(2);
		const second = `+text+`; document.querySelector("papermap-dashboard").refresh(); await clock.settle();
		return [first, second, `+text+`] })()`, &texts)
	if want := []string{"Your sales Wait", "Your sales Sorry", "Your sales"}; !slices.Equal(texts, want) {
		t.Errorf("the page says %q, want %q", texts, want)
	}
}

func TestElementIsAccessible(t *testing.T) {
	axe, err := os.ReadFile("../console/testdata/axe.min.js")
	if err != nil {
		t.Fatal(err)
	}
	v := &visit{serveSite(t), browser.Open(t), t}
	for name, c := range map[string]struct {
		answer answer
		wait   string
	}{
		"loading": {answer{status: 409}, ""},
		"shown":   {answer{}, "papermap-ready"},
		"refused": {answer{status: 403, body: `{}`}, "papermap-error"},
		"failing": {answer{status: 500}, "papermap-error"},
		"offline": {answer{status: 500}, ""},
	} {
		v.mu.Lock()
		v.decide = func(int, int) answer { return c.answer }
		v.mu.Unlock()
		v.Do(chromedp.Navigate(v.site.URL))
		v.Await(`new Promise(done => {
			if ("`+name+`" === "offline") Object.defineProperty(navigator, "onLine", {value: false});
			const e = document.createElement("papermap-dashboard");
			e.addEventListener("`+c.wait+`", done);
			e.setAttribute("src", "/token");
			document.querySelector("main").append(e);
			if (!"`+c.wait+`") queueMicrotask(done) })`, nil)
		for _, theme := range []string{"light", "dark"} {
			v.Screen(800, 480, theme)
			v.Accessible(string(axe), name+" "+theme)
			v.Picture(name + "-" + theme)
		}
	}
	for _, complaint := range v.Complaints() {
		if !strings.Contains(complaint, "the server responded with a status of") {
			t.Error(complaint)
		}
	}
}
