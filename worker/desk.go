package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
)

// What people decide. The command line does it beside the running worker, the console within it.

// ErrDashboardID means that a text is no dashboard id.
var ErrDashboardID = errors.New("no dashboard id")

// Resolve settles a held tenant with the dashboard that a person found at Papermap.
func Resolve(ctx context.Context, db *repo.DB, tenantID, dashboardID string) (repo.Mapping, error) {
	if !papermap.ValidDashboardID(dashboardID) {
		return repo.Mapping{}, fmt.Errorf("%q: %w", dashboardID, ErrDashboardID)
	}
	return db.Resolve(ctx, tenantID, dashboardID, DashboardCreated)
}

// Recreate settles a held tenant by another create.
func Recreate(ctx context.Context, db *repo.DB, tenantID string) (repo.Mapping, error) {
	return db.Recreate(ctx, tenantID, CreatedAgain)
}

// Resolve is the function of that name in the running worker, which knows of it at once.
func (w *Worker) Resolve(ctx context.Context, tenantID, dashboardID string) (repo.Mapping, error) {
	m, err := Resolve(ctx, w.db, tenantID, dashboardID)
	return m, w.decided(tenantID, err)
}

// Recreate is the function of that name in the running worker, which knows of it at once.
func (w *Worker) Recreate(ctx context.Context, tenantID string) (repo.Mapping, error) {
	m, err := Recreate(ctx, w.db, tenantID)
	return m, w.decided(tenantID, err)
}

func (w *Worker) decided(tenantID string, err error) error {
	if err == nil {
		w.changed(tenantID)
		ring(w.outbox)
	}
	return err
}

// recordWait is how long a person's event is waited for.
const recordWait = 3 * time.Second

// Change publishes tenant.suspended, tenant.resumed or tenant.deleted, and waits a while until it is recorded.
func (w *Worker) Change(ctx context.Context, eventType, tenantID, reason string) error {
	before, err := w.db.Mapping(ctx, tenantID)
	if err != nil {
		return err
	}
	if _, err := w.Publish(ctx, eventType, map[string]string{"tenant_id": tenantID, "reason": reason}); err != nil {
		return err
	}
	return w.await(ctx, tenantID, func(m repo.Mapping) bool {
		return m.SuspendedEvent+m.ResumedEvent+m.DeletedEvent != before.SuspendedEvent+before.ResumedEvent+before.DeletedEvent
	})
}

// TryAgain publishes a failed tenant's tenant.created anew, and waits a while until it was handled.
func (w *Worker) TryAgain(ctx context.Context, tenantID string) error {
	m, err := w.db.Mapping(ctx, tenantID)
	if err != nil {
		return err
	}
	if m.Stage != repo.Failed || !m.Wanted() {
		return fmt.Errorf("tenant %q has not failed, it is %s", tenantID, m.Status)
	}
	id, err := w.Publish(ctx, events.TypeTenantCreated, map[string]string{
		"tenant_id": m.TenantID, "workspace_id": m.WorkspaceID, "name": m.Title, "title": m.Title, "description": m.Description, "created_by": m.CreatedBy,
	})
	if err != nil {
		return err
	}
	return w.await(ctx, tenantID, func(m repo.Mapping) bool {
		return m.CreatedEventID == id && m.Stage != repo.Pending && m.Stage != repo.Creating
	})
}

// await looks at the mapping until it is as it should be, for a while at most: what is published happens anyway.
func (w *Worker) await(ctx context.Context, tenantID string, done func(repo.Mapping) bool) error {
	ctx, cancel := context.WithTimeout(ctx, recordWait)
	defer cancel()
	for sleep(ctx, 25*time.Millisecond) {
		m, err := w.db.Mapping(context.WithoutCancel(ctx), tenantID)
		if err != nil || done(m) {
			return err
		}
	}
	return nil
}

// Database and Bus are what the worker works with, for those who look.
func (w *Worker) Database() *repo.DB { return w.db }

// Bus is the worker's connection to NATS.
func (w *Worker) Bus() *events.Bus { return w.bus }

// EmbedURL is the address of Papermap's page for iframes.
func (w *Worker) EmbedURL() string { return w.cfg.EmbedURL }

// Counts is what the worker has done since it began.
type Counts struct{ Events, Dashboards, Tokens, Requests float64 }

// Counts reads counters in memory alone.
func (w *Worker) Counts() Counts {
	return Counts{
		Events: sum(w.metrics.events, nil), Requests: sum(w.metrics.requests, nil),
		Dashboards: sum(w.metrics.attempts, map[string]string{"outcome": string(repo.Made)}),
		Tokens:     sum(w.metrics.tokens, map[string]string{"outcome": "ok"}),
	}
}

// sum adds a vector's counters, those with the labels.
func sum(v *prometheus.CounterVec, labels map[string]string) (total float64) {
	list := make(chan prometheus.Metric)
	go func() {
		v.Collect(list)
		close(list)
	}()
	for m := range list {
		var d dto.Metric
		if m.Write(&d) != nil {
			continue
		}
		with := true
		for _, l := range d.GetLabel() {
			if want, asked := labels[l.GetName()]; asked && want != l.GetValue() {
				with = false
			}
		}
		if with {
			total += d.GetCounter().GetValue()
		}
	}
	return total
}
