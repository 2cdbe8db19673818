package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestDevShowsTenantsInTroubleAndGoesOnAfterARestart(t *testing.T) {
	dir := t.TempDir()
	for _, run := range []string{"first", "again"} {
		p := start(t, nil, "dev", "--dir", dir, "--nats-port", "0", "--simulator-port", "0", "--http-addr", "127.0.0.1:0", "--tenants", "150")
		base := "http://" + p.address(t)
		read := func(request func() (*http.Response, error)) string {
			t.Helper()
			answer, err := request()
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			text, err := io.ReadAll(answer.Body)
			if err != nil || answer.StatusCode != http.StatusOK {
				t.Fatalf("%s: status %d, %v", answer.Request.URL.Path, answer.StatusCode, err)
			}
			return string(text)
		}
		get := func(path string) string {
			t.Helper()
			return read(func() (*http.Response, error) { return http.Get(base + path) })
		}
		if run == "first" {
			eventually(t, time.Minute, func() error {
				if !strings.Contains(p.text(), `"filled it with made-up tenants"`) {
					return errors.New("it is not filled")
				}
				return nil
			})
		}
		page := get("/")
		for _, want := range []string{"150 tenants", `id="w-org-00007"`, `id="w-org-00012"`, "created_by is no member of the workspace", "possible orphans", "rejected usage rows", ">8</span>\n      <span class=\"text\"><b>dead letters"} {
			if !strings.Contains(page, want) {
				t.Errorf("%s run: the overview does not say %q", run, want)
			}
		}
		if page := get("/dead"); !strings.Contains(page, "API_REFUSED") || !strings.Contains(page, "INVALID_JSON") || !strings.Contains(page, "INVALID_FIELD") || !strings.Contains(page, "UNKNOWN_WORKSPACE") {
			t.Errorf("%s run: not all kinds of dead letters", run)
		}
		if n := strings.Count(get("/usage"), `href="/usage?month=`); n != devMonths {
			t.Errorf("%s run: usage of %d months, want %d", run, n, devMonths)
		}
		for status, want := range map[string]int{"held": 2, "suspended": 4, "deleted": 2} {
			if n := strings.Count(get("/tenants?status="+status), `<th scope="row">`); n != want {
				t.Errorf("%s run: %d tenants are %s, want %d", run, n, status, want)
			}
		}
		// The simulator knows the dashboards that it made before the restart.
		page = read(func() (*http.Response, error) {
			return http.PostForm(base+"/tenant/preview", url.Values{"tenant": {devTenant(0)}})
		})
		frame := regexp.MustCompile(`<iframe src="([^"]+)"`).FindStringSubmatch(page)
		if frame == nil {
			t.Fatalf("%s run: there is no preview", run)
		}
		if text := read(func() (*http.Response, error) { return http.Get(strings.ReplaceAll(frame[1], "&amp;", "&")) }); !strings.Contains(text, devName(0)) {
			t.Errorf("%s run: the preview shows\n%s", run, text)
		}
		p.signal(t, syscall.SIGINT)
		if code := p.wait(t, 20*time.Second); code != 0 {
			t.Fatal(fmt.Errorf("%s run: exit code %d", run, code))
		}
	}
}
