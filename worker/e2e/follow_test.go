package e2e

import (
	"errors"
	"net"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// A person, or a script without a terminal, sees why an event waits, and can stop waiting.
func TestPublishWaitSaysThatPapermapIsPausedAndCanBeInterrupted(t *testing.T) {
	t.Parallel()
	s := newSystem(t, "on=create status=401", "on=usage status=401")
	env := append(s.env, "HTTP_ADDR=127.0.0.1:0")
	worker := startReady(t, env)
	env = append(s.env, "HTTP_ADDR="+worker.address(t))
	for _, args := range [][]string{
		{"tenant-created", "org-1", "--name", "Acme", "--wait"}, {"usage-sync", "--wait"},
	} {
		p := start(t, env, append([]string{"publish"}, args...)...)
		p.says(t, "waiting: workspace ws-test is paused: Papermap refuses the credentials")
		p.signal(t, syscall.SIGINT)
		if code := p.wait(t); code != 130 {
			t.Errorf("%s: exit code %d", args[0], code)
		}
		if text := p.text(); !strings.Contains(text, "papermap-worker: interrupted: the ") ||
			strings.Contains(text, "context canceled") {
			t.Errorf("%s: it ends with\n%s", args[0], text)
		}
	}
	worker.stop(t)
}

// The ports that dev needs and cannot have are named at once, each with its flag.
func TestDevNamesPortsThatAreTaken(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer taken.Close()
	addr := taken.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	dir := t.TempDir()
	for flag, args := range map[string][]string{
		"--nats-port":      {"--nats-port", port, "--simulator-port", "0", "--http-addr", "127.0.0.1:0"},
		"--simulator-port": {"--nats-port", "0", "--simulator-port", port, "--http-addr", "127.0.0.1:0"},
		"--http-addr":      {"--nats-port", "0", "--simulator-port", "0", "--http-addr", addr},
	} {
		p := start(t, nil, append([]string{"dev", "--dir", dir + flag}, args...)...)
		if code := p.wait(t); code != 1 {
			t.Errorf("%s: exit code %d", flag, code)
		}
		if want := addr + " is in use by another program"; !strings.Contains(p.text(), want) ||
			!strings.Contains(p.text(), flag+"=") {
			t.Errorf("%s: it says %s", flag, p.text())
		}
	}
}

// After the log of hundreds of tenants the guide is on the screen again, with a command that works.
func TestDevShowsItsGuideBelowTheLogOfItsTenants(t *testing.T) {
	t.Parallel()
	p := start(t, nil, "dev", "--dir", t.TempDir(), "--nats-port", "0", "--simulator-port", "0",
		"--http-addr", "127.0.0.1:0", "--tenants", "30")
	p.says(t, `"added sample tenants"`)
	guide := regexp.MustCompile(`(?s)added sample tenants.*console +http://127\.0\.0\.1:.*` +
		`papermap-worker tenants list`)
	eventually(t, func() error {
		if !guide.MatchString(p.text()) {
			return errors.New("there is no guide below the log")
		}
		return nil
	})
	p.signal(t, syscall.SIGINT)
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
