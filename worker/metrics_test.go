package worker_test

import (
	"log/slog"
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
	dto "github.com/prometheus/client_model/go"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/repo/pgtest"
	"papermap-worker/worker"
)

// values gathers a worker's metrics: each sample's value by its name and labels, and the families. A histogram's value is its count.
func values(t *testing.T, w *worker.Worker) (map[string]float64, []*dto.MetricFamily) {
	t.Helper()
	families, err := w.Metrics().Gather()
	if err != nil {
		t.Fatal(err)
	}
	samples := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			samples[f.GetName()+"{"+strings.Join(labels, ",")+"}"] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return samples, families
}

func TestMetricsAreNamedWellAndThereFromTheBeginning(t *testing.T) {
	t.Parallel()
	w := start(t, options{})
	samples, families := values(t, w.workers[0].Worker)
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	// From the first time that something happens, rate() and increase() must see it.
	for _, want := range []string{
		"papermap_events_total{outcome=acknowledged,type=tenant.created}", "papermap_events_total{outcome=dead,type=usage.sync}",
		"papermap_attempts_total{outcome=unknown}", "papermap_token_requests_total{outcome=ok}", "papermap_usage_runs_total{status=failed}",
		"papermap_usage_rows_total{outcome=rejected}", "papermap_pauses_total{reason=credentials,workspace_id=ws-b}",
		"papermap_paused{reason=failing,workspace_id=ws-a}", "papermap_tenants{status=held}", "papermap_dead_letters{}", "papermap_outbox_unsent{}",
		"papermap_uncertain_attempts{}", "papermap_uncertain_attempt_oldest_seconds{}", "papermap_jetstream_pending{consumer=papermap-worker-access}",
		"papermap_jetstream_oldest_pending_seconds{consumer=papermap-worker}", "papermap_token_cached_tenants{}",
	} {
		if value, ok := samples[want]; !ok || value != 0 {
			t.Errorf("%s: %v, %v, want 0", want, value, ok)
		}
	}
	for _, want := range []string{"papermap_up{part=nats}", "papermap_up{part=consumers}", "papermap_up{part=database}"} {
		if samples[want] != 1 {
			t.Errorf("%s is %v, want 1", want, samples[want])
		}
	}
}

func TestMetricsCountWhatHappens(t *testing.T) {
	t.Parallel()
	w := start(t, options{config: func(c *worker.Config) { c.Hold = true }})
	w.setFaults("on=create tenant=held drop=after", "on=create tenant=refused status=422")
	for _, tenant := range []string{"one", "held", "refused"} {
		w.create(tenant)
	}
	eventually(t, soon, w.are(repo.Active, "one"))
	eventually(t, soon, w.are(repo.Held, "held"))
	eventually(t, soon, w.are(repo.Failed, "refused"))
	worker := w.workers[0].Worker
	tokens := 0.0
	eventually(t, soon, func() error { // that the mapping changed may be heard after the first token, and drops it from memory
		w.token(`{"tenant_id":"one"}`)
		tokens++
		if got, _ := values(t, worker); got["papermap_token_lookups_total{in=memory}"] == 0 {
			return errText("no token from memory")
		}
		return nil
	})
	eventually(t, soon, func() error {
		got, _ := values(t, worker)
		got = filter(got, "papermap_events_total", "papermap_event_seconds", "papermap_attempts_total", "papermap_tenants", "papermap_dead", "papermap_uncertain_attempts",
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
			return errText(diff)
		}
		return nil
	})
}

type errText string

func (e errText) Error() string { return string(e) }

func filter(samples map[string]float64, prefixes ...string) map[string]float64 {
	kept := map[string]float64{}
	for name, value := range samples {
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) }) {
			kept[name] = value
		}
	}
	return kept
}

func TestAPauseIsCountedOnceAndShowsUntilItEnds(t *testing.T) {
	t.Parallel()
	w := start(t, options{faults: []string{"status=401"}})
	worker := w.workers[0].Worker
	shows := func(paused, pauses float64) {
		t.Helper()
		eventually(t, soon, func() error {
			got, _ := values(t, worker)
			got = filter(got, "papermap_pause")
			maps.DeleteFunc(got, func(_ string, v float64) bool { return v == 0 })
			want := map[string]float64{"papermap_pauses_total{reason=credentials,workspace_id=ws-a}": pauses}
			if paused > 0 {
				want["papermap_paused{reason=credentials,workspace_id=ws-a}"] = paused
			}
			if diff := cmp.Diff(want, got); diff != "" {
				return errText(diff)
			}
			return nil
		})
	}
	w.create("one")
	shows(1, 1)
	w.setFaults()
	eventually(t, soon, w.are(repo.Active, "one"))
	shows(0, 1)
}

func TestMetricsComeInTimeWhileNATSIsGone(t *testing.T) {
	t.Parallel()
	w := start(t, options{})
	w.nats.Close()
	worker := w.workers[0].Worker
	eventually(t, soon, func() error {
		began := time.Now()
		samples, _ := values(t, worker)
		if took := time.Since(began); took > 8*time.Second {
			t.Fatalf("they took %v", took)
		}
		got := filter(samples, "papermap_up")
		_, pending := samples["papermap_jetstream_pending{consumer=papermap-worker}"]
		if want := map[string]float64{"papermap_up{part=nats}": 0, "papermap_up{part=consumers}": 0, "papermap_up{part=database}": 1}; !maps.Equal(got, want) || pending {
			return errText(cmp.Diff(want, got))
		}
		return nil
	})
}

func TestMetricsComeInTimeWhileTheDatabaseHangs(t *testing.T) {
	t.Parallel()
	address, err := url.Parse(pgtest.Need(t, postgres))
	if err != nil {
		t.Fatal(err)
	}
	w := start(t, options{noWorker: true})
	var hangs atomic.Bool
	address.Host = hangable(t, address.Host, &hangs)
	db, err := repo.Open(t.Context(), address.String())
	w.must(err)
	t.Cleanup(func() { _ = db.Close() })
	_, err = db.Migrate(t.Context())
	w.must(err)
	log := slog.New(slog.NewJSONHandler(w.logs, nil))
	bus, err := events.Connect(w.bus, log)
	w.must(err)
	t.Cleanup(func() { bus.Close(canceled()) })
	waits := worker.New(w.config, db, bus, log)
	if up, _ := values(t, waits); up["papermap_up{part=database}"] != 1 {
		t.Fatalf("before it hangs: %v", filter(up, "papermap_up"))
	}
	hangs.Store(true)
	began := time.Now()
	samples, _ := values(t, waits)
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
