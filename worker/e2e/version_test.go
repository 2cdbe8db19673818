package e2e

import (
	"errors"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"papermap-worker/worker/cli"
)

// testBuild is what the program says that it was built from.
var testBuild = cli.Build{Version: "1.2.3-test", Commit: "5effc81e2e", Date: "2026-01-31T12:00:00Z"}

func TestVersionIsShownEverywhere(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	var mu sync.Mutex
	agents := map[string]bool{}
	api := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		mu.Lock()
		agents[r.UserAgent()] = true
		mu.Unlock()
		rw.WriteHeader(http.StatusServiceUnavailable)
	}))
	t.Cleanup(api.Close)
	const token = "version-test-token-of-32-characters"
	worker := start(t, append(s.env, "PAPERMAP_API_URL="+api.URL, "CONSOLE_TOKEN="+token), "serve")
	base := "http://" + worker.address(t)
	ready(t, worker.address(t))
	publishCreated(t, s.jetStream(t), "org-1")
	eventually(t, func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(agents) == 0 {
			return errors.New("the worker has not requested anything of Papermap")
		}
		return nil
	})
	mu.Lock()
	if !agents["papermap-worker/"+testBuild.Version] || len(agents) != 1 {
		t.Errorf("user agents %v", agents)
	}
	mu.Unlock()

	_, metrics, err := read(http.Get(base + "/metrics"))
	must(t, err)
	if !matches(`papermap_build_info{commit="5effc81e2e",date="2026-01-31T12:00:00Z",goversion="go1\.[^"]+",`+
		`version="1\.2\.3-test"} 1`, metrics) {
		t.Error("/metrics does not say what the program was built from")
	}
	worker.says(t, `"version":"1.2.3-test","commit":"5effc81e2e"`)

	const foot = ">papermap-worker 1.2.3-test, commit 5effc81e2e of 2026-01-31T12:00:00Z</p>"
	_, login, err := read(http.Get(base + "/login"))
	must(t, err)
	if strings.Contains(login, testBuild.Version) {
		t.Error("the version is shown to visitors who have not logged in")
	}
	jar, err := cookiejar.New(nil)
	must(t, err)
	visitor := &http.Client{Jar: jar}
	_, page, err := read(visitor.PostForm(base+"/login", url.Values{"token": {token}}))
	must(t, err)
	if !strings.Contains(page, foot) {
		t.Errorf("the console's page has no foot with the version:\n%s", tail(page, 300))
	}
}

// The linker sets a variable that does not exist without a word.
func TestDockerfileSetsTheVersion(t *testing.T) {
	t.Parallel()
	set := named(`-X main\.([a-z]+)=\$`, readFile(t, "Dockerfile"))
	_, line, _ := strings.Cut(readFile(t, "main.go"), "\nvar ")
	line, _, _ = strings.Cut(line, " string\n")
	declared := strings.Split(line, ", ")
	if slices.Sort(declared); !slices.Equal(set, declared) {
		t.Errorf("the Dockerfile sets %v, and main.go declares %v", set, declared)
	}
}
