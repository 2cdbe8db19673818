package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

func TestDevShowsTroubledTenantsAlsoAfterRestart(t *testing.T) {
	t.Parallel()
	const months = 7 // of usage
	dir := t.TempDir()
	for _, run := range []string{"first", "again"} {
		p := start(t, nil, "dev", "--dir", dir, "--nats-port", "0", "--simulator-port", "0", "--http-addr",
			"127.0.0.1:0", "--tenants", "150")
		address := p.address(t)
		ready(t, address)
		base := "http://" + address
		page := func(answer *http.Response, err error) string {
			t.Helper()
			answer, text, err := read(answer, err)
			if must(t, err); answer.StatusCode != http.StatusOK {
				t.Fatalf("%s: %s", answer.Request.URL.Path, answer.Status)
			}
			return text
		}
		if run == "first" {
			p.says(t, `"added sample tenants"`)
		}
		for path, wanted := range map[string][]string{
			"/": {
				"150 tenants", `id="w-org-00007"`, `id="w-org-00012"`,
				"created_by is no member of the workspace",
				"possible orphan", "rejected usage rows",
				">8</span>\n      <span class=\"text\"><b>dead letters",
			},
			"/dead": {"API_REFUSED", "INVALID_JSON", "INVALID_FIELD", "UNKNOWN_WORKSPACE"},
		} {
			text := page(http.Get(base + path))
			for _, want := range wanted {
				if !strings.Contains(text, want) {
					t.Errorf("%s run: %s does not say %q", run, path, want)
				}
			}
		}
		if n := strings.Count(page(http.Get(base+"/usage")), `href="/usage?month=`); n != months {
			t.Errorf("%s run: usage of %d months, want %d", run, n, months)
		}
		for status, want := range map[string]int{"held": 2, "suspended": 4, "deleted": 2} {
			text := page(http.Get(base + "/tenants?status=" + status))
			if n := strings.Count(text, `<th scope="row">`); n != want {
				t.Errorf("%s run: %d tenants are %s, want %d", run, n, status, want)
			}
		}
		// The simulator knows the dashboards that it made before the restart.
		preview := page(http.PostForm(base+"/tenant/preview", url.Values{"tenant": {"org-00001"}}))
		frame := regexp.MustCompile(`<iframe src="([^"]+)"`).FindStringSubmatch(preview)
		if frame == nil {
			t.Fatalf("%s run: there is no preview", run)
		}
		text := page(http.Get(strings.ReplaceAll(frame[1], "&amp;", "&")))
		if !strings.Contains(text, "Harbour Trading") {
			t.Errorf("%s run: the preview shows\n%s", run, text)
		}
		p.signal(t, syscall.SIGINT)
		if code := p.wait(t); code != 0 {
			t.Fatal(fmt.Errorf("%s run: exit code %d", run, code))
		}
	}
}
