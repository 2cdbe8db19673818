package console

import (
	"bytes"
	"compress/gzip"
	"io/fs"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"papermap-worker/events"
)

func TestPagesAreWholeWithoutScriptsAndHaveNothingInline(t *testing.T) {
	virtual(t, Config{Dev: true}, inTrouble, func(t *testing.T, w *world) {
		w.trouble()
		for _, path := range []string{"/", "/tenants", "/tenant?id=good", "/tenant?id=held", "/attention",
			"/dead", "/dead/1", "/usage", "/audit", "/tenant?id=none", "/none"} {
			r := w.ask("GET", path, nil)
			r.body = toPapermap.ReplaceAllString(r.body, "")
			for _, forbidden := range []string{`<script>`, `<style`, ` style="`, ` onclick`, ` onload`,
				` hx-on`, `javascript:`, `http://`, `https://`} {
				if strings.Contains(r.body, forbidden) {
					t.Errorf("%s has %s in it", path, forbidden)
				}
			}
			if !strings.Contains(r.body, `<html lang="en"`) || strings.Count(r.body, "<h1>") != 1 ||
				!strings.Contains(r.body, `class="skip" href="#main"`) {
				t.Errorf("%s has not one heading, a language and a way to skip:\n%s", path, r.body)
			}
		}
	})
}

// toPapermap is the link to Papermap, the only one that leads elsewhere.
var toPapermap = regexp.MustCompile(`<a class="button out" href="http://127[^>]*>`)

func TestPagesAreSmallHoweverMuchThereIs(t *testing.T) {
	virtual(t, Config{Dev: true}, nil, func(t *testing.T, w *world) {
		fillTenants(t, w, 700) // 70 of them held
		_, err := w.SQL.Exec(`INSERT INTO provision_attempts
			(id, tenant_id, workspace_id, generation, mark, outcome, error, started_at, finished_at)
			SELECT 'a' || tenant_id, tenant_id, 'ws-a', 1, 'pmw:00000000-0000-7000-8000-' || tenant_id,
				'unknown', printf('%.300c', 'x'), created_at, created_at FROM tenant_dashboards`)
		w.Must(err)
		t.Cleanup(func() {
			_, err := w.SQL.Exec("DELETE FROM provision_attempts")
			w.Must(err)
		})
		for range perPage + 1 {
			w.Publish(events.TypeTenantCreated, `{"tenant_id":"`+strings.Repeat("x", 600)+`"}`)
		}
		w.letters(perPage + 1)
		for _, path := range []string{"/", "/tenants", "/tenant?id=t-0000000", "/attention", "/dead",
			"/usage", "/audit"} {
			n := len(w.get(path).body)
			t.Logf("%s: %d bytes", path, n)
			if n > 60_000 {
				t.Errorf("%s has %d bytes, more than 60,000", path, n)
			}
		}
	})
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
	virtual(t, Config{Dev: true}, nil, func(t *testing.T, w *world) {
		r := w.ask("POST", "/theme", url.Values{"theme": {"dark"}, "back": {"/tenants?q=a"}})
		if r.status != http.StatusSeeOther || r.header.Get("Location") != "/tenants?q=a" {
			t.Errorf("%d %s", r.status, r.header.Get("Location"))
		}
		chosen := cookie(r, themeCookie)
		page := w.ask("GET", "/", nil, func(r *http.Request) { r.AddCookie(chosen) }).body
		if !strings.Contains(page, `data-theme="dark"`) {
			t.Error("the page is not dark")
		}
		for _, back := range []string{"//evil.example/", `/\evil.example`, "https://evil.example",
			"javascript:alert(1)", "", "evil"} {
			if got := w.ask("POST", "/theme", url.Values{"theme": {"light"},
				"back": {back}}).header.Get("Location"); got != "/" {
				t.Errorf("back to %q leads to %q", back, got)
			}
		}
	})
}

func TestFormatting(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for got, want := range map[string]string{
		count(0): "0", count(999): "999", count(1000): "1,000", count(-1234567): "-1,234,567",
		decimal(1234.5): "1,234.50", credits("1234.5678"): "1,234.5678", credits("12"): "12",
		ago(now.Add(-3*time.Second), now): "just now", ago(now.Add(-90*time.Second), now): "1 min ago",
		ago(now.Add(-50*time.Hour), now): "2 days ago", ago(now.Add(time.Hour), now): "in 1 h",
		perSecond(0): "0", perSecond(1.25): "1.2", perSecond(1234): "1,234",
		string(query("q", "a&b=<c>", "x", "")): "?q=a%26b%3D%3Cc%3E",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
