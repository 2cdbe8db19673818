package console

import (
	"bytes"
	"context"
	_ "embed"
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"papermap-worker/events"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
)

// axe finds what keeps people out of a page. It is for tests alone.
//
//go:embed testdata/axe.min.js
var axe string

// tab is a browser's tab that the test sits at.
type tab struct {
	*world
	t         *testing.T
	ctx       context.Context
	downloads string
	pictures  string
	mu        sync.Mutex
	wrong     []string // what the browser complained of
}

// openTab starts Chromium. Without it the test is skipped, except with CI=true: there that is a
// failure.
func openTab(t *testing.T, w *world) *tab {
	t.Helper()
	path, err := "", error(nil)
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err = exec.LookPath(name); err == nil {
			break
		}
	}
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("no chromium found (Debian: apt-get install chromium)")
		}
		t.Skip("no chromium found (Debian: apt-get install chromium)")
	}
	options := []chromedp.ExecAllocatorOption{chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()),
		chromedp.NoSandbox, chromedp.Headless, chromedp.DisableGPU, chromedp.NoFirstRun}
	for _, flag := range []string{"disable-quic", "disable-background-networking", "disable-component-update",
		"disable-sync", "disable-dev-shm-usage", "hide-scrollbars"} {
		options = append(options, chromedp.Flag(flag, true))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	b := &tab{world: w, t: t, ctx: ctx, downloads: t.TempDir(), pictures: t.ArtifactDir()}
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // waits for the browser's end
		cancel()
	})
	w.Must(chromedp.Run(ctx)) // starts it; the context of the first run is the browser's life
	chromedp.ListenTarget(ctx, func(event any) {
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			b.complain(e.ExceptionDetails.Error())
		case *cdplog.EventEntryAdded:
			if e.Entry.Level == cdplog.LevelError {
				b.complain(e.Entry.Text + " " + e.Entry.URL)
			}
		case *cdppage.EventJavascriptDialogOpening:
			go func() { _ = chromedp.Run(ctx, cdppage.HandleJavaScriptDialog(true)) }()
		}
	})
	b.do(browser.SetDownloadBehavior(browser.SetDownloadBehaviorBehaviorAllow).
		WithDownloadPath(b.downloads).WithEventsEnabled(true))
	return b
}

func (b *tab) complain(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wrong = append(b.wrong, text)
}

// do runs actions, and fails with what is on the page.
func (b *tab) do(actions ...chromedp.Action) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 15*time.Second)
	defer cancel()
	if err := chromedp.Run(ctx, actions...); err != nil {
		var on string
		seeing, cancel := context.WithTimeout(b.ctx, 5*time.Second)
		defer cancel()
		_ = chromedp.Run(seeing, chromedp.Evaluate(`location.href + "\n" + document.body.innerText`, &on))
		b.t.Fatalf("%v, on %s", err, on)
	}
}

// open goes to a page and waits until it is drawn.
func (b *tab) open(path string) {
	b.t.Helper()
	b.do(chromedp.Navigate(b.base+path), chromedp.WaitReady("main", chromedp.ByQuery))
}

// says waits until the page says it, over changes of the page.
func (b *tab) says(text string) {
	b.t.Helper()
	b.Eventually(func() error {
		var all string
		if err := chromedp.Run(b.ctx, chromedp.Evaluate(`document.body.innerText`, &all)); err != nil {
			return err
		}
		if !strings.Contains(all, text) {
			return fmt.Errorf("the page does not say %q:\n%s", text, all)
		}
		return nil
	})
}

// screen sets the width and the theme that the system has.
func (b *tab) screen(width int64, theme string) {
	b.t.Helper()
	b.do(emulation.SetDeviceMetricsOverride(width, 860, 1, width < 600),
		emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme",
			Value: theme}}))
}

// picture keeps a screenshot with the test's output, with go test -artifacts.
func (b *tab) picture(name string) {
	b.t.Helper()
	if flag.Lookup("test.artifacts").Value.String() != "true" {
		return
	}
	var data []byte
	b.do(chromedp.FullScreenshot(&data, 100))
	b.Must(os.WriteFile(filepath.Join(b.pictures, name+".png"), data, 0o644))
}

// pixels counts the pixels of a colour, and how many other than white there are, where an element
// is.
func (b *tab) pixels(selector string, want color.RGBA) (of, notWhite int) {
	b.t.Helper()
	var data []byte
	b.do(chromedp.Screenshot(selector, &data, chromedp.ByQuery))
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

// await makes an evaluation wait for the promise that it returns.
func await(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }

// accessible lets axe look at the page.
func (b *tab) accessible(name string) {
	b.t.Helper()
	var found []struct {
		ID     string   `json:"id"`
		Impact string   `json:"impact"`
		Where  []string `json:"where"`
	}
	b.do(chromedp.Evaluate(axe+"\n;0", nil),
		chromedp.Evaluate(`axe.run({iframes: false}).then(r => r.violations.map(v => ({
			id: v.id, impact: v.impact,
			where: v.nodes.slice(0, 3).map(n => n.html + " " + n.failureSummary)})))`,
			&found, await))
	for _, v := range found {
		if v.Impact == "serious" || v.Impact == "critical" {
			b.t.Errorf("%s: %s fault %s: %s", name, v.Impact, v.ID, strings.Join(v.Where, "\n"))
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
	b.screen(1280, "light")

	// Log in; the keyboard reaches the way past the navigation first.
	b.open("/usage")
	b.says("Console token")
	b.accessible("log-in")
	b.do(chromedp.SendKeys("#token", token+kb.Enter, chromedp.ByQuery),
		chromedp.WaitVisible("#months", chromedp.ByQuery))
	b.open("/")
	var skips bool
	b.do(chromedp.KeyEvent(kb.Tab), chromedp.Evaluate(`document.activeElement.className === "skip" &&
		document.activeElement.getBoundingClientRect().top >= 0`, &skips))
	if !skips {
		t.Error("the first Tab does not show the way past the navigation")
	}

	// Find a tenant while typing, and open it.
	b.open("/tenants")
	b.do(chromedp.SendKeys("#q", "company 07", chromedp.ByQuery))
	b.says("No tenant is like that")
	b.do(chromedp.SendKeys("#q", kb.Backspace+kb.Backspace+"7", chromedp.ByQuery))
	b.says("Names that begin with “company 7”")
	b.do(chromedp.Click(`a[href="/tenant?id=org-07"]`, chromedp.ByQuery))
	b.says("Usage by month")
	if bars, _ := b.pixels("figure.chart canvas", color.RGBA{0x8f, 0xc3, 0xb2, 255}); bars < 2000 {
		t.Errorf("the tenant's chart has %d pixels of bars", bars)
	}

	// Its dashboard shows in the page.
	b.do(chromedp.Click(`form[action^="/tenant/preview"] button`, chromedp.ByQuery),
		chromedp.WaitVisible("iframe", chromedp.ByQuery))
	w.Eventually(func() error {
		if _, drawn := b.pixels("iframe", color.RGBA{}); drawn < 2000 {
			return fmt.Errorf("%d pixels of the preview are not white", drawn)
		}
		return nil
	})
	b.picture("preview-light-1280")

	// What is refused meanwhile says why.
	b.open("/tenant?id=org-05")
	w.Publish(events.TypeTenantSuspended, `{"tenant_id":"org-05"}`)
	w.becomes("org-05", repo.Suspended)
	b.do(chromedp.Click(`form[action^="/tenant/preview"] button`, chromedp.ByQuery))
	b.says("That could not be done: TENANT_SUSPENDED")

	// The overview refreshes itself, but not while text is selected.
	b.open("/")
	b.says("refused")
	var waits, refreshed bool
	b.do(chromedp.Evaluate(`getSelection().selectAllChildren(document.querySelector("#overview h1"))
		new Promise(done => document.addEventListener("htmx:beforeRequest",
			e => done(e.defaultPrevented), {once: true}))`, &waits, await))
	b.do(chromedp.Evaluate(`getSelection().removeAllRanges()
		new Promise(done => document.addEventListener("htmx:afterSwap",
			() => done(true), {once: true}))`, &refreshed, await))
	if !waits || !refreshed {
		t.Errorf("it waits while text is marked: %t, and refreshes itself: %t", waits, refreshed)
	}

	// Settle a held one with the dashboard that has its mark.
	made := w.Simulator.Dashboards()
	held := made[slices.IndexFunc(made, func(d simulator.Dashboard) bool { return d.TenantID == "held" })]
	b.open("/attention")
	b.says(held.Mark)
	b.picture("settle-light-1280")
	b.do(chromedp.SendKeys(`input[name="dashboard"]`, held.ID, chromedp.ByQuery),
		chromedp.Click(`form[action="/tenant/dashboard"] button`, chromedp.ByQuery))
	b.says("Resolve with a dashboard")
	b.picture("resolve-light-1280")
	b.do(chromedp.Click(`form[action="/tenant/resolve"] button`, chromedp.ByQuery))
	b.says("Resolved: the tenant has its dashboard.")
	w.becomes("held", repo.Active)

	// Replay one dead letter, and discard the other, which asks first.
	b.open("/dead")
	b.do(chromedp.Click(`a[href="/dead/1"]`, chromedp.ByQuery))
	b.says("The workspace is full")
	b.do(chromedp.Click(`form[action="/dead/replay"] button`, chromedp.ByQuery))
	b.says("Replayed")
	w.becomes("refused", repo.Active)
	b.do(chromedp.Click(`input[name="sequence"]`, chromedp.ByQuery),
		chromedp.Click(`button[formaction="/dead/discard"]`, chromedp.ByQuery))
	b.says("There are no dead letters")

	// The chart is drawn in both themes, and the usage comes as a file.
	for theme, bars := range map[string]color.RGBA{"dark": {0x3d, 0x78, 0x66, 255},
		"light": {0x8f, 0xc3, 0xb2, 255}} {
		b.screen(1280, theme)
		b.open("/usage")
		if n, _ := b.pixels("figure.chart canvas", bars); n < 2000 {
			t.Errorf("the chart has %d pixels of bars in the %s theme", n, theme)
		}
	}
	b.do(chromedp.Click(`form[action="/usage.csv"] button`, chromedp.ByQuery))
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
			b.screen(1280, theme)
			b.open(p.path)
			b.accessible(p.name + " " + theme)
			b.picture(p.name + "-" + theme + "-1280")
			b.screen(390, theme)
			var over int
			b.do(chromedp.Evaluate(`document.documentElement.scrollWidth - innerWidth`, &over))
			if over > 0 {
				t.Errorf("%s is %d pixels wider than a phone", p.name, over)
			}
			b.picture(p.name + "-" + theme + "-390")
		}
	}

	// Without scripts everything can be read, and done.
	b.screen(1280, "light")
	b.do(emulation.SetScriptExecutionDisabled(true))
	b.open("/usage")
	b.do(chromedp.WaitVisible("#months", chromedp.ByQuery))
	b.open("/tenants")
	b.do(chromedp.SendKeys("#q", "new-failed"+kb.Enter, chromedp.ByQuery),
		chromedp.WaitVisible("#results > .note", chromedp.ByQuery))
	b.open("/tenant?id=new-failed")
	b.do(chromedp.Click(`form[action="/tenant/recreate"] button`, chromedp.ByQuery),
		chromedp.WaitVisible(".done", chromedp.ByQuery))
	w.becomes("new-failed", repo.Active)

	b.mu.Lock()
	defer b.mu.Unlock()
	for _, text := range b.wrong {
		// of the pages that are to be errors
		if !strings.Contains(text, "404 (Not Found)") && !strings.Contains(text, "403 (Forbidden)") {
			t.Errorf("the browser complained: %s", text)
		}
	}
}
