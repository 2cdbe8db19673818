package proof_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"papermap-worker/repo/pgtest"
)

// The benchmarks measure the token service from outside: worker, NATS server and whatever is
// compared with them are processes of their own. The figures depend on the machine; the ratios of
// one run, in which the servers take turns, depend on it less.

// tokensOf starts a worker with active tenants org-0000000 and so on, and waits for a token.
// database is the address of a PostgreSQL database; empty for SQLite.
func tokensOf(b *testing.B, database string, tenants int) (*system, *process) {
	b.Helper()
	s := newSystem(b, "bench", database, 1, 1)
	_, err := s.db.Migrate(b.Context())
	s.must(err)
	_, err = s.sql.ExecContext(b.Context(), s.sql.Rebind(`
		INSERT INTO tenant_dashboards (tenant_id, workspace_id, dashboard_id, title, status, stage,
			created_event, created_at, updated_at)
		WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?)
		SELECT 'org-' || substr(CAST(10000000 + i AS TEXT), 2), ?,
			'b4a7a2f8-1c55-4a6e-8f0e-' || substr(CAST(1000000000000 + i AS TEXT), 2), 'Dashboard',
			'active', 'active', 1, '2025-01-01T00:00:00.000Z', '2025-01-01T00:00:00.000Z' FROM n`),
		tenants, workspace.ID)
	s.must(err)
	worker, err := s.startWorker("worker0", "LOG_LEVEL=info", "HTTP_ADDR=127.0.0.1:0")
	s.must(err)
	b.Cleanup(func() { worker.terminate(b) })
	s.waitForToken()
	return s, worker
}

func tokenRequest(tenant int) []byte { return fmt.Appendf(nil, `{"tenant_id":"org-%07d"}`, tenant) }

// isToken returns an error unless the answer has a token.
func isToken(answer []byte) error {
	if !bytes.HasPrefix(answer, []byte(`{"token":"`)) {
		return fmt.Errorf("an answer is %s", answer)
	}
	return nil
}

// waitForToken waits until the worker answers, and returns the answer.
func (s *system) waitForToken() (answer []byte) {
	s.t.Helper()
	eventually(s.t, 30*time.Second, func() error {
		reply, err := s.nc.Request(subjects.RPC("embed-token"), tokenRequest(0), time.Second)
		if err != nil {
			return err
		}
		answer = reply.Data
		return isToken(answer)
	})
	return answer
}

// startRole starts this test binary as one of the processes in playRole, and returns it with what
// it prints when it is ready.
func (s *system) startRole(role string, args ...string) (*process, string) {
	s.t.Helper()
	binary, err := os.Executable()
	s.must(err)
	env := []string{roleVariable + "=" + strings.Join(append([]string{role}, args...), "|")}
	p, err := launch(filepath.Join(s.dir, role+".log"), binary, env)
	s.must(err)
	s.t.Cleanup(p.kill)
	return p, s.waitForOutput(p, "ready ", "\n")
}

// waitForOutput waits until the process has written something, and returns what follows up to end.
func (s *system) waitForOutput(p *process, what, end string) (text string) {
	s.t.Helper()
	eventually(s.t, time.Minute, func() error {
		_, rest, _ := strings.Cut(p.output(), what)
		var ok bool
		if text, _, ok = strings.Cut(rest, end); !ok {
			return fmt.Errorf("no %q in the output of %s:\n%s", what, p.cmd.Path, p.tail(2000))
		}
		return nil
	})
	return text
}

// BenchmarkTokens compares the worker with a bare micro endpoint and with an HTTP server that mints
// the same tokens. Each iteration is a round of one second for each of them. The medians are
// reported:
//
//	go test ./worker/proof -run '^$' -bench Tokens -benchtime 5x
func BenchmarkTokens(b *testing.B) {
	const tenants, each = 1000, time.Second
	s, worker := tokensOf(b, "", tenants)
	micro, _ := s.startRole("micro", s.nats[0].url(), strconv.Itoa(len(s.waitForToken())))
	web, address := s.startRole("http", strconv.Itoa(tenants))
	servers := []struct {
		name string
		*process
		ask func(inFlight int) ([]time.Duration, error)
	}{
		{"worker", worker, func(n int) ([]time.Duration, error) {
			return s.askNATS(subjects.RPC("embed-token"), n, each, tenants)
		}},
		{
			"micro", micro,
			func(n int) ([]time.Duration, error) { return s.askNATS("bench.bare", n, each, tenants) },
		},
		{"http", web, func(n int) ([]time.Duration, error) { return s.askHTTP(address, n, each, tenants) }},
	}
	for _, inFlight := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("inflight=%d", inFlight), func(b *testing.B) {
			figures := map[string][]float64{}
			round := func() {
				rates := map[string]float64{}
				for _, server := range servers {
					before := cpuTime(b, server.process)
					latencies, err := server.ask(inFlight)
					if err != nil {
						b.Fatalf("%s: %v", server.name, err)
					}
					slices.Sort(latencies)
					n := len(latencies)
					rates[server.name] = float64(n) / each.Seconds()
					for unit, value := range map[string]float64{
						"/s":      rates[server.name],
						"-p50-µs": micros(latencies[n/2]),
						"-p99-µs": micros(latencies[n*99/100]),
						"-cpu-µs": micros(cpuTime(b, server.process)-before) / float64(n),
						"-ratio":  rates["worker"] / rates[server.name], // of the worker's rate to this one
					} {
						figures[server.name+unit] = append(figures[server.name+unit], value)
					}
				}
			}
			round() // warms up
			clear(figures)
			for b.Loop() {
				round()
			}
			delete(figures, "worker-ratio")
			b.ReportMetric(0, "ns/op")
			for unit, values := range figures {
				slices.Sort(values)
				b.ReportMetric(values[len(values)/2], unit)
				if strings.HasSuffix(unit, "-ratio") {
					b.ReportMetric(values[0], unit+"-min")
					b.ReportMetric(values[len(values)-1], unit+"-max")
				}
			}
		})
	}
}

// BenchmarkTokenMemory reports the worker's anonymous memory, which is all that is not a page of a
// file: idle, when it has minted a token for each tenant, and the most while it did. Each iteration
// mints once more for each.
func BenchmarkTokenMemory(b *testing.B) {
	for _, name := range []string{"sqlite", "postgres"} {
		for _, tenants := range []int{1, 100_000} {
			b.Run(fmt.Sprintf("%s/tenants=%d", name, tenants), func(b *testing.B) {
				database := ""
				if name == "postgres" {
					database = pgtest.Need(b, postgres)
				}
				s, worker := tokensOf(b, database, tenants)
				const anonymous = "RssAnon"
				time.Sleep(5 * time.Second) // what the start has left
				idle, most := memory(b, worker, anonymous), 0.0
				for b.Loop() {
					for i := 0; i < tenants; i += 256 {
						s.must(s.askEach(i, min(i+256, tenants)))
						most = max(most, memory(b, worker, anonymous))
					}
				}
				b.ReportMetric(idle, "idle-MiB")
				b.ReportMetric(memory(b, worker, anonymous), "MiB")
				b.ReportMetric(most, "most-MiB")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// BenchmarkTokenFlood sends five times as many requests as the worker can answer, for 20 s, and
// reports how other requests fare meanwhile, the memory, and how soon a token comes afterwards.
func BenchmarkTokenFlood(b *testing.B) {
	s, worker := tokensOf(b, "", 1000)
	ready := "http://" + s.waitForOutput(worker, `"msg":"serving HTTP","address":"`, `"`) + "/readyz"
	for b.Loop() {
		latencies, err := s.askNATS(subjects.RPC("embed-token"), 256, 5*time.Second, 1000)
		s.must(err)
		capacity := len(latencies) / 5
		flood, _ := s.startRole("flood", s.nats[0].url(), strconv.Itoa(5*capacity), "20s")
		asked, answered, slowest := map[string]float64{}, map[string]float64{}, time.Duration(0)
		count := func(what string, err error, took time.Duration) {
			if asked[what]++; err == nil {
				answered[what]++
				slowest = max(slowest, took)
			}
		}
		for !flood.wait(b.Context(), 100*time.Millisecond) {
			for what, want := range map[string]string{"dashboard": `"dashboard_id":"`, "usage": `"usage":`} {
				start := time.Now()
				reply, err := s.nc.Request(subjects.RPC(what), tokenRequest(1), 2*time.Second)
				if err == nil && !strings.Contains(string(reply.Data), want) {
					err = errors.New("refused")
				}
				count(what, err, time.Since(start))
			}
			start := time.Now()
			err := get(ready)
			count("readyz", err, time.Since(start))
		}
		end := time.Now()
		s.waitForToken()
		b.ReportMetric(micros(time.Since(end))/1000, "recovery-ms")
		b.ReportMetric(float64(capacity), "capacity/s")
		b.ReportMetric(micros(slowest)/1000, "slowest-ms")
		for what, n := range asked {
			b.ReportMetric(100*answered[what]/n, what+"-answered-%")
		}
	}
	b.ReportMetric(memory(b, worker, "VmHWM"), "peak-MiB")
	b.ReportMetric(memory(b, worker, "VmRSS"), "MiB")
	b.ReportMetric(status(b, worker, "Threads"), "threads")
	b.ReportMetric(0, "ns/op")
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func get(url string) error {
	client := http.Client{Timeout: 2 * time.Second}
	resp, err := client.Get(url)
	if err == nil {
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			err = errors.New(resp.Status)
		}
	}
	return err
}

// memory is a number of the process's status in MiB, such as RssAnon.
func memory(b *testing.B, p *process, name string) float64 { return status(b, p, name) / 1024 }

// status reads a number from the process's /proc status file.
func status(b *testing.B, p *process, name string) (n float64) {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), name+":")
	if _, err := fmt.Sscan(rest, &n); err != nil {
		b.Fatal(err)
	}
	return n
}

// cpuTime is the processor time that the process has used, to a hundredth of a second.
func cpuTime(b *testing.B, p *process) time.Duration {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	var user, system int64 // the 14th and 15th field, in ticks; the 2nd is a name in parentheses
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
		b.Fatal(err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}

// askEach requests a token for each tenant, all at once.
func (s *system) askEach(from, to int) error {
	results := make(chan error, to-from)
	for i := from; i < to; i++ {
		go func() {
			reply, err := s.nc.Request(subjects.RPC("embed-token"), tokenRequest(i), 10*time.Second)
			if err == nil {
				err = isToken(reply.Data)
			}
			results <- err
		}()
	}
	var err error
	for range to - from {
		err = errors.Join(err, <-results)
	}
	return err
}

// askNATS keeps inFlight requests in flight: each answer sends the next request. One connection and
// one goroutine, so that asking costs little compared to answering.
func (s *system) askNATS(subject string, inFlight int, each time.Duration, tenants int) ([]time.Duration,
	error) {
	nc, err := nats.Connect(s.nats[0].url())
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	inbox, answers := nats.NewInbox(), make(chan *nats.Msg, 2*inFlight)
	if _, err := nc.ChanSubscribe(inbox+".*", answers); err != nil {
		return nil, err
	}
	requests, sent := make([][]byte, tenants), make([]time.Time, inFlight)
	for i := range requests {
		requests[i] = tokenRequest(i)
	}
	replies, next := make([]string, inFlight), 0
	send := func(slot int) {
		sent[slot] = time.Now()
		_ = nc.PublishRequest(subject, replies[slot], requests[next%tenants]) // a lost one shows as a timeout
		next++
	}
	latencies := make([]time.Duration, 0, 1<<18)
	start, timeout := time.Now(), time.After(each+10*time.Second)
	for slot := range inFlight {
		replies[slot] = inbox + "." + strconv.Itoa(slot)
		send(slot)
	}
	for open := inFlight; open > 0; {
		select {
		case m := <-answers:
			slot, _ := strconv.Atoi(m.Subject[len(inbox)+1:])
			latencies = append(latencies, time.Since(sent[slot]))
			if err := isToken(m.Data); err != nil || len(m.Header) > 0 {
				return nil, fmt.Errorf("headers %v, %w", m.Header, err)
			}
			if time.Since(start) < each {
				send(slot)
			} else {
				open--
			}
		case <-timeout:
			return nil, errors.New("an answer is missing")
		}
	}
	return latencies, nil
}

// askHTTP does the same over HTTP, with a connection and a goroutine for each request in flight, as
// its clients have.
func (s *system) askHTTP(url string, inFlight int, each time.Duration, tenants int) ([]time.Duration, error) {
	client := &http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: inFlight}, Timeout: 10 * time.Second,
	}
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithCancelCause(s.t.Context())
	defer cancel(nil)
	all := make([][]time.Duration, inFlight)
	var next atomic.Int64
	var group sync.WaitGroup
	start := time.Now()
	for i := range inFlight {
		group.Go(func() {
			for time.Since(start) < each && ctx.Err() == nil {
				sent := time.Now()
				resp, err := client.Post(url, "application/json",
					bytes.NewReader(tokenRequest(int(next.Add(1))%tenants)))
				var text []byte
				if err == nil {
					text, err = io.ReadAll(resp.Body)
					_ = resp.Body.Close()
				}
				if err = cmp.Or(err, isToken(text)); err != nil {
					cancel(err)
					return
				}
				all[i] = append(all[i], time.Since(sent))
			}
		})
	}
	group.Wait()
	return slices.Concat(all...), context.Cause(ctx)
}
