package worker

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"
	dto "github.com/prometheus/client_model/go"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// metrics are the worker's counters. No label is a tenant, because there may be a million.
type metrics struct {
	registry *prometheus.Registry

	events      *prometheus.CounterVec   // by type and outcome
	eventTime   *prometheus.HistogramVec // by type
	attempts    *prometheus.CounterVec   // by outcome
	requests    *prometheus.CounterVec   // by route and status
	requestTime *prometheus.HistogramVec // by route
	tokens      *prometheus.CounterVec   // by outcome
	tokensOK    prometheus.Counter       // of those, ok
	unusual     prometheus.Counter
	tokenTime   prometheus.Histogram
	memory      prometheus.Counter // tenants that were looked up for a token, and found there
	database    prometheus.Counter
	refused     *prometheus.CounterVec // by reason
	usageRuns   *prometheus.CounterVec // by status
	usageRows   *prometheus.CounterVec // by outcome
	usageDone   *prometheus.GaugeVec   // pages of the run in flight in this process, by workspace
	usagePages  *prometheus.GaugeVec
}

// Buckets of durations, in seconds.
var (
	slowBuckets = []float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20}
	fastBuckets = []float64{5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 1e-2, 5e-2, 0.25, 1}
)

func newMetrics(build Build) *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}
	factory := promauto.With(m.registry)
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return factory.NewCounterVec(prometheus.CounterOpts{Name: "papermap_" + name, Help: help}, labels)
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return factory.NewGaugeVec(prometheus.GaugeOpts{Name: "papermap_" + name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		o := prometheus.HistogramOpts{Name: "papermap_" + name, Help: help, Buckets: buckets}
		return factory.NewHistogramVec(o, labels)
	}
	m.events = counter("events_total",
		"Events handled, by type and outcome: acknowledged, dead, retried or failed.", "type", "outcome")
	m.eventTime = histogram("event_seconds",
		"Time from an event's delivery to its acknowledgement or return.", slowBuckets, "type")
	m.attempts = counter("attempts_total",
		"Create requests by outcome: created, refused, unknown or orphaned.", "outcome")
	m.requests = counter("api_requests_total",
		"Requests to Papermap's API, by route and HTTP status; 0 when no answer came.", "route", "status")
	m.requestTime = histogram("api_request_seconds",
		"Time of one request to Papermap's API.", slowBuckets, "route")
	m.tokens = counter("token_requests_total",
		"Requests for an embed token, by the answer's code; ok for a token.", "outcome")
	m.tokensOK = m.tokens.WithLabelValues("ok")
	m.tokenTime = histogram("token_seconds", "Time to answer a request for an embed token.", fastBuckets).
		WithLabelValues().(prometheus.Histogram)
	m.unusual = counter("unusual_token_volume_total",
		"Tenants that got far more tokens within 10 minutes than is usual for them.").WithLabelValues()
	m.usageRuns = counter("usage_runs_total",
		"Usage runs that ended, by status: done, incomplete, failed or skipped.", "status")
	m.usageDone = gauge("usage_run_pages_done",
		"Pages that the usage run in flight in this process has recorded; 0 if there is none.",
		"workspace_id")
	m.usagePages = gauge("usage_run_pages",
		"Pages that the usage run in flight in this process has in all; 0 if that is unknown.",
		"workspace_id")
	m.usageRows = counter("usage_rows_total",
		"Rows of usage, by outcome: read, written, rejected or went_down.", "outcome")
	m.refused = counter("http_refused_total",
		"HTTP requests to REST and console that were refused, by reason.", "reason")
	lookups := counter("token_lookups_total",
		"Tenants that were looked up for a token, by where: memory or database.", "in")
	m.memory, m.database = lookups.WithLabelValues("memory"), lookups.WithLabelValues("database")
	gauge("build_info", "1, with the program's version, its commit and the commit's date, and Go's version.",
		"version", "commit", "date", "goversion").
		WithLabelValues(build.Version, build.Commit, build.Date, runtime.Version()).Set(1)
	m.registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.initialize()
	return m
}

// initialize sets counters that have not been used to 0, so that the first increment is visible.
func (m *metrics) initialize() {
	for _, eventType := range events.TypesIn() {
		m.eventTime.WithLabelValues(eventType)
		for _, outcome := range []string{"acknowledged", "dead", "retried", "failed"} {
			m.events.WithLabelValues(eventType, outcome)
		}
	}
	for _, outcome := range []repo.Outcome{
		repo.OutcomeCreated, repo.OutcomeRefused, repo.OutcomeUnknown, repo.OutcomeOrphaned,
	} {
		m.attempts.WithLabelValues(string(outcome))
	}
	for _, outcome := range []string{"UNAVAILABLE", "TENANT_SUSPENDED", "TENANT_DELETED"} {
		m.tokens.WithLabelValues(outcome)
	}
	for _, reason := range []string{
		"no_token", "invalid_token", "access_denied", "not_found", "invalid_request", "wrong_login",
		"cross_site", "not_local",
	} {
		m.refused.WithLabelValues(reason)
	}
	for _, status := range []repo.RunStatus{
		repo.RunDone, repo.RunIncomplete, repo.RunFailed, repo.RunSkipped,
	} {
		m.countRun(repo.Run{Status: status}, 0)
	}
}

// eventHandled counts an event.
func (m *metrics) eventHandled(eventType, outcome string, took time.Duration) {
	if !slices.Contains(events.TypesIn(), eventType) { // the consumer was changed by hand
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

// tokenAnswered counts a request for a token.
func (m *metrics) tokenAnswered(err error, took time.Duration) {
	m.tokenTime.Observe(took.Seconds())
	if err == nil {
		m.tokensOK.Inc()
		return
	}
	outcome := "UNAVAILABLE"
	if known := (*events.ServiceError)(nil); errors.As(err, &known) {
		outcome = known.Code
	}
	m.tokens.WithLabelValues(outcome).Inc()
}

// runProgress sets how far a usage run is; pages is 0 while their number is unknown.
func (m *metrics) runProgress(workspaceID string, done, pages int) {
	m.usageDone.WithLabelValues(workspaceID).Set(float64(done))
	m.usagePages.WithLabelValues(workspaceID).Set(float64(pages))
}

// runEnded counts a usage run.
func (m *metrics) runEnded(r repo.Run) { m.countRun(r, 1) }

func (m *metrics) countRun(r repo.Run, n float64) {
	m.usageRuns.WithLabelValues(string(r.Status)).Add(n)
	for outcome, rows := range map[string]int64{
		"read": r.Read, "written": r.Written, "rejected": r.Rejected, "went_down": r.Changed,
	} {
		m.usageRows.WithLabelValues(outcome).Add(float64(rows))
	}
}

// Metrics are the worker's counters and the values that it reads from NATS and the database at each
// scrape.
func (w *Worker) Metrics() prometheus.Gatherer { return w.metrics.registry }

// Counts are totals since the worker started.
type Counts struct{ Events, Dashboards, Tokens, Requests float64 }

// Counts reads only counters in memory.
func (w *Worker) Counts() Counts {
	return Counts{
		Events: sum(w.metrics.events), Requests: sum(w.metrics.requests), Tokens: sum(w.metrics.tokensOK),
		Dashboards: sum(w.metrics.attempts.WithLabelValues(string(repo.OutcomeCreated))),
	}
}

// sum adds up the counters of a collector.
func sum(c prometheus.Collector) (total float64) {
	list := make(chan prometheus.Metric)
	go func() {
		c.Collect(list)
		close(list)
	}()
	for m := range list {
		var d dto.Metric
		if m.Write(&d) == nil {
			total += d.GetCounter().GetValue()
		}
	}
	return total
}

// collector collects the metrics that are read at each scrape: of this process, of NATS and of the
// database. A value that cannot be read in time is absent.
type collector struct{ w *Worker }

// collectTimeout is how long NATS and the database may take: half of Prometheus's own default.
const collectTimeout = 5 * time.Second

// sampleHelp has the metrics of the collector. Those that end in _total are counters, all others
// gauges.
var sampleHelp = map[string]string{
	"clock_skew_seconds":          "Papermap's clock minus the host's, by its last answer.",
	"database_connections":        "Connections to the database, by pool and state.",
	"database_wait_seconds_total": "Time spent waiting for a connection, by pool.",
	"dead_letters":                "Dead letters in the stream.",
	"jetstream_ack_pending": "Events that were delivered and are not acknowledged, " +
		"including those that wait for a retry.",
	"jetstream_max_age_seconds": "Age at which the stream drops events, acknowledged or not; 0: never.",
	"jetstream_oldest_pending_seconds": "Age of the oldest event that is not acknowledged; " +
		"0 when there is none. Alert well before it reaches jetstream_max_age_seconds.",
	"jetstream_pending":     "Events in the stream that have not been delivered.",
	"jetstream_redelivered": "Events that were delivered more than once.",
	"outbox_oldest_seconds": "Age of the oldest waiting event out; 0 if there is none.",
	"outbox_unsent":         "Events out that wait to be published.",
	"paused":                "1 while creating dashboards is paused in a workspace for the reason, else 0.",
	"pauses_total":          "Pauses by reason.",
	"tenants":               "Tenants by status.",
	"token_cached_tenants":  "Tenants in memory.",
	"unanswerable_requests_total": "Requests over NATS whose reply subject is not answered: neither an " +
		"inbox nor under NATS_REPLY_PREFIXES.",
	"uncertain_attempt_oldest_seconds": "Age of the oldest create request that may have left a " +
		"dashboard behind; 0 when there is none.",
	"uncertain_attempts":   "Create requests that may have left a dashboard behind, and are not resolved.",
	"up":                   "1 while the part can be used: nats, consumers, database.",
	"usage_synced_seconds": "Time since the last complete usage run; absent before the first.",
}

// Describe implements prometheus.Collector. It describes nothing, which makes the collector
// "unchecked": each metric is declared where it is read.
func (c collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector. NATS and the database are read concurrently, so that one
// that hangs does not delay the other.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	var reads sync.WaitGroup
	for _, read := range []func(context.Context, samples){c.process, c.nats, c.database} {
		reads.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), collectTimeout)
			defer cancel()
			read(ctx, samples(ch))
		})
	}
	reads.Wait()
}

// samples takes the values of metrics. Labels are pairs of a name and a value.
type samples chan<- prometheus.Metric

func (s samples) add(name string, value float64, labels ...string) {
	var names, values []string
	for i := 0; i < len(labels); i += 2 {
		names, values = append(names, labels[i]), append(values, labels[i+1])
	}
	kind := prometheus.GaugeValue
	if strings.HasSuffix(name, "_total") {
		kind = prometheus.CounterValue
	}
	desc := prometheus.NewDesc("papermap_"+name, sampleHelp[name], names, nil)
	s <- prometheus.MustNewConstMetric(desc, kind, value, values...)
}

// up reports whether a part can be used.
func (s samples) up(part string, ok bool) { s.add("up", boolValue(ok), "part", part) }

func boolValue(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// process collects this process's own values.
func (c collector) process(_ context.Context, s samples) {
	w := c.w
	for id, ws := range w.workspaces.byID {
		pause, _ := ws.breaker.current()
		for _, kind := range pauseKinds {
			s.add("paused", boolValue(pause.Kind == kind), "workspace_id", id, "reason", kind)
			s.add("pauses_total", float64(ws.breaker.pauseCount(kind)), "workspace_id", id, "reason", kind)
		}
		if skew, known := ws.api.ClockSkew(); known {
			s.add("clock_skew_seconds", skew.Seconds(), "workspace_id", id)
		}
	}
	s.add("token_cached_tenants", float64(w.tokens.cache.size()))
	s.add("unanswerable_requests_total", float64(w.bus.Unanswerable()))
	s.up("consumers", w.main.Healthy() && w.access.Healthy())
	for pool, p := range w.db.Pools() {
		s.add("database_connections", float64(p.InUse), "pool", pool, "state", "in_use")
		s.add("database_connections", float64(p.Idle), "pool", pool, "state", "idle")
		s.add("database_wait_seconds_total", p.WaitDuration.Seconds(), "pool", pool)
	}
}

func (c collector) nats(ctx context.Context, s samples) {
	var list []events.Backlog
	var dead int
	err := c.w.bus.Connected() // or a request would wait for the connection
	if err == nil {
		list, dead, err = c.w.bus.Backlog(ctx)
	}
	s.up("nats", err == nil)
	if err != nil {
		return
	}
	for _, b := range list {
		s.add("jetstream_pending", float64(b.Pending), "consumer", b.Consumer)
		s.add("jetstream_ack_pending", float64(b.AckPending), "consumer", b.Consumer)
		s.add("jetstream_redelivered", float64(b.Redelivered), "consumer", b.Consumer)
		s.add("jetstream_oldest_pending_seconds", b.Oldest.Seconds(), "consumer", b.Consumer)
	}
	s.add("jetstream_max_age_seconds", list[0].MaxAge.Seconds()) // both consumers have the same stream
	s.add("dead_letters", float64(dead))
}

func (c collector) database(ctx context.Context, s samples) {
	stats, err := c.w.Database().Stats(ctx)
	s.up("database", err == nil)
	if err != nil {
		return
	}
	for _, status := range repo.Statuses() {
		s.add("tenants", float64(stats.Tenants[status]), "status", string(status))
	}
	s.add("uncertain_attempts", float64(stats.PossibleOrphans))
	s.add("uncertain_attempt_oldest_seconds", stats.PossibleOrphanAge.Seconds())
	s.add("outbox_unsent", float64(stats.Unsent))
	s.add("outbox_oldest_seconds", stats.UnsentAge.Seconds())
	for id, age := range stats.UsageAge {
		s.add("usage_synced_seconds", age.Seconds(), "workspace_id", id)
	}
}
