package main

import (
	"errors"
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
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo/pgtest"
)

func TestServeWaitsForPostgresAndSaysSoOnce(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	database, err := url.Parse(pgtest.ForTest(t))
	if err != nil {
		t.Fatal(err)
	}
	server := database.Host
	port, err := freePort() // where nobody listens yet
	if err != nil {
		t.Fatal(err)
	}
	database.Host = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	env := append(s.env, "DATABASE_URL="+database.String())
	const waiting = "PostgreSQL cannot be reached yet; waiting for it"
	said := func(p *process) func() error {
		return func() error {
			if !strings.Contains(p.text(), waiting) {
				return fmt.Errorf("it said %s", p.text())
			}
			return nil
		}
	}

	stopped := start(t, env, "serve")
	eventually(t, 10*time.Second, said(stopped))
	stopped.signal(t, syscall.SIGTERM)
	if code := stopped.wait(t, 10*time.Second); code != 0 {
		t.Errorf("exit code %d after SIGTERM while it waited", code)
	}

	worker := start(t, env, "serve")
	eventually(t, 10*time.Second, said(worker))
	forward(t, database.Host, server)
	address := worker.address(t)
	eventually(t, 15*time.Second, func() error {
		if code, text := health(t, address); code != 0 {
			return errors.New(text)
		}
		return nil
	})
	if n := strings.Count(worker.text(), waiting); n != 1 {
		t.Errorf("it said %d times that it waits", n)
	}
}

// forward connects whoever connects to from with to, until the test ends.
func forward(t *testing.T, from, to string) {
	t.Helper()
	listener, err := net.Listen("tcp", from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				_ = near.Close()
				continue
			}
			for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
				go func() {
					_, _ = io.Copy(way[0], way[1])
					_ = way[0].Close()
				}()
			}
		}
	}()
}

func TestServeWaitsForNATSAndSaysSoOnce(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	port, err := freePort() // of a NATS server that is not there yet
	if err != nil {
		t.Fatal(err)
	}
	worker := start(t, append(s.env, fmt.Sprintf("NATS_URL=nats://worker:%s@127.0.0.1:%d", passwordCanary, port)), "serve")
	address := worker.address(t)

	from := time.Now()
	eventually(t, 10*time.Second, func() error { // three of its tries to connect later, too
		if code, text := health(t, address); code != 1 || !strings.Contains(text, `"ready":false`) || !strings.Contains(text, "no connection to NATS") {
			t.Fatalf("health without NATS: exit code %d, %s", code, text)
		}
		if waited := time.Since(from); waited < 3*time.Second {
			return fmt.Errorf("waited %v", waited)
		}
		return nil
	})
	for text, most := range map[string]int{"NATS cannot be reached yet; waiting for it": 1, "cannot consume": 2 /* consumers */, `"level":`: 10} {
		if n := strings.Count(worker.text(), text); n < 1 || n > most {
			t.Errorf("the log says %q %d times, want 1 to %d", text, n, most)
		}
	}

	s.nats.Close()
	if s.nats, err = embedded.Start(filepath.Join(t.TempDir(), "jetstream"), port); err != nil {
		t.Fatal(err)
	}
	eventually(t, 15*time.Second, func() error {
		if code, text := health(t, address); code != 0 {
			return errors.New(text)
		}
		return nil
	})
	publishCreated(t, s.jetStream(t), "org-1")
	s.status(t, s.openSQL(t), "org-1", "active")
	reply := start(t, []string{"NATS_URL=" + s.nats.URL()}, "token", "org-1", "--url")
	if code := reply.wait(t, 10*time.Second); code != 0 {
		t.Errorf("token: exit code %d, %s", code, reply.text())
	}

	worker.signal(t, syscall.SIGTERM)
	if code := worker.wait(t, 15*time.Second); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	for _, canary := range []string{secretCanary, passwordCanary} {
		if strings.Contains(worker.text(), canary) {
			t.Errorf("the log shows %s", canary)
		}
	}
}

func TestServeFailsWhenItsAddressIsTaken(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() })
	worker := start(t, append(s.env, "HTTP_ADDR="+taken.Addr().String()), "serve")
	if code := worker.wait(t, 10*time.Second); code != 1 || !strings.Contains(worker.text(), "HTTP_ADDR") {
		t.Errorf("exit code %d, want 1 and the variable's name", code)
	}
}

func TestSIGTERMFinishesWhatIsInHand(t *testing.T) {
	t.Parallel()
	s := newSystem(t, simulator.Fault{Delay: 3 * time.Second})
	js := s.jetStream(t)
	worker := start(t, s.env, "serve")
	address := worker.address(t)
	publishCreated(t, js, "org-1")
	s.requests(t, 1)
	worker.signal(t, syscall.SIGTERM)
	draining(t, address)
	publishCreated(t, js, "org-2")
	if code := worker.wait(t, 20*time.Second); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	made := s.sim.Dashboards()
	if len(made) != 1 {
		t.Fatalf("%d dashboards, want that of org-1 alone", len(made))
	}
	if id := s.status(t, s.openSQL(t), "org-1", "active"); id != made[0].ID {
		t.Errorf("the mapping has dashboard %q, not %q", id, made[0].ID)
	}
	if info := consumer(t, js, "papermap-worker"); info.AckFloor.Stream != 1 { // the event of org-2 waits, or was given back
		t.Errorf("events are acknowledged up to %d, not 1", info.AckFloor.Stream)
	}
}

func TestSecondSIGTERMEndsADrainAtOnce(t *testing.T) {
	t.Parallel()
	s := newSystem(t, simulator.Fault{Delay: time.Minute})
	worker := start(t, append(s.env, "PAPERMAP_TIMEOUT=19s"), "serve")
	address := worker.address(t)
	publishCreated(t, s.jetStream(t), "org-1")
	s.requests(t, 1)
	worker.signal(t, syscall.SIGTERM)
	draining(t, address)
	worker.signal(t, syscall.SIGTERM)
	if worker.wait(t, 3*time.Second); !worker.cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled() {
		t.Errorf("ended by itself: %v", worker.cmd.ProcessState)
	}
}

func publishCreated(t *testing.T, js jetstream.JetStream, tenant string) {
	t.Helper()
	data := fmt.Sprintf(`{"tenant_id":%q,"name":"Company"}`, tenant)
	if _, err := js.Publish(t.Context(), "papermap.events.tenant.created", []byte(data)); err != nil {
		t.Fatal(err)
	}
}

// draining waits until the worker says that it does.
func draining(t *testing.T, address string) {
	t.Helper()
	eventually(t, 5*time.Second, func() error {
		answer, err := http.Get("http://" + address + "/readyz")
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if text, _ := io.ReadAll(answer.Body); answer.StatusCode != 503 || !strings.Contains(string(text), "the worker is draining") {
			return fmt.Errorf("status %d: %s", answer.StatusCode, text)
		}
		return nil
	})
}

// requests waits until the simulator has got so many.
func (s *system) requests(t *testing.T, want int) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		if n := len(s.sim.Log()); n < want {
			return fmt.Errorf("%d API requests, not %d", n, want)
		}
		return nil
	})
}

func consumer(t *testing.T, js jetstream.JetStream, name string) *jetstream.ConsumerInfo {
	t.Helper()
	c, err := js.Consumer(t.Context(), "PAPERMAP", name)
	if err != nil {
		t.Fatal(err)
	}
	info, err := c.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return info
}
