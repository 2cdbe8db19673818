package console

import (
	"bytes"
	_ "embed"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	cdpbrowser "github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"papermap-worker/events"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/worker/workertest/browser"
)

// axe finds what keeps people out of a page. It is for tests alone.
//
//go:embed testdata/axe.min.js
var axe string

// tab is a browser's tab that the test sits at.
type tab struct {
	*browser.Tab
	*world
	t         *testing.T
	downloads string
}

// openTab opens a tab that answers questions with yes, and keeps downloads.
func openTab(t *testing.T, w *world) *tab {
	t.Helper()
	b := &tab{Tab: browser.Open(t), world: w, t: t, downloads: t.TempDir()}
	chromedp.ListenTarget(b.Context, func(event any) {
		if _, asks := event.(*cdppage.EventJavascriptDialogOpening); asks {
			go func() { _ = chromedp.Run(b.Context, cdppage.HandleJavaScriptDialog(true)) }()
		}
	})
	b.Do(cdpbrowser.SetDownloadBehavior(cdpbrowser.SetDownloadBehaviorBehaviorAllow).
		WithDownloadPath(b.downloads).WithEventsEnabled(true))
	return b
}

// open goes to a page and waits until it is drawn.
func (b *tab) open(path string) {
	b.t.Helper()
	b.Do(chromedp.Navigate(b.base+path), chromedp.WaitReady("main", chromedp.ByQuery))
}

// says waits until the page says it, over changes of the page.
func (b *tab) says(text string) {
	b.t.Helper()
	b.Eventually(func() error {
		var all string
		if err := chromedp.Run(b.Context, chromedp.Evaluate(`document.body.innerText`, &all)); err != nil {
			return err
		}
		if !strings.Contains(all, text) {
			return fmt.Errorf("the page does not say %q:\n%s", text, all)
		}
		return nil
	})
}

// pixels counts the pixels of a colour, and how many other than white there are, where an element
// is.
func (b *tab) pixels(selector string, want color.RGBA) (of, notWhite int) {
	b.t.Helper()
	var data []byte
	b.Do(chromedp.Screenshot(selector, &data, chromedp.ByQuery))
	picture, err := png.Decode(bytes.NewReader(data))
	b.Must(err)
	each(picture, func(c color.RGBA) {
		if c == want {
			of++
		}
		if c != (color.RGBA{255, 255, 255, 255}) {
			notWhite++
		}
	})
	return of, notWhite
}

func each(picture image.Image, do func(color.RGBA)) {
	box := picture.Bounds()
	for y := box.Min.Y; y < box.Max.Y; y++ {
		for x := box.Min.X; x < box.Max.X; x++ {
			do(color.RGBAModel.Convert(picture.At(x, y)).(color.RGBA))
		}
	}
}

func TestConsoleInABrowser(t *testing.T) {
	w := start(t, Config{Token: token}, inTrouble...)
	w.trouble()
	for i := range 40 {
		w.Publish(events.TypeTenantCreated, fmt.Sprintf(`{"tenant_id":"org-%02d","name":"Company %d"}`, i, i))
	}
	now := time.Now().UTC()
	var usage simulator.Usage
	for m := range 5 {
		month := time.Date(now.Year(), now.Month()-time.Month(m), 1, 0, 0, 0, 0, time.UTC).Format("2006-01")
		usage.Rows = append(usage.Rows, simulator.UsageRow{TenantID: "org-07", Period: month,
			Credits: fmt.Sprint(90 - 12*m), Requests: int64(700 - 50*m)})
	}
	w.Simulator.SetUsage("ws-a", usage)
	w.Publish(events.TypeUsageSync, fmt.Sprintf(`{"from_period":%q}`, usage.Rows[4].Period))
	w.becomes("org-39", repo.Active)
	w.Eventually(func() error {
		if _, n, err := w.DB.Usage(t.Context(), repo.UsageFilter{}, 0, 10); err != nil || n != 5 {
			return fmt.Errorf("%d rows of usage: %v", n, err)
		}
		return nil
	})

	b := openTab(t, w)
	b.Screen(1280, 860, "light")

	// Log in; the keyboard reaches the way past the navigation first.
	b.open("/usage")
	b.says("Console token")
	b.Accessible(axe, "log-in")
	b.Do(chromedp.SendKeys("#token", token+kb.Enter, chromedp.ByQuery),
		chromedp.WaitVisible("#months", chromedp.ByQuery))
	b.open("/")
	var skips bool
	b.Do(chromedp.KeyEvent(kb.Tab), chromedp.Evaluate(`document.activeElement.className === "skip" &&
		document.activeElement.getBoundingClientRect().top >= 0`, &skips))
	if !skips {
		t.Error("the first Tab does not show the way past the navigation")
	}

	// Find a tenant while typing, and open it.
	b.open("/tenants")
	b.Do(chromedp.SendKeys("#q", "ompany 0700", chromedp.ByQuery))
	b.says("No tenants match")
	b.Do(chromedp.SendKeys("#q", kb.Backspace+kb.Backspace+kb.Backspace+kb.Backspace+"7", chromedp.ByQuery))
	b.says("1–1 of 1 tenant with “ompany 7” in id or name")
	b.Do(chromedp.Click(`a[href="/tenant?id=org-07"]`, chromedp.ByQuery))
	b.says("Usage by month")
	if bars, _ := b.pixels("figure.chart canvas", color.RGBA{0x8f, 0xc3, 0xb2, 255}); bars < 2000 {
		t.Errorf("the tenant's chart has %d pixels of bars", bars)
	}

	// Its dashboard shows in the page.
	b.Do(chromedp.Click(`form[action^="/tenant/preview"] button`, chromedp.ByQuery),
		chromedp.WaitVisible("iframe", chromedp.ByQuery))
	w.Eventually(func() error {
		if _, drawn := b.pixels("iframe", color.RGBA{}); drawn < 2000 {
			return fmt.Errorf("%d pixels of the preview are not white", drawn)
		}
		return nil
	})
	b.Picture("preview-light-1280")

	// What is refused meanwhile says why.
	b.open("/tenant?id=org-05")
	w.Publish(events.TypeTenantSuspended, `{"tenant_id":"org-05"}`)
	w.becomes("org-05", repo.Suspended)
	b.Do(chromedp.Click(`form[action^="/tenant/preview"] button`, chromedp.ByQuery))
	b.says("That could not be done: TENANT_SUSPENDED")

	// The overview refreshes itself, but not while text is selected.
	b.open("/")
	b.says("refused")
	var waits, refreshed bool
	b.Await(`getSelection().selectAllChildren(document.querySelector("#overview h1"))
		new Promise(done => document.querySelector("#overview")
			.addEventListener("htmx:beforeRequest", e => setTimeout(() => done(e.defaultPrevented)),
				{once: true}))`, &waits)
	b.Await(`getSelection().removeAllRanges()
		new Promise(done => document.querySelector("#overview")
			.addEventListener("htmx:beforeSwap", () => done(true), {once: true}))`, &refreshed)
	if !waits || !refreshed {
		t.Errorf("it waits while text is marked: %t, and refreshes itself: %t", waits, refreshed)
	}

	// Settle a held one with the dashboard that has its mark.
	made := w.Simulator.Dashboards()
	held := made[slices.IndexFunc(made, func(d simulator.Dashboard) bool { return d.TenantID == "held" })]
	b.open("/attention")
	b.says(held.Mark)
	b.Picture("settle-light-1280")
	b.Do(chromedp.SendKeys(`input[name="dashboard"]`, held.ID, chromedp.ByQuery),
		chromedp.Click(`form[action="/tenant/dashboard"] button`, chromedp.ByQuery))
	b.says("Resolve with a dashboard")
	b.Picture("resolve-light-1280")
	b.Do(chromedp.Click(`form[action="/tenant/resolve"] button`, chromedp.ByQuery))
	b.says("The tenant is active and has dashboard " + held.ID)
	w.becomes("held", repo.Active)

	// Replay one dead letter, and discard the other, which asks first.
	b.open("/dead")
	b.Do(chromedp.Click(`a[href="/dead/1"]`, chromedp.ByQuery))
	b.says("The workspace is full")
	b.Do(chromedp.Click(`form[action="/dead/replay"] button`, chromedp.ByQuery))
	b.says("1 dead letter is in the stream again")
	w.becomes("refused", repo.Active)
	b.Do(chromedp.Click(`input[name="sequence"]`, chromedp.ByQuery),
		chromedp.Click(`button[formaction="/dead/discard"]`, chromedp.ByQuery))
	b.says("There are no dead letters")

	// The chart is drawn in both themes, and the usage comes as a file.
	for theme, bars := range map[string]color.RGBA{"dark": {0x3d, 0x78, 0x66, 255},
		"light": {0x8f, 0xc3, 0xb2, 255}} {
		b.Screen(1280, 860, theme)
		b.open("/usage")
		if n, _ := b.pixels("figure.chart canvas", bars); n < 2000 {
			t.Errorf("the chart has %d pixels of bars in the %s theme", n, theme)
		}
	}
	b.Do(chromedp.Click(`form[action="/usage.csv"] button`, chromedp.ByQuery))
	w.Eventually(func() error {
		data, err := os.ReadFile(filepath.Join(b.downloads, "usage.csv"))
		if err == nil && strings.Count(string(data), "\norg-07,ws-a,") != 5 {
			err = fmt.Errorf("the file is\n%s", data)
		}
		return err
	})

	// Every page, in both themes, at both widths, with something in trouble again.
	w.Publish(events.TypeTenantSuspended, `{"tenant_id":"org-03"}`)
	w.Publish(events.TypeTenantCreated, `{"tenant_id":""}`)
	w.Simulator.SetFaults(simulator.Fault{On: "create", Tenant: "new-held", Drop: "after", Count: 1},
		simulator.Fault{On: "create", Tenant: "new-failed", Status: 422, Count: 1})
	w.Publish(events.TypeTenantCreated, `{"tenant_id":"new-held","name":"A new one"}`)
	w.Publish(events.TypeTenantCreated, `{"tenant_id":"new-failed","name":"Another"}`)
	w.becomes("new-held", repo.Held)
	w.becomes("new-failed", repo.Failed)
	w.becomes("org-03", repo.Suspended)
	letters := w.letters(2)
	runs, err := w.DB.Runs(t.Context(), "", 1)
	w.Must(err)
	for _, p := range []struct{ name, path string }{
		{"overview", "/"}, {"tenants", "/tenants"}, {"tenant", "/tenant?id=org-07"},
		{"tenant-held", "/tenant?id=new-held"}, {"tenant-suspended", "/tenant?id=org-03"},
		{"attention", "/attention"},
		{"dead", "/dead"}, {"letter", fmt.Sprintf("/dead/%d", letters[0].Sequence)}, {"usage", "/usage"},
		{"run", "/usage/run?id=" + runs[0].ID}, {"error", "/tenant?id=none"},
	} {
		for _, theme := range []string{"light", "dark"} {
			b.Screen(1280, 860, theme)
			b.open(p.path)
			b.Accessible(axe, p.name+" "+theme)
			b.Picture(p.name + "-" + theme + "-1280")
			b.Screen(390, 860, theme)
			b.open(p.path) // as a phone loads it
			var over int
			b.Do(chromedp.Evaluate(`document.documentElement.scrollWidth - screen.width`, &over))
			if over > 0 {
				t.Errorf("%s is %d pixels wider than a phone", p.name, over)
			}
			b.Picture(p.name + "-" + theme + "-390")
		}
	}

	b.keyboard()
	b.localTime()

	// Without scripts everything can be read, and done.
	b.Screen(1280, 860, "light")
	b.Do(emulation.SetScriptExecutionDisabled(true))
	b.open("/usage")
	b.Do(chromedp.WaitVisible("#months", chromedp.ByQuery))
	b.open("/tenants")
	b.Do(chromedp.SendKeys("#q", "new-failed"+kb.Enter, chromedp.ByQuery))
	b.says("1–1 of 1 tenant with “new-failed” in id or name")
	b.open("/tenant?id=new-failed")
	b.Do(chromedp.Click(`form[action="/tenant/recreate"] button`, chromedp.ByQuery),
		chromedp.WaitVisible(".flash", chromedp.ByQuery))
	w.becomes("new-failed", repo.Active)

	for _, text := range b.Complaints() {
		// of the pages that are to be errors
		if !strings.Contains(text, "404 (Not Found)") && !strings.Contains(text, "403 (Forbidden)") {
			t.Errorf("the browser complained: %s", text)
		}
	}
}

// keyboard uses the shortcuts.
func (b *tab) keyboard() {
	b.t.Helper()
	b.Screen(1280, 860, "light")
	b.open("/")
	b.Do(chromedp.KeyEvent("g"), chromedp.KeyEvent("u"), chromedp.WaitVisible(".uplot", chromedp.ByQuery))
	b.Do(chromedp.KeyEvent("?"), chromedp.WaitVisible("dialog[open]", chromedp.ByQuery),
		chromedp.KeyEvent(kb.Escape), chromedp.WaitNotVisible("dialog", chromedp.ByQuery))

	// The chart says the figures of the month under the mouse.
	var tip string
	b.Do(chromedp.Evaluate(`(() => {
		const over = document.querySelector(".u-over"), box = over.getBoundingClientRect();
		over.dispatchEvent(new MouseEvent("mouseenter"));
		over.dispatchEvent(new MouseEvent("mousemove", {bubbles: true,
			clientX: box.right - box.width / 12, clientY: box.top + 20}));
		})()`, nil), chromedp.WaitVisible(".tip", chromedp.ByQuery),
		chromedp.Text(".tip", &tip, chromedp.ByQuery))
	if !strings.HasSuffix(tip, ": 90.00 credits, 700 requests") {
		b.t.Errorf("the chart says %q of the last month", tip)
	}

	b.open("/tenants")
	var focused string
	slash := input.DispatchKeyEvent(input.KeyDown).WithKey("/").WithText("/")
	b.Do(slash, chromedp.KeyEvent("org"),
		chromedp.Evaluate(`document.activeElement.value`, &focused))
	if focused != "org" {
		b.t.Errorf("the search field has %q, want what was typed after /", focused)
	}
}

// localTime looks at times from another time zone.
func (b *tab) localTime() {
	b.t.Helper()
	b.Do(emulation.SetTimezoneOverride("Asia/Kolkata"))
	b.open("/tenant?id=org-07")
	var shown, title, utc string
	b.Do(chromedp.Text(".facts time", &shown, chromedp.ByQuery),
		chromedp.Evaluate(`document.querySelector(".facts time").title`, &title),
		chromedp.Evaluate(`document.querySelector(".facts time").dateTime`, &utc))
	at, err := time.Parse(time.RFC3339, utc)
	b.Must(err)
	local := at.In(time.FixedZone("", 5*3600+1800)).Format(time.DateTime)
	if !strings.HasPrefix(shown, local) || title != at.UTC().Format(time.DateTime)+" UTC" {
		b.t.Errorf("it shows %q with title %q for %s", shown, title, utc)
	}
}

// stopper is a console whose worker can be killed, as far as a browser sees, and started again.
type stopper struct {
	t       *testing.T
	handler http.Handler
	addr    string
	server  *http.Server
}

func (s *stopper) start() {
	s.t.Helper()
	listener, err := net.Listen("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.addr, s.server = listener.Addr().String(), &http.Server{Handler: s.handler}
	go func(server *http.Server) { _ = server.Serve(listener) }(s.server)
}

func TestLostConnectionIsShownUntilTheWorkerIsBack(t *testing.T) {
	w := start(t, Config{Dev: true}, inTrouble...)
	w.trouble()
	s := &stopper{t: t, handler: w.console, addr: "127.0.0.1:0"}
	s.start()
	t.Cleanup(func() { _ = s.server.Close() })
	w.base = "http://" + s.addr
	b := openTab(t, w)
	shown := func(want bool) time.Duration {
		t.Helper()
		started := time.Now()
		b.Eventually(func() error {
			var got bool
			var text string
			if err := chromedp.Run(b.Context,
				chromedp.Evaluate(`!document.getElementById("lost").hidden`, &got),
				chromedp.Evaluate(`document.getElementById("lost").textContent`, &text)); err != nil {
				return err
			}
			if got != want ||
				want && !strings.HasPrefix(text, "Connection lost. This page shows data from ") {
				return fmt.Errorf("lost: %t, want %t: %s", got, want, text)
			}
			return nil
		})
		return time.Since(started)
	}
	for _, path := range []string{"/", "/tenants"} {
		b.open(path)
		b.says("Working")
		s.server.Close()
		lost := shown(true)
		s.start()
		t.Logf("%s: lost after %s, cleared after %s", path, lost, shown(false))
	}
	b.says("Working")
}
