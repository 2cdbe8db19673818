package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"papermap-worker/papermap"
	"papermap-worker/worker/workertest/browser"
)

func TestDevExampleShowsEachTenantItsDashboard(t *testing.T) {
	tab := browser.Open(t)
	axe, err := os.ReadFile("worker/ops/console/testdata/axe.min.js")
	must(t, err)
	p := start(t, nil, "dev", "--dir", t.TempDir(), "--nats-port", "0", "--simulator-port", "0",
		"--http-addr", "127.0.0.1:0")
	t.Cleanup(func() { p.stop(t) })
	address := p.address(t)
	ready(t, address)
	base := "http://" + address
	frame := func() (src string) {
		t.Helper()
		tab.Do(chromedp.Evaluate(`document.querySelector("papermap-dashboard")?.shadowRoot
			?.querySelector("iframe:not([inert])")?.src ?? ""`, &src))
		return src
	}
	says := func(text string) {
		t.Helper()
		eventually(t, func() error {
			var page string
			tab.Do(chromedp.Evaluate(`"" + document.body?.innerText +
				document.querySelector("papermap-dashboard")
					?.shadowRoot?.querySelector("[part=error]").innerText`, &page))
			if !strings.Contains(page, text) {
				return fmt.Errorf("the page does not say %q:\n%s", text, page)
			}
			return nil
		})
	}

	tab.Screen(1000, 800, "light")
	tab.Do(chromedp.Navigate(base + "/example"))
	says("Nobody is logged in")
	for _, customer := range []struct{ id, name string }{
		{"example-acme", "Acme"}, {"example-globex", "Globex"},
	} {
		tab.Do(chromedp.Click(`button[value="`+customer.id+`"]`, chromedp.ByQuery))
		says("Tenant " + customer.id)
		eventually(t, func() error {
			src := frame()
			if src == "" {
				return errors.New("no dashboard is shown")
			}
			answer, text, err := read(http.Get(src))
			if err == nil && (answer.StatusCode != 200 || !strings.Contains(text, customer.name)) {
				err = fmt.Errorf("%s: %s does not show %s", src, answer.Status, customer.name)
			}
			return err
		})
	}
	for _, theme := range []string{"light", "dark"} {
		tab.Screen(1000, 950, theme)
		tab.Accessible(string(axe), "example "+theme)
		tab.Picture("example-" + theme)
	}
	click := func(button string) { tab.Do(chromedp.Click(button, chromedp.ByQuery)) }
	click(`button[formaction="/example/suspend"]`)
	eventually(t, func() error { // until the suspension is in force
		if frame() == "" {
			return nil
		}
		// The button may be replaced meanwhile.
		tab.Do(chromedp.Evaluate(`document.querySelector("#refresh")?.click()`, nil))
		return errors.New("the suspended tenant sees its dashboard")
	})
	says("You do not have access to this dashboard.")
	says(`papermap-error {"status":403,"code":"TENANT_SUSPENDED","retryAfter":null,"retrying":false}`)
	click(`button[value="example-acme"]`)
	says("papermap-ready")

	life := func(seconds string, least, most time.Duration) {
		t.Helper()
		click(`button[value="` + seconds + `"]`)
		says("tokens of " + seconds + " s")
		eventually(t, func() error {
			address, err := url.Parse(frame())
			must(t, err)
			token, err := papermap.ParseToken(address.Query().Get("embedded-token"))
			if left := time.Until(time.Unix(token.ValidUntil, 0)); err == nil &&
				(left > most || left < least) {
				err = fmt.Errorf("the token lives for %v", left)
			}
			return err
		})
	}
	life("20", 0, 20*time.Second)
	life("3600", 30*time.Minute, time.Hour)
	tab.Do(chromedp.SetAttributeValue(`button[value="20"]`, "value", "2", chromedp.ByQuery)) // to wait less
	click(`button[value="2"]`)
	says("tokens of 2 s")
	says("papermap-refreshed")
	click("#offline")
	says("You are offline. The dashboard loads when you are back online.")
	tab.Picture("example-offline")
	click("#offline")
	eventually(t, func() error {
		if frame() == "" {
			return errors.New("online again, and no dashboard is shown")
		}
		return nil
	})
}
