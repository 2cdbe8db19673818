package worker_test

import (
	"errors"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"papermap-worker/repo"
	"papermap-worker/repo/pgtest"
	"papermap-worker/worker"
	"papermap-worker/worker/workertest"
)

func TestMetricsAreNamedWellAndExistFromTheStart(t *testing.T) {
	virtual(t, options{}, func(t *testing.T, w *world) {
		samples := w.Workers[0].Samples()
		families, err := w.Workers[0].Metrics().Gather()
		w.Must(err)
		problems, err := promlint.NewWithMetricFamilies(families).Lint()
		if err != nil || len(problems) > 0 {
			t.Errorf("%v, %v", problems, err)
		}
		// From the first time that something happens, rate() and increase() must see it.
		for _, want := range []string{
			"papermap_events_total{outcome=acknowledged,type=tenant.created}",
			"papermap_events_total{outcome=dead,type=usage.sync}",
			"papermap_attempts_total{outcome=unknown}", "papermap_token_requests_total{outcome=ok}",
			"papermap_usage_runs_total{status=failed}",
			"papermap_usage_rows_total{outcome=rejected}",
			"papermap_pauses_total{reason=credentials,workspace_id=ws-b}",
			"papermap_paused{reason=failing,workspace_id=ws-a}", "papermap_tenants{status=held}",
			"papermap_dead_letters{}", "papermap_outbox_unsent{}",
			"papermap_uncertain_attempts{}", "papermap_uncertain_attempt_oldest_seconds{}",
			"papermap_jetstream_pending{consumer=papermap-worker-access}",
			"papermap_jetstream_oldest_pending_seconds{consumer=papermap-worker}",
			"papermap_token_cached_tenants{}",
		} {
			if value, ok := samples[want]; !ok || value != 0 {
				t.Errorf("%s: %v, %v, want 0", want, value, ok)
			}
		}
		for _, want := range []string{"papermap_up{part=nats}", "papermap_up{part=consumers}",
			"papermap_up{part=database}"} {
			if samples[want] != 1 {
				t.Errorf("%s is %v, want 1", want, samples[want])
			}
		}
	})
}

func TestMetricsCountWhatHappens(t *testing.T) {
	virtual(t, options{Config: func(c *worker.Config) { c.Hold = true }}, func(t *testing.T, w *world) {
		w.SetFaults("on=create tenant=held drop=after", "on=create tenant=refused status=422")
		for _, tenant := range []string{"one", "held", "refused"} {
			w.Create(tenant)
		}
		w.Eventually(w.Are(repo.Active, "one"))
		w.Eventually(w.Are(repo.Held, "held"))
		w.Eventually(w.Are(repo.Failed, "refused"))
		worker := w.Workers[0]
		tokens := 0.0
		// that the mapping changed may be heard after the first token, and drops it from memory
		w.Eventually(func() error {
			w.TokenFor(`{"tenant_id":"one"}`)
			tokens++
			if got := worker.Samples(); got["papermap_token_lookups_total{in=memory}"] == 0 {
				return errors.New("no token from memory")
			}
			return nil
		})
		w.Eventually(func() error {
			got := worker.Samples()
			got = filter(got, "papermap_events_total", "papermap_event_seconds", "papermap_attempts_total",
				"papermap_tenants", "papermap_dead", "papermap_uncertain_attempts",
				"papermap_token", "papermap_outbox_unsent", "papermap_api_requests_total{route=create")
			maps.DeleteFunc(got, func(_ string, v float64) bool { return v == 0 })
			diff := cmp.Diff(map[string]float64{
				"papermap_events_total{outcome=acknowledged,type=tenant.created}": 2,
				"papermap_events_total{outcome=dead,type=tenant.created}":         1,
				"papermap_event_seconds{type=tenant.created}":                     3,
				"papermap_attempts_total{outcome=created}":                        1,
				"papermap_attempts_total{outcome=refused}":                        1,
				"papermap_attempts_total{outcome=unknown}":                        1,
				"papermap_api_requests_total{route=create,status=0}":              1,
				"papermap_api_requests_total{route=create,status=200}":            1,
				"papermap_api_requests_total{route=create,status=422}":            1,
				"papermap_tenants{status=active}":                                 1,
				"papermap_tenants{status=held}":                                   1,
				"papermap_tenants{status=failed}":                                 1,
				"papermap_dead_letters{}":                                         1,
				"papermap_uncertain_attempts{}":                                   1,
				"papermap_token_requests_total{outcome=ok}":                       tokens,
				"papermap_token_seconds{}":                                        tokens,
				"papermap_token_lookups_total{in=database}":                       tokens - 1,
				"papermap_token_lookups_total{in=memory}":                         1,
				"papermap_token_cached_tenants{}":                                 1,
			}, got)
			if diff != "" {
				return errors.New(diff)
			}
			return nil
		})
	})
}

func filter(samples map[string]float64, prefixes ...string) map[string]float64 {
	kept := map[string]float64{}
	for name, value := range samples {
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) }) {
			kept[name] = value
		}
	}
	return kept
}

func TestMetricsShowAPauseUntilItEnds(t *testing.T) {
	virtual(t, options{Faults: []string{"status=401"}}, func(t *testing.T, w *world) {
		worker := w.Workers[0]
		shows := func(paused, pauses float64) {
			t.Helper()
			w.Eventually(func() error {
				got := worker.Samples()
				got = filter(got, "papermap_pause")
				maps.DeleteFunc(got, func(_ string, v float64) bool { return v == 0 })
				const labels = "{reason=credentials,workspace_id=ws-a}"
				want := map[string]float64{"papermap_pauses_total" + labels: pauses}
				if paused > 0 {
					want["papermap_paused"+labels] = paused
				}
				if diff := cmp.Diff(want, got); diff != "" {
					return errors.New(diff)
				}
				return nil
			})
		}
		w.Create("one")
		shows(1, 1)
		w.SetFaults()
		w.Eventually(w.Are(repo.Active, "one"))
		shows(0, 1)
	})
}

func TestMetricsComeInTimeWhileNATSIsGone(t *testing.T) {
	virtual(t, options{}, func(t *testing.T, w *world) {
		w.StopNATS()
		worker := w.Workers[0]
		w.Eventually(func() error {
			began := time.Now()
			samples := worker.Samples()
			if took := time.Since(began); took > 8*time.Second {
				t.Fatalf("they took %v", took)
			}
			got := filter(samples, "papermap_up")
			_, pending := samples["papermap_jetstream_pending{consumer=papermap-worker}"]
			if want := map[string]float64{"papermap_up{part=nats}": 0, "papermap_up{part=consumers}": 0,
				"papermap_up{part=database}": 1}; !maps.Equal(got, want) || pending {
				return errors.New(cmp.Diff(want, got))
			}
			return nil
		})
	})
}

// Not in virtual time, in which a bubble waits for PostgreSQL's answer however long that takes.
func TestMetricsComeInTimeWhileTheDatabaseHangs(t *testing.T) {
	t.Parallel()
	w := workertest.Start(t, options{NoWorker: true, Postgres: pgtest.Need(t, postgres)})
	address, err := url.Parse(w.Address)
	w.Must(err)
	var hangs atomic.Bool
	address.Host = hangable(t, address.Host, &hangs)
	w.Address = address.String()
	i := w.StartWorker()
	if up := filter(i.Samples(), "papermap_up"); up["papermap_up{part=database}"] != 1 {
		t.Fatalf("before it hangs: %v", up)
	}
	hangs.Store(true)
	defer hangs.Store(false)
	began := time.Now()
	samples := i.Samples()
	if took := time.Since(began); took > 8*time.Second { // Prometheus waits 10 s
		t.Errorf("they took %v", took)
	}
	if samples["papermap_up{part=database}"] != 0 {
		t.Errorf("%v", filter(samples, "papermap_up"))
	}
	if _, there := samples["papermap_tenants{status=active}"]; there {
		t.Error("what cannot be read is there all the same")
	}
	if _, there := samples["papermap_token_cached_tenants{}"]; !there {
		t.Error("what needs no database is missing")
	}
}

// hangable relays connections to a server; while hangs is set, nothing that comes gets through.
func hangable(t *testing.T, server string, hangs *atomic.Bool) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	pass := func(to, from net.Conn) {
		defer to.Close()
		buffer := make([]byte, 32<<10)
		for {
			n, err := from.Read(buffer)
			if hangs.Load() {
				n = 0 // lost on the way
			}
			if _, writeErr := to.Write(buffer[:n]); err != nil || writeErr != nil {
				return
			}
		}
	}
	go func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", server)
			if err != nil {
				_ = near.Close()
				continue
			}
			go pass(far, near)
			go pass(near, far)
		}
	}()
	return listener.Addr().String()
}
