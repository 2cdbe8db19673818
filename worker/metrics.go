package worker

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// metrics are the worker's own, named as Prometheus has it. No label is a tenant: there may be a million.
type metrics struct {
	registry *prometheus.Registry

	events      *prometheus.CounterVec   // by type and outcome
	eventTime   *prometheus.HistogramVec // by type
	attempts    *prometheus.CounterVec   // by outcome
	requests    *prometheus.CounterVec   // by route and status
	requestTime *prometheus.HistogramVec // by route
	tokens      *prometheus.CounterVec   // by outcome
	minted      prometheus.Counter       // of those, ok
	tokenTime   prometheus.Histogram
	memory      prometheus.Counter // tenants that were looked up for a token, and found there
	database    prometheus.Counter
	usageRuns   *prometheus.CounterVec // by status
	usageRows   *prometheus.CounterVec // by what became of them
	usageDone   *prometheus.GaugeVec   // pages of the run at work in this process, by workspace
	usagePages  *prometheus.GaugeVec
}

func newMetrics(version string) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "papermap", Name: name, Help: help}, labels)
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "papermap", Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "papermap", Name: name, Help: help, Buckets: buckets}, labels)
	}
	slow := []float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20}
	quick := []float64{5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 1e-2, 5e-2, 0.25, 1}
	m := &metrics{
		registry:    prometheus.NewRegistry(),
		events:      counter("events_total", "Events that were settled, by type and what became of them: acknowledged, dead, retried or failed.", "type", "outcome"),
		eventTime:   histogram("event_seconds", "Time in hand of an event, until it is settled.", slow, "type"),
		attempts:    counter("attempts_total", "Create requests by outcome: created, refused, unknown or orphaned.", "outcome"),
		requests:    counter("api_requests_total", "Requests to Papermap's API, by route and HTTP status; 0 when no answer came.", "route", "status"),
		requestTime: histogram("api_request_seconds", "Time of one request to Papermap's API.", slow, "route"),
		tokens:      counter("token_requests_total", "Requests for an embed token, by the answer's code; ok for a token.", "outcome"),
		tokenTime:   prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "papermap", Name: "token_seconds", Help: "Time to answer a request for an embed token.", Buckets: quick}),
		usageRuns:   counter("usage_runs_total", "Usage runs that ended, by status: done, incomplete, failed or skipped.", "status"),
		usageDone:   gauge("usage_run_pages_done", "Pages that the usage run at work in this process has recorded; 0 while there is none.", "workspace_id"),
		usagePages:  gauge("usage_run_pages", "Pages that the usage run at work in this process has in all; 0 while nobody knows.", "workspace_id"),
		usageRows:   counter("usage_rows_total", "Rows of usage, by what became of them: read, written, rejected or went_down.", "outcome"),
	}
	m.minted = m.tokens.WithLabelValues("ok")
	lookups := counter("token_lookups_total", "Tenants that were looked up for a token, by where: memory or database.", "in")
	m.memory, m.database = lookups.WithLabelValues("memory"), lookups.WithLabelValues("database")
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: "papermap", Name: "build_info", Help: "1, with the program's and Go's version.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	})
	info.Set(1)
	m.registry.MustRegister(m.events, m.eventTime, m.attempts, m.requests, m.requestTime, m.tokens, m.tokenTime, lookups, m.usageRuns, m.usageRows, m.usageDone, m.usagePages, info,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	// What has not happened yet is 0, so that the first time is seen as an increase.
	for _, eventType := range events.TypesIn() {
		m.eventTime.WithLabelValues(eventType)
		for _, outcome := range []string{"acknowledged", "dead", "retried", "failed"} {
			m.events.WithLabelValues(eventType, outcome)
		}
	}
	for _, outcome := range []repo.Outcome{repo.Made, repo.NotAccepted, repo.Uncertain, repo.Orphaned} {
		m.attempts.WithLabelValues(string(outcome))
	}
	for _, outcome := range []string{"ok", "UNAVAILABLE"} {
		m.tokens.WithLabelValues(outcome)
	}
	for _, status := range []repo.RunStatus{repo.RunDone, repo.Incomplete, repo.RunFailed, repo.Skipped} {
		m.usageRuns.WithLabelValues(string(status))
	}
	for outcome := range rowsOf(repo.Run{}) {
		m.usageRows.WithLabelValues(outcome)
	}
	return m
}

// settled counts an event.
func (m *metrics) settled(eventType, outcome string, took time.Duration) {
	if !slices.Contains(events.TypesIn(), eventType) { // somebody has changed the consumer
		eventType = "other"
	}
	m.events.WithLabelValues(eventType, outcome).Inc()
	m.eventTime.WithLabelValues(eventType).Observe(took.Seconds())
}

// requested counts a request to the API.
func (m *metrics) requested(route string, status int, took time.Duration) {
	m.requests.WithLabelValues(route, strconv.Itoa(status)).Inc()
	m.requestTime.WithLabelValues(route).Observe(took.Seconds())
}

// answered counts a request for a token.
func (m *metrics) answered(err error, took time.Duration) {
	m.tokenTime.Observe(took.Seconds())
	if err == nil {
		m.minted.Inc()
		return
	}
	outcome := "UNAVAILABLE"
	if known := (*events.ServiceError)(nil); errors.As(err, &known) {
		outcome = known.Code
	}
	m.tokens.WithLabelValues(outcome).Inc()
}

// reading tells how far a usage run is; pages is 0 while nobody knows how many there are.
func (m *metrics) reading(workspaceID string, done, pages int) {
	m.usageDone.WithLabelValues(workspaceID).Set(float64(done))
	m.usagePages.WithLabelValues(workspaceID).Set(float64(pages))
}

// ended counts a usage run.
func (m *metrics) ended(r repo.Run) {
	m.usageRuns.WithLabelValues(string(r.Status)).Inc()
	for outcome, n := range rowsOf(r) {
		m.usageRows.WithLabelValues(outcome).Add(float64(n))
	}
}

func rowsOf(r repo.Run) map[string]int64 {
	return map[string]int64{"read": r.Read, "written": r.Written, "rejected": r.Rejected, "went_down": r.Changed}
}

// Metrics are what the worker counts, and what it reads from NATS and the database whenever they are gathered.
func (w *Worker) Metrics() prometheus.Gatherer { return w.metrics.registry }

// readings are the metrics that are read when they are asked for.
type readings struct{ w *Worker }

// readingTime is how long NATS and the database are waited for: half of what Prometheus waits for us, by default.
const readingTime = 5 * time.Second

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("papermap_"+name, help, labels, nil)
}

var (
	descPaused       = describe("paused", "1 while creating dashboards is paused in a workspace for the reason, else 0.", "workspace_id", "reason")
	descPauses       = describe("pauses_total", "Pauses that began, by reason.", "workspace_id", "reason")
	descSkew         = describe("clock_skew_seconds", "Papermap's clock minus the host's, as its last answer showed.", "workspace_id")
	descPending      = describe("jetstream_pending", "Events in the stream that no worker has been given yet.", "consumer")
	descAckPending   = describe("jetstream_ack_pending", "Events that were given out and are not settled, those that wait for a retry included.", "consumer")
	descRedelivered  = describe("jetstream_redelivered", "Events that are given out not for the first time.", "consumer")
	descOldest       = describe("jetstream_oldest_pending_seconds", "Age of the oldest event that is not settled; 0 when there is none. Alarm before jetstream_max_age_seconds.", "consumer")
	descMaxAge       = describe("jetstream_max_age_seconds", "Age at which the stream drops events, settled or not; 0: never.")
	descDead         = describe("dead_letters", "Dead letters that are kept.")
	descTenants      = describe("tenants", "Tenants by status.", "status")
	descUncertain    = describe("uncertain_attempts", "Create requests that may have left a dashboard behind, and nobody has settled.")
	descUncertainAge = describe("uncertain_attempt_oldest_seconds", "Age of the oldest create request that may have left a dashboard behind; 0 when there is none.")
	descOutbox       = describe("outbox_unsent", "Events out that wait to be published.")
	descOutboxAge    = describe("outbox_oldest_seconds", "Age of the oldest event out that waits; 0 when there is none.")
	descUsageAge     = describe("usage_synced_seconds", "Time since usage was last synced whole; absent before the first time.", "workspace_id")
	descCached       = describe("token_cached_tenants", "Tenants in memory.")
	descConns        = describe("database_connections", "Connections to the database, by pool and state.", "pool", "state")
	descConnWait     = describe("database_wait_seconds_total", "Time that was waited for a connection, by pool.", "pool")
	descUp           = describe("up", "1 while the part can be used: nats, consumers, database.", "part")
)

// Describe implements prometheus.Collector.
func (r readings) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descPaused, descPauses, descSkew, descPending, descAckPending, descRedelivered, descOldest, descMaxAge, descDead, descTenants, descUncertain, descUncertainAge,
		descOutbox, descOutboxAge, descUsageAge, descCached, descConns, descConnWait, descUp,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. NATS and the database are read side by side, so that one that hangs takes
// nothing from the other; what cannot be read in time is absent.
func (r readings) Collect(ch chan<- prometheus.Metric) {
	var reading sync.WaitGroup
	for _, read := range []func(context.Context, chan<- prometheus.Metric){r.own, r.nats, r.database} {
		reading.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), readingTime)
			defer cancel()
			read(ctx, ch)
		})
	}
	reading.Wait()
}

func gauge(ch chan<- prometheus.Metric, d *prometheus.Desc, value float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
}

// truth is 1 or 0.
func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// own are the metrics of this process.
func (r readings) own(_ context.Context, ch chan<- prometheus.Metric) {
	w := r.w
	for id, ws := range w.workspaces {
		for _, kind := range pauseKinds {
			paused, pauses := ws.gate.counts(kind)
			gauge(ch, descPaused, truth(paused), id, kind)
			ch <- prometheus.MustNewConstMetric(descPauses, prometheus.CounterValue, float64(pauses), id, kind)
		}
		if skew, known := ws.api.ClockSkew(); known {
			gauge(ch, descSkew, skew.Seconds(), id)
		}
	}
	gauge(ch, descCached, float64(w.tenants.size()))
	gauge(ch, descUp, truth(w.main.Healthy() && w.access.Healthy()), "consumers")
	for pool, p := range w.db.Pools() {
		gauge(ch, descConns, float64(p.InUse), pool, "in_use")
		gauge(ch, descConns, float64(p.Idle), pool, "idle")
		ch <- prometheus.MustNewConstMetric(descConnWait, prometheus.CounterValue, p.WaitDuration.Seconds(), pool)
	}
}

func (r readings) nats(ctx context.Context, ch chan<- prometheus.Metric) {
	var list []events.Backlog
	var dead int
	err := r.w.bus.Connected() // else a request would wait for the connection
	if err == nil {
		list, dead, err = r.w.bus.Backlog(ctx)
	}
	gauge(ch, descUp, truth(err == nil), "nats")
	if err != nil {
		return
	}
	for _, b := range list {
		gauge(ch, descPending, float64(b.Pending), b.Consumer)
		gauge(ch, descAckPending, float64(b.AckPending), b.Consumer)
		gauge(ch, descRedelivered, float64(b.Redelivered), b.Consumer)
		gauge(ch, descOldest, b.Oldest.Seconds(), b.Consumer)
	}
	gauge(ch, descMaxAge, list[0].MaxAge.Seconds()) // of the one stream
	gauge(ch, descDead, float64(dead))
}

func (r readings) database(ctx context.Context, ch chan<- prometheus.Metric) {
	s, err := r.w.db.Stats(ctx)
	gauge(ch, descUp, truth(err == nil), "database")
	if err != nil {
		return
	}
	for _, status := range repo.Statuses() {
		gauge(ch, descTenants, float64(s.Tenants[status]), string(status))
	}
	gauge(ch, descUncertain, float64(s.Uncertain))
	gauge(ch, descUncertainAge, s.UncertainAge.Seconds())
	gauge(ch, descOutbox, float64(s.Unsent))
	gauge(ch, descOutboxAge, s.UnsentAge.Seconds())
	for id, age := range s.UsageAge {
		gauge(ch, descUsageAge, age.Seconds(), id)
	}
}
