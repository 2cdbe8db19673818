package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"papermap-worker/events/embedded"
	"papermap-worker/worker/workertest"
)

func TestServeWaitsForPostgres(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	database, err := url.Parse(postgres(t))
	must(t, err)
	server := database.Host
	port, err := workertest.FreePort() // not in use yet
	must(t, err)
	database.Host = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	env := append(s.env, "DATABASE_URL="+database.String())
	const waiting = "PostgreSQL cannot be reached yet; waiting for it"
	stopped := start(t, env, "serve")
	stopped.says(t, waiting)
	stopped.stop(t)

	worker := start(t, env, "serve")
	worker.says(t, waiting)
	relay(t, database.Host, server, nil)
	ready(t, worker.address(t))
	if n := strings.Count(worker.text(), waiting); n != 1 {
		t.Errorf("it logged %d times that it waits", n)
	}
}

// relay relays connections to the address from, or a free one, to the address to, until the test
// ends. It returns the former. edit changes the first line that the server sends.
func relay(t *testing.T, from, to string, edit func(line string) string) string {
	t.Helper()
	listener, err := net.Listen("tcp", from)
	must(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	serve := func(near net.Conn) {
		defer near.Close()
		far, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		defer far.Close()
		go func() {
			_, _ = io.Copy(far, near)
			_ = far.Close()
		}()
		if edit == nil {
			_, _ = io.Copy(near, far)
			return
		}
		for answers := bufio.NewReader(far); err == nil; {
			var line string
			if line, err = answers.ReadString('\n'); strings.HasPrefix(line, "INFO ") { // NATS repeats it
				line = edit(line)
			}
			_, _ = io.WriteString(near, line)
		}
	}
	go func() {
		for near, err := listener.Accept(); err == nil; near, err = listener.Accept() {
			go serve(near)
		}
	}()
	return listener.Addr().String()
}

func TestServeWaitsForNATS(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	port, err := workertest.FreePort() // of a NATS server that is not there yet
	must(t, err)
	nowhere := fmt.Sprintf("NATS_URL=nats://worker:%s@127.0.0.1:%d", passwordCanary, port)
	worker := start(t, append(s.env, nowhere), "serve")
	address := worker.address(t)

	from := time.Now()
	eventually(t, func() error { // three of its tries to connect later, too
		health := start(t, []string{"HTTP_ADDR=" + address}, "health")
		code, text := health.wait(t), health.text()
		if code != 1 || !matches(`"ready":false.*no connection to NATS`, text) {
			t.Fatalf("health without NATS: exit code %d, %s", code, text)
		}
		if waited := time.Since(from); waited < 3*time.Second {
			return fmt.Errorf("waited %v", waited)
		}
		return nil
	})
	for text, limit := range map[string]int{
		"NATS cannot be reached yet; waiting for it": 1, "cannot consume": 2 /* consumers */, `"level":`: 10,
	} {
		if n := strings.Count(worker.text(), text); n < 1 || n > limit {
			t.Errorf("the log says %q %d times, want 1 to %d", text, n, limit)
		}
	}

	s.nats.Close()
	if s.nats, err = embedded.Start(filepath.Join(t.TempDir(), "jetstream"), port); err != nil {
		t.Fatal(err)
	}
	ready(t, address)
	publishCreated(t, s.jetStream(t), "org-1")
	s.status(t, "org-1", "active")
	run(t, []string{"NATS_URL=" + s.nats.URL()}, "token", "org-1", "--url")

	worker.stop(t)
	for _, canary := range []string{secretCanary, passwordCanary} {
		if strings.Contains(worker.text(), canary) {
			t.Errorf("the log shows %s", canary)
		}
	}
}

func TestServeFailsOnTakenAddress(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { taken.Close() })
	worker := start(t, append(s.env, "HTTP_ADDR="+taken.Addr().String()), "serve")
	if code := worker.wait(t); code != 1 || !strings.Contains(worker.text(), "HTTP_ADDR") {
		t.Errorf("exit code %d, want 1 and the variable's name", code)
	}
}

func TestSIGTERMFinishesEventsInFlight(t *testing.T) {
	t.Parallel()
	s := newSystem(t, "delay=3s")
	js := s.jetStream(t)
	worker := start(t, s.env, "serve")
	address := worker.address(t)
	publishCreated(t, js, "org-1")
	s.requests(t, 1)
	worker.signal(t, syscall.SIGTERM)
	draining(t, address)
	publishCreated(t, js, "org-2")
	if code := worker.wait(t); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	made := s.sim.Dashboards()
	if len(made) != 1 {
		t.Fatalf("%d dashboards, want that of org-1 alone", len(made))
	}
	if id := s.status(t, "org-1", "active"); id != made[0].ID {
		t.Errorf("the mapping has dashboard %q, not %q", id, made[0].ID)
	}
	// the event of org-2 waits, or was given back
	if info := consumer(t, js, "papermap-worker"); info.AckFloor.Stream != 1 {
		t.Errorf("events are acknowledged up to %d, not 1", info.AckFloor.Stream)
	}
}

func TestSecondSIGTERMEndsDrain(t *testing.T) {
	t.Parallel()
	s := newSystem(t, "delay=1m")
	worker := start(t, append(s.env, "PAPERMAP_TIMEOUT=19s"), "serve")
	address := worker.address(t)
	publishCreated(t, s.jetStream(t), "org-1")
	s.requests(t, 1)
	worker.signal(t, syscall.SIGTERM)
	draining(t, address)
	worker.signal(t, syscall.SIGTERM)
	if worker.wait(t); !worker.cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled() {
		t.Errorf("ended by itself: %v", worker.cmd.ProcessState)
	}
}

// draining waits until the worker says that it does.
func draining(t *testing.T, address string) {
	t.Helper()
	eventually(t, func() error {
		answer, text, err := read(http.Get("http://" + address + "/readyz"))
		if err == nil && (answer.StatusCode != 503 || !strings.Contains(text, "shutting down")) {
			err = fmt.Errorf("status %d: %s", answer.StatusCode, text)
		}
		return err
	})
}

// requests waits until the simulator has got so many.
func (s *system) requests(t *testing.T, want int) {
	t.Helper()
	eventually(t, func() error {
		if n := len(s.sim.Log()); n < want {
			return fmt.Errorf("%d API requests, not %d", n, want)
		}
		return nil
	})
}

func consumer(t *testing.T, js jetstream.JetStream, name string) *jetstream.ConsumerInfo {
	t.Helper()
	c, err := js.Consumer(t.Context(), "PAPERMAP", name)
	must(t, err)
	info, err := c.Info(t.Context())
	must(t, err)
	return info
}
