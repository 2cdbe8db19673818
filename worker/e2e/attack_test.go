package e2e

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// attackFull is how often each attack of TestAttacksTakeNothingFromOthers is multiplied.
var attackFull = flag.Int("attack.full", 1, "multiplies the attacks")

// maxGrowth is how much memory an attack may make the worker use, in MiB.
const maxGrowth = 100

// victim is a worker as it is released, on a NATS server with the documented users, and a backend that
// asks for tokens while something else goes on.
type victim struct {
	*natsJob
	backend, publisher *nats.Conn
	console            *operatorClient
}

// releasedProgram is the program without what the test binary adds to it, such as the race detector.
func releasedProgram(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "papermap-worker")
	if out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

func newVictim(t *testing.T) *victim {
	t.Helper()
	const token = "token-of-the-console-1234567890"
	v := &victim{natsJob: &natsJob{server: startNATS(t, "server.conf"), system: newSystem(t)}}
	env := append(v.system.env, v.env("worker")...)
	v.worker = startProgram(t, releasedProgram(t), append(env, "LOG_LEVEL=info", "CONSOLE_TOKEN="+token,
		"NATS_REPLY_PREFIXES=_INBOX_backend,_INBOX_tenant.{tenant}"), "serve")
	v.worker.says(t, `"stream":"PAPERMAP_DEAD"`)
	v.publisher, v.backend = natsDial(t, v.server, "publisher"), natsDial(t, v.server, "backend")
	publishStored(t, v.publisher, "tenant.created", `{"tenant_id":"org-123","name":"Acme Corp"}`)
	eventually(t, func() error { return hasStatus(v.backend, "org-123", "active") })
	jar, err := cookiejar.New(nil)
	must(t, err)
	v.console = &operatorClient{t, v.worker.address(t), http.Client{Jar: jar}, ""}
	v.console.do("POST", "/login", url.Values{"token": {token}})
	return v
}

// suffers runs an attack. Meanwhile a token is asked for again and again, and each must come; the
// worker's memory must not grow by more than maxGrowth.
func (v *victim) suffers(t *testing.T, attack func(t *testing.T)) {
	t.Helper()
	before := v.memory(t, "VmRSS")
	// This resets VmHWM.
	must(t, os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", v.worker.cmd.Process.Pid), []byte("5"), 0))
	request := []byte(`{"tenant_id":"org-123"}`)
	over, address := make(chan struct{}), v.worker.address(t)
	var asked, failed, notReady int
	var slowest time.Duration
	var asking sync.WaitGroup
	asking.Go(func() {
		pause := time.NewTicker(20 * time.Millisecond)
		defer pause.Stop()
		for {
			start := time.Now()
			reply, err := v.backend.Request("papermap.rpc.embed-token", request, patience)
			slowest = max(slowest, time.Since(start))
			if asked++; err != nil || !bytes.Contains(reply.Data, []byte(`"token":"`)) {
				failed++
				t.Errorf("a token did not come: %v, %v", reply, err)
			}
			answer, _, err := read(http.Get("http://" + address + "/readyz"))
			if err != nil || answer.StatusCode != http.StatusOK {
				notReady++
				t.Errorf("not ready: %v, %v", answer, err)
			}
			select {
			case <-over:
				return
			case <-pause.C:
			}
		}
	})
	attack(t)
	close(over)
	asking.Wait()
	growth := v.memory(t, "VmHWM") - before
	t.Logf("memory %d MiB, at most %+d MiB; of %d tokens asked for %d failed, of as many looks at /readyz "+
		"%d; the slowest token took %v", before, growth, asked, failed, notReady,
		slowest.Round(time.Millisecond))
	if growth > maxGrowth {
		t.Errorf("the attack took %d MiB of memory, more than %d", growth, maxGrowth)
	}
	for _, connection := range []string{"events", "requests"} {
		const lost = `"lost the connection to NATS; reconnecting","connection":"`
		if strings.Contains(v.worker.text(), lost+connection+`"`) {
			t.Errorf("the worker lost its connection for %s", connection)
		}
	}
}

// memory is a number of the worker's status in MiB: VmRSS, or its peak VmHWM.
func (v *victim) memory(t *testing.T, name string) int {
	t.Helper()
	kib, running := memoryOf(v.worker, name)
	if !running {
		t.Fatal("the worker is not running")
	}
	return int(kib >> 10)
}

// deadLetters waits until there are as many dead letters.
func (v *victim) deadLetters(t *testing.T, n int) {
	t.Helper()
	eventually(t, func() error {
		_, metrics, err := read(http.Get("http://" + v.worker.address(t) + "/metrics"))
		if err == nil && !strings.Contains(metrics, fmt.Sprintf("\npapermap_dead_letters %d\n", n)) {
			err = errors.New("not all are dead letters")
		}
		return err
	})
}

// publishAll publishes events to the stream, many at a time, and returns when all are stored.
func (v *victim) publishAll(t *testing.T, eventType string, n int, data func() []byte) {
	t.Helper()
	js, err := v.publisher.JetStream(nats.PublishAsyncMaxPending(64))
	must(t, err)
	for range n {
		_, err := js.PublishAsync("papermap.events."+eventType, data(), nats.StallWait(patience))
		must(t, err)
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-time.After(patience):
		t.Fatal("the events are not stored")
	}
}

// The attacks that worked once: each made the worker use hundreds of MiB, or refuse tokens to others.
func TestAttacksTakeNothingFromOthers(t *testing.T) {
	v, times := newVictim(t), *attackFull
	large := strings.Repeat("x", 1000<<10)
	dead := 0
	show := func(t *testing.T, path string, want string) {
		t.Helper()
		if status, body := v.console.do("GET", path, nil); status != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d, without %q", path, status, want)
		}
	}
	t.Run("deep JSON, shown", func(t *testing.T) {
		v.suffers(t, func(t *testing.T) {
			deep := `{"x":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + `}`
			v.publishAll(t, "tenant.deleted", 1, func() []byte { return []byte(deep) })
			dead++
			v.deadLetters(t, dead)
			for range 3 * times {
				show(t, "/dead/1", "[[[[[[")
			}
		})
	})
	t.Run("large events that are refused", func(t *testing.T) {
		v.suffers(t, func(t *testing.T) {
			n := 30 * times
			v.publishAll(t, "tenant.deleted", n, func() []byte { return fmt.Appendf(nil, `{"x":%q}`, large) })
			dead += n
			v.deadLetters(t, dead)
		})
	})
	t.Run("dead letters, listed", func(t *testing.T) {
		v.suffers(t, func(t *testing.T) {
			var all sync.WaitGroup
			for range 4 {
				all.Go(func() {
					for range times {
						show(t, "/dead", `href="/dead/1"`)
					}
				})
			}
			all.Wait()
		})
	})
	t.Run("large events of a tenant, handled and shown", func(t *testing.T) {
		v.suffers(t, func(t *testing.T) {
			v.publishAll(t, "tenant.suspended", 30*times, func() []byte {
				return fmt.Appendf(nil, `{"tenant_id":"org-large","unknown":%q}`, large)
			})
			eventually(t, func() error { return refusedWith(v.backend, "org-large", "TENANT_SUSPENDED") })
			show(t, "/tenant?id=org-large", "tenant.suspended")
		})
	})
	t.Run("large requests of a tenant", func(t *testing.T) {
		v.suffers(t, func(t *testing.T) {
			tenant := natsDial(t, v.server, "tenant-org-123")
			for range 100 * times {
				must(t, tenant.PublishRequest("papermap.rpc.embed-token.org-123", "_INBOX_tenant.org-123.x",
					[]byte(large)))
			}
			must(t, tenant.FlushTimeout(patience))
		})
	})
}
