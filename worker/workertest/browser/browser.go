// Package browser opens Chromium for tests:
//
//	tab := browser.Open(t)
//	tab.Do(chromedp.Navigate(address), chromedp.Click("button", chromedp.ByQuery))
//	tab.Accessible(axe)
//
// The browser has a profile of its own and ends with the test.
package browser

import (
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// Tab is a tab of the browser.
type Tab struct {
	Context context.Context

	t        *testing.T
	pictures string
	mu       sync.Mutex
	wrong    []string
}

// Open starts Chromium. Without it the test is skipped, except with CI=true: there that is a
// failure.
func Open(t *testing.T) *Tab {
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
	options := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()),
		chromedp.NoSandbox, chromedp.Headless, chromedp.DisableGPU, chromedp.NoFirstRun,
	}
	for _, flag := range []string{
		"disable-quic", "disable-background-networking", "disable-component-update",
		"disable-sync", "disable-dev-shm-usage", "hide-scrollbars",
	} {
		options = append(options, chromedp.Flag(flag, true))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	b := &Tab{Context: ctx, t: t, pictures: t.ArtifactDir()}
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // waits for the browser's end
		cancel()
	})
	if err := chromedp.Run(ctx); err != nil { // the context of the first run is the browser's life
		t.Fatal(err)
	}
	chromedp.ListenTarget(ctx, func(event any) {
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			b.complain(e.ExceptionDetails.Error())
		case *cdplog.EventEntryAdded:
			if e.Entry.Level == cdplog.LevelError {
				b.complain(e.Entry.Text + " " + e.Entry.URL)
			}
		}
	})
	return b
}

func (b *Tab) complain(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wrong = append(b.wrong, text)
}

// Complaints returns the exceptions and errors that the browser reported.
func (b *Tab) Complaints() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.wrong
}

// Do runs actions, and fails the test with what is on the page.
func (b *Tab) Do(actions ...chromedp.Action) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.Context, 30*time.Second)
	defer cancel()
	if err := chromedp.Run(ctx, actions...); err != nil {
		var on string
		seeing, cancel := context.WithTimeout(b.Context, 5*time.Second)
		defer cancel()
		_ = chromedp.Run(seeing, chromedp.Evaluate(`location.href + "\n" + document.body.innerText`, &on))
		b.t.Fatalf("%v, on %s", err, on)
	}
}

// Await evaluates JavaScript and waits for the promise that it returns. result may be nil.
func (b *Tab) Await(script string, result any) {
	b.t.Helper()
	b.Do(chromedp.Evaluate(script, result, func(p *runtime.EvaluateParams) *runtime.EvaluateParams {
		return p.WithAwaitPromise(true)
	}))
}

// Screen sets the size of the page and the system's theme, light or dark.
func (b *Tab) Screen(width, height int64, theme string) {
	b.t.Helper()
	b.Do(emulation.SetDeviceMetricsOverride(width, height, 1, width < 600),
		emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{
			Name: "prefers-color-scheme", Value: theme,
		}}))
}

// Picture keeps a screenshot with the test's output, with go test -artifacts.
func (b *Tab) Picture(name string) {
	b.t.Helper()
	if flag.Lookup("test.artifacts").Value.String() != "true" {
		return
	}
	var data []byte
	b.Do(chromedp.FullScreenshot(&data, 100))
	if err := os.WriteFile(filepath.Join(b.pictures, name+".png"), data, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// Accessible lets axe, whose source is given, look at the page. Faults fail the test.
func (b *Tab) Accessible(axe, name string) {
	b.t.Helper()
	var found []struct {
		ID, Impact string
		Where      []string
	}
	b.Do(chromedp.Evaluate(axe+"\n;0", nil))
	b.Await(`axe.run({iframes: false}).then(r => r.violations.map(v => ({ID: v.id, Impact: v.impact,
		Where: v.nodes.slice(0, 3).map(n => n.html + " " + n.failureSummary)})))`, &found)
	for _, v := range found {
		b.t.Errorf("%s: %s fault %s: %s", name, v.Impact, v.ID, strings.Join(v.Where, "\n"))
	}
}
