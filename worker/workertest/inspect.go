package workertest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go/jetstream"

	"papermap-worker/repo"
)

// Mapping returns the tenant's mapping. The test fails if there is none.
func (w *World) Mapping(tenant string) repo.Mapping {
	w.t.Helper()
	m, err := w.DB.Mapping(context.Background(), tenant)
	w.Must(err)
	return m
}

// Status returns the status in the tenant's mapping; empty if there is none.
func (w *World) Status(tenant string) repo.Status {
	w.t.Helper()
	m, err := w.DB.Mapping(context.Background(), tenant)
	if !errors.Is(err, repo.ErrNotFound) {
		w.Must(err)
	}
	return m.Status
}

// Are returns a check that every tenant has the status.
func (w *World) Are(status repo.Status, tenants ...string) func() error {
	return func() error {
		w.t.Helper()
		var rows []struct {
			Tenant string      `db:"tenant_id"`
			Status repo.Status `db:"status"`
		}
		w.Must(w.SQL.Select(&rows, "SELECT tenant_id, status FROM tenant_dashboards"))
		is := map[string]repo.Status{}
		for _, r := range rows {
			is[r.Tenant] = r.Status
		}
		var not []string
		for _, tenant := range tenants {
			if is[tenant] != status {
				not = append(not, fmt.Sprintf("%s is %q", tenant, is[tenant]))
			}
		}
		if len(not) > 0 {
			first := strings.Join(not[:min(len(not), 5)], ", ")
			return fmt.Errorf("%d of %d are not %s: %s", len(not), len(tenants), status, first)
		}
		return nil
	}
}

// Attempts returns the tenant's create attempts, oldest first.
func (w *World) Attempts(tenant string) []repo.Attempt {
	w.t.Helper()
	list, err := w.DB.Attempts(context.Background(), tenant)
	w.Must(err)
	return list
}

// Outcomes returns the outcomes of a tenant's attempts, oldest first, separated by spaces.
func (w *World) Outcomes(tenant string) string {
	w.t.Helper()
	var list []string
	for _, a := range w.Attempts(tenant) {
		list = append(list, string(a.Outcome))
	}
	return strings.Join(list, " ")
}

// Sent returns a check that at least n create requests have reached Papermap.
func (w *World) Sent(n int) func() error {
	return func() error {
		if seen := len(w.Requests("create")); seen < n {
			return fmt.Errorf("%d create requests, want %d", seen, n)
		}
		return nil
	}
}

// Handled returns a check that every event was acknowledged or terminated.
func (w *World) Handled() error {
	ctx := context.Background()
	stream, err := w.JS.Stream(ctx, "PAPERMAP")
	if err != nil {
		return err
	}
	for _, name := range []string{MainConsumer, AccessConsumer} {
		c, err := stream.Consumer(ctx, name)
		if err != nil {
			return err
		}
		info := c.CachedInfo()
		if info.NumPending != 0 || info.NumAckPending != 0 {
			return fmt.Errorf("%s: %d events wait, %d are in flight", name, info.NumPending,
				info.NumAckPending)
		}
		// a consumer learns of a new message a little later
		for _, subject := range info.Config.FilterSubjects {
			last, err := stream.GetLastMsgForSubject(ctx, subject)
			if err == nil && info.Delivered.Stream < last.Sequence {
				return fmt.Errorf("%s: the latest events were not delivered yet", name)
			}
			if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
				return err
			}
		}
	}
	return nil
}

// Unhandled counts the events that wait for the main consumer or are in flight.
func (w *World) Unhandled() int {
	w.t.Helper()
	c, err := w.JS.Consumer(context.Background(), "PAPERMAP", MainConsumer)
	w.Must(err)
	return int(c.CachedInfo().NumPending) + c.CachedInfo().NumAckPending
}

// Relayed returns a check that no event out waits in the database.
func (w *World) Relayed() error {
	waiting, err := w.DB.Unsent(context.Background(), 10)
	if err == nil && len(waiting) > 0 {
		err = fmt.Errorf("%d events out wait", len(waiting))
	}
	return err
}

// Stored reads the messages of a stream on a subject, which may have wildcards, oldest first.
func (w *World) Stored(stream, subject string) []*jetstream.RawStreamMsg {
	w.t.Helper()
	s, err := w.JS.Stream(context.Background(), stream)
	w.Must(err)
	var list []*jetstream.RawStreamMsg
	for seq := uint64(1); ; {
		msg, err := s.GetMsg(context.Background(), seq, jetstream.WithGetMsgSubject(subject))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return list
		}
		w.Must(err)
		list, seq = append(list, msg), msg.Sequence+1
	}
}

// DeadLetters reads the stream of dead letters.
func (w *World) DeadLetters() []*jetstream.RawStreamMsg {
	w.t.Helper()
	return w.Stored("PAPERMAP_DEAD", "papermap.dead.>")
}

// NoDeadLetters fails the test if there is a dead letter.
func (w *World) NoDeadLetters() {
	w.t.Helper()
	if n := len(w.DeadLetters()); n > 0 {
		w.t.Errorf("%d dead letters", n)
	}
}

// Announced returns what the stream says about a tenant's dashboard: each event out once, in order,
// as its type and those of the fields dashboard_id, title, attempt, code and message that it has.
func (w *World) Announced(tenant string) []string {
	w.t.Helper()
	var list []string
	seen := map[string]bool{}
	for _, msg := range w.Stored("PAPERMAP", "papermap.events.dashboard.*") {
		var e struct {
			SpecVersion     string            `json:"specversion"`
			ID              string            `json:"id"`
			Source          string            `json:"source"`
			Type            string            `json:"type"`
			Subject         string            `json:"subject"`
			Time            string            `json:"time"`
			DataContentType string            `json:"datacontenttype"`
			Data            map[string]string `json:"data"`
		}
		if err := json.Unmarshal(msg.Data, &e); err != nil {
			w.t.Fatalf("%s: %v", msg.Data, err)
		}
		if e.Subject != tenant {
			continue
		}
		when, err := time.Parse(time.RFC3339Nano, e.Time)
		if err != nil || when.After(time.Now().Add(time.Minute)) || e.SpecVersion != "1.0" || e.ID == "" ||
			e.Source == "" ||
			msg.Subject != "papermap.events."+e.Type || e.DataContentType != "application/json" ||
			msg.Header.Get("content-type") != "application/cloudevents+json" ||
			msg.Header.Get("Nats-Msg-Id") != e.ID ||
			e.Data["tenant_id"] != tenant || e.Data["workspace_id"] == "" {
			w.t.Errorf("no good event: %v %s", msg.Header, msg.Data)
		}
		if seen[e.ID] {
			continue // they are published at least once
		}
		seen[e.ID] = true
		var fields []string
		for _, name := range []string{"dashboard_id", "title", "attempt", "code", "message"} {
			if v := e.Data[name]; v != "" {
				fields = append(fields, v)
			}
		}
		if len(fields) != len(e.Data)-2 {
			w.t.Errorf("unknown fields: %s", msg.Data)
		}
		list = append(list, strings.TrimSpace(e.Type+" "+strings.Join(fields, " ")))
	}
	return list
}

// Samples gathers the worker's metrics: the value of each sample by its name and labels, as
// name{label=value,…}. A histogram's value is its count.
func (i *Instance) Samples() map[string]float64 {
	i.world.t.Helper()
	families, err := i.Metrics().Gather()
	i.world.Must(err)
	samples := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			samples[f.GetName()+"{"+strings.Join(labels, ",")+"}"] = m.GetCounter().GetValue() +
				m.GetGauge().GetValue() +
				float64(m.GetHistogram().GetSampleCount())
		}
	}
	return samples
}

// That returns a check that holds returns true; what describes the condition in the error.
func That(what string, holds func() bool) func() error {
	return func() error {
		if !holds() {
			return errors.New("it is not so: " + what)
		}
		return nil
	}
}

// Logged returns a check that the workers have logged a text at least n times.
func (w *World) Logged(text string, n int) func() error {
	return func() error {
		if got := strings.Count(w.Logs.String(), text); got < n {
			return fmt.Errorf("%q was logged %d times, want %d", text, got, n)
		}
		return nil
	}
}
