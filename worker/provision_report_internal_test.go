package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
)

// reported is a provisioner, and what it tells others.
type reported struct {
	*provisioner
	t       *testing.T
	api     *simulator.Simulator
	before  func() // called before an answer
	log     bytes.Buffer
	changed []string
	wakes   int
}

var reportedAt = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newReported(t *testing.T, hold bool) *reported {
	db, err := repo.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "test.db"))
	if err == nil {
		_, err = db.Migrate(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	w := papermap.Workspace{ID: "w", Key: papermap.KeyPair{ID: "ak", Secret: papermap.NewSecret("sk")}}
	r := &reported{t: t, before: func() {},
		api: simulator.New(simulator.Options{Workspaces: []papermap.Workspace{w}})}
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		r.before()
		r.api.ServeHTTP(rw, req)
	}))
	t.Cleanup(server.Close)
	w.APIURL = server.URL
	log := slog.New(slog.NewTextHandler(&r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	r.provisioner = &provisioner{
		workspaces: newWorkspaces([]papermap.Workspace{w}, papermap.ClientOptions{}, "",
			make(chan struct{}, 1), log),
		db: db, log: log, metrics: newMetrics(Build{}), spans: newSpanByEvent(), hold: hold, maxAttempts: 1,
		changed:   func(tenantID string) { r.changed = append(r.changed, tenantID) },
		wakeRelay: func() { r.wakes++ },
		unwritten: rate.NewLimiter(0, 1),
	}
	return r
}

func (r *reported) created(tenant string, delay time.Duration) repo.Created {
	return repo.Created{TenantID: tenant, WorkspaceID: "w", Title: "t", Description: "about", EventID: "e",
		EventTime: reportedAt.Add(delay), Message: "1", AllowedWorkspace: "w"}
}

// handled hands an event over as the bus does, with a span.
func (r *reported) handled(data events.TenantCreated) error {
	span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1},
		TraceFlags: trace.FlagsSampled})
	return r.handle(trace.ContextWithSpanContext(r.t.Context(), span),
		events.Event{ID: "e", Time: reportedAt, Message: "1", Deliveries: 1}, data)
}

// attempts counts the attempts in the metrics, by outcome.
func (r *reported) attempts() string {
	families, err := r.metrics.registry.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	var list []string
	for _, f := range families {
		for _, sample := range f.Metric {
			if n := sample.Counter.GetValue(); f.GetName() == "papermap_attempts_total" && n > 0 {
				list = append(list, fmt.Sprint(n, " ", sample.Label[0].GetValue()))
			}
		}
	}
	return strings.Join(list, ", ")
}

// Others learn what has happened from the log, the metrics, the relay and the caches.
func TestProvisionerReportsWhatHappened(t *testing.T) {
	const failed = `level=DEBUG msg="creating a dashboard failed" tenant_id=a event_id=e error=`
	for _, c := range []struct {
		name, fault, dashboard string
		hold                   bool

		err, log, attempts string
		wakes, events      int
		changed            bool
	}{
		{
			name: "created", attempts: "1 created", wakes: 1, events: 1, changed: true,
			log: `level=INFO msg="created a dashboard" tenant_id=a event_id=e workspace_id=w dashboard_id=`,
		}, {
			name: "adopted", dashboard: "D", wakes: 1, events: 1, changed: true,
			log: `level=INFO msg="adopted a dashboard" tenant_id=a event_id=e workspace_id=w dashboard_id=D`,
		}, {
			name: "refused", fault: "status=400", err: "400", log: failed, attempts: "1 refused",
			wakes: 1, events: 1,
		}, {
			name: "deferred", fault: "status=429 retry-after=60", err: "429", log: failed,
			attempts: "1 refused",
		}, {
			name: "unknown", fault: "status=500", err: "500", log: failed, attempts: "1 unknown",
		}, {
			name: "held", hold: true, fault: "status=500", attempts: "1 unknown", wakes: 1, events: 1,
			log: `level=WARN msg="tenant held: create has an unknown outcome; resolve it with ` +
				"`papermap-worker tenants resolve`\" tenant_id=a event_id=e attempt=",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newReported(t, c.hold)
			if c.fault != "" {
				f, err := simulator.ParseFault(c.fault)
				if err != nil {
					t.Fatal(err)
				}
				r.api.SetFaults(f)
			}
			err := r.handled(events.TenantCreated{TenantID: "a", Name: "a", DashboardID: c.dashboard})
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("it ends with %v", err)
			}
			if !strings.Contains(r.log.String(), c.log) {
				t.Errorf("the log is %s", &r.log)
			}
			if got := r.attempts(); got != c.attempts {
				t.Errorf("attempts are counted as %q, want %q", got, c.attempts)
			}
			if r.wakes != c.wakes || (len(r.changed) == 1) != c.changed {
				t.Errorf("the relay is woken %d times; changed: %q", r.wakes, r.changed)
			}
			out, err := r.db.Unsent(t.Context(), 10)
			if err != nil || len(out) != c.events {
				t.Fatalf("events out: %+v, %v", out, err)
			}
			for _, o := range out {
				if !r.spans.of(o.EventID).IsValid() {
					t.Errorf("the span of %s is forgotten", o.Type)
				}
			}
		})
	}
}

// The tenant was deleted and created again while Papermap made the dashboard of the old generation.
func TestProvisionerReportsAnOrphan(t *testing.T) {
	r := newReported(t, false)
	r.before = func() {
		_, err := r.db.Change(t.Context(), repo.Change{TenantID: "a", WorkspaceID: "w", To: repo.Deleted,
			EventTime: reportedAt.Add(time.Second)})
		if err == nil {
			_, err = r.db.Begin(t.Context(), r.created("a", time.Minute), false)
		}
		if err != nil {
			t.Error(err)
		}
	}
	var again *events.Retry
	if err := r.handled(events.TenantCreated{TenantID: "a", Name: "a"}); !errors.As(err, &again) ||
		again.After < busyWait/2 || again.After >= busyWait*3/2 {
		t.Errorf("it ends with %v", err)
	}
	if got := r.attempts(); got != "1 orphaned" || r.wakes != 0 || len(r.changed) != 0 {
		t.Errorf("attempts are counted as %q; %d wakes; changed: %q", got, r.wakes, r.changed)
	}
	made := r.api.Dashboards()
	if len(made) != 1 || made[0].Mark == "" || !strings.HasSuffix(made[0].Description, made[0].Mark) {
		t.Fatalf("dashboards: %+v", made)
	}
	want := fmt.Sprintf("level=WARN msg=%q tenant_id=a event_id=e dashboard_id=%s attempt=%s",
		"dashboard created after the claim expired; recorded as orphaned", made[0].ID,
		strings.TrimPrefix(made[0].Mark, "pmw:"))
	if !strings.Contains(r.log.String(), want) {
		t.Errorf("the log is %s", &r.log)
	}
}

// A permit that made no create would keep a trial for itself.
func TestProvisionerReturnsThePermitOfATrial(t *testing.T) {
	r := newReported(t, false)
	ctx, ws := t.Context(), r.workspaces.list[0]
	claim := func(tenant string) repo.Claim {
		c, err := r.db.Begin(ctx, r.created(tenant, 0), false)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if _, err := r.db.Finish(ctx, claim("active"), "D", 200, DashboardCreatedEvent); err != nil {
		t.Fatal(err)
	}
	claim("claimed")
	elsewhere := claim("elsewhere")
	_, err := r.db.Fail(ctx, elsewhere, repo.Failure{Deferral: true}, DashboardCreatedEvent)
	if err != nil {
		t.Fatal(err)
	}
	provision := func(tenant, workspace string) error {
		t.Helper()
		ws.breaker.mu.Lock()
		ws.breaker.setState(trial) // long ago: tenants that failed may go first, too
		ws.breaker.mu.Unlock()
		w := *ws
		w.ID = workspace
		err := r.provision(ctx, &w, events.Event{Deliveries: 1}, r.created(tenant, 0))
		if n := ws.breaker.permits(64); n != 1 {
			t.Errorf("%s: %d permits", tenant, n)
		}
		return err
	}
	if err := provision("active", "w"); err != nil {
		t.Error(err)
	}
	var again *events.Retry
	if err := provision("claimed", "w"); !errors.As(err, &again) || again.After > 3*time.Second {
		t.Errorf("another worker's tenant: %v", err)
	}
	delete(r.workspaces.byID, "w")
	var permanent *events.Permanent
	if err := provision("elsewhere", "other"); !errors.As(err, &permanent) ||
		permanent.Code != codeUnknownWorkspace {
		t.Errorf("a tenant of a workspace that is no longer configured: %v", err)
	}
	_ = r.db.Close()
	if err := provision("active", "w"); err == nil || errors.As(err, &again) && errors.Is(err, errPaused) {
		t.Errorf("without a database: %v", err)
	}
	ws.breaker.trip(errors.New("down"))
	err = r.provision(context.Background(), ws, events.Event{Deliveries: 3}, r.created("active", 0))
	if !errors.As(err, &again) || !errors.Is(err, errPaused) || again.After <= 0 {
		t.Errorf("paused: %v", err)
	}
}

func TestProvisionerSpreadsWaits(t *testing.T) {
	for range 1000 {
		if d := busyDelay(); d < busyWait/2 || d >= busyWait*3/2 {
			t.Fatalf("waits %v", d)
		}
	}
}
