package worker_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
)

// This file is what tests do in a world and how they look at it.

// publish publishes an event as an upstream service does, and returns its sequence in the stream. headers are pairs.
func (w *world) publish(eventType, body string, headers ...string) uint64 {
	w.t.Helper()
	msg := &nats.Msg{Subject: "papermap.events." + eventType, Header: nats.Header{}, Data: []byte(body)}
	for i := 0; i+1 < len(headers); i += 2 {
		msg.Header[headers[i]] = []string{headers[i+1]}
	}
	ack, err := w.js.PublishMsg(w.t.Context(), msg)
	w.must(err)
	return ack.Sequence
}

// create publishes a plain tenant.created for each tenant.
func (w *world) create(tenants ...string) {
	w.t.Helper()
	for _, tenant := range tenants {
		w.publish(events.TypeTenantCreated, object("tenant_id", tenant, "name", tenant))
	}
}

// at publishes an event about a tenant that says when it happened.
func (w *world) at(when time.Time, eventType, tenant string) {
	w.t.Helper()
	w.publish(eventType, object("tenant_id", tenant, "name", tenant), "ce-specversion", "1.0", "ce-id", eventType+when.String(), "ce-source", "/test",
		"ce-time", when.UTC().Format(time.RFC3339Nano))
}

// object is a JSON object of strings, from pairs.
func object(pairs ...string) string {
	fields := map[string]string{}
	for i := 0; i+1 < len(pairs); i += 2 {
		fields[pairs[i]] = pairs[i+1]
	}
	text, err := json.Marshal(fields)
	if err != nil {
		panic(err)
	}
	return string(text)
}

func names(prefix string, n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("%s-%04d", prefix, i)
	}
	return list
}

// status is what the tenant's mapping shows; empty when there is none.
func (w *world) status(tenant string) repo.Status {
	w.t.Helper()
	m, err := w.db.Mapping(context.Background(), tenant)
	if err != nil && !errors.Is(err, repo.ErrNotFound) {
		w.t.Fatal(err)
	}
	return m.Status
}

func (w *world) mapping(tenant string) repo.Mapping {
	w.t.Helper()
	m, err := w.db.Mapping(context.Background(), tenant)
	w.must(err)
	return m
}

func (w *world) attempts(tenant string) []repo.Attempt {
	w.t.Helper()
	list, err := w.db.Attempts(context.Background(), tenant)
	w.must(err)
	return list
}

// outcomes are those of a tenant's attempts, oldest first.
func (w *world) outcomes(tenant string) string {
	w.t.Helper()
	var list []string
	for _, a := range w.attempts(tenant) {
		list = append(list, string(a.Outcome))
	}
	return strings.Join(list, " ")
}

// are is a check that every tenant has the status.
func (w *world) are(status repo.Status, tenants ...string) func() error {
	return func() error {
		w.t.Helper()
		var rows []struct {
			Tenant string      `db:"tenant_id"`
			Status repo.Status `db:"status"`
		}
		w.must(w.sql.Select(&rows, "SELECT tenant_id, status FROM tenant_dashboards"))
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
			return fmt.Errorf("%d of %d are not %s: %s", len(not), len(tenants), status, strings.Join(not[:min(len(not), 5)], ", "))
		}
		return nil
	}
}

// settled is a check that every event was acknowledged or terminated.
func (w *world) settled() error {
	ctx := context.Background()
	stream, err := w.js.Stream(ctx, "PAPERMAP")
	if err != nil {
		return err
	}
	for _, name := range []string{mainConsumer, accessConsumer} {
		c, err := stream.Consumer(ctx, name)
		if err != nil {
			return err
		}
		info := c.CachedInfo()
		if info.NumPending != 0 || info.NumAckPending != 0 {
			return fmt.Errorf("%s: %d events wait, %d are in hand", name, info.NumPending, info.NumAckPending)
		}
		for _, subject := range info.Config.FilterSubjects { // a consumer hears of a new message a little later
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

// waiting is how many events wait for the main consumer or are in its hand.
func (w *world) waiting() int {
	w.t.Helper()
	c, err := w.js.Consumer(context.Background(), "PAPERMAP", mainConsumer)
	w.must(err)
	return int(c.CachedInfo().NumPending) + c.CachedInfo().NumAckPending
}

// metric reads a counter or a gauge of a worker that has a label of this value. ok says that there is one.
func metric(t *testing.T, i *instance, name, label string) (value float64, ok bool) {
	t.Helper()
	families, err := i.Metrics().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == name && l.GetValue() == label {
					return m.GetCounter().GetValue() + m.GetGauge().GetValue(), true // it has one of them
				}
			}
		}
	}
	return 0, false
}

// stored reads the messages of a stream whose subject begins so, oldest first.
func (w *world) stored(stream, subject string) []*jetstream.RawStreamMsg {
	w.t.Helper()
	s, err := w.js.Stream(context.Background(), stream)
	w.must(err)
	var list []*jetstream.RawStreamMsg
	for seq := uint64(1); ; {
		msg, err := s.GetMsg(context.Background(), seq, jetstream.WithGetMsgSubject(subject))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return list
		}
		w.must(err)
		list, seq = append(list, msg), msg.Sequence+1
	}
}

func (w *world) dead() []*jetstream.RawStreamMsg {
	w.t.Helper()
	return w.stored("PAPERMAP_DEAD", "papermap.dead.>")
}

// requests are the API requests that the simulator saw, of a kind: create or usage, without the probes that keep an eye on the clock.
func (w *world) requests(kind string) []simulator.Request {
	return slices.DeleteFunc(w.sim.Log(), func(r simulator.Request) bool {
		return (kind == "create") != (r.Method == http.MethodPost) || r.Query == "per_page=1"
	})
}

// creates counts the tenant's create requests that the simulator saw.
func (w *world) creates(tenant string) int {
	return len(slices.DeleteFunc(w.requests("create"), func(r simulator.Request) bool { return r.TenantID != tenant }))
}

// made are the tenant's dashboards at the simulator.
func (w *world) made(tenant string) []simulator.Dashboard {
	return slices.DeleteFunc(w.sim.Dashboards(), func(d simulator.Dashboard) bool { return d.TenantID != tenant })
}

// checkBooks holds the database against what the simulator did: promises 2 and 3 of the worker.
func (w *world) checkBooks() {
	w.t.Helper()
	mappings, err := w.db.Mappings(context.Background(), "", "", 1e6)
	w.must(err)
	byMark, allowed, owners := map[string]repo.Attempt{}, map[string]int{}, map[string]string{}
	for _, m := range mappings {
		allowed[m.TenantID] = m.Generation
		for _, a := range w.attempts(m.TenantID) {
			byMark[a.Mark] = a
			if a.Outcome == repo.Sent || a.Outcome == repo.Uncertain || a.Outcome == repo.Orphaned {
				allowed[m.TenantID]++
			}
		}
	}
	made, count := map[string]simulator.Dashboard{}, map[string]int{}
	for _, d := range w.sim.Dashboards() {
		made[d.ID] = d
		count[d.TenantID]++
		if a, ok := byMark[d.Mark]; !ok || a.TenantID != d.TenantID {
			w.t.Errorf("dashboard %s of tenant %q is in no attempt (mark %q)", d.ID, d.TenantID, d.Mark)
		} else if a.Outcome == repo.NotAccepted || a.Outcome == repo.Made && a.DashboardID != d.ID {
			w.t.Errorf("dashboard %s of tenant %q was made by an attempt that says %s %s", d.ID, d.TenantID, a.Outcome, a.DashboardID)
		}
	}
	for tenant, n := range count {
		if n > allowed[tenant] {
			w.t.Errorf("tenant %q has %d dashboards, generations and uncertain attempts allow %d", tenant, n, allowed[tenant])
		}
	}
	for _, m := range mappings {
		if m.DashboardID == "" {
			continue
		}
		if d, ok := made[m.DashboardID]; !ok || d.TenantID != m.TenantID || d.WorkspaceID != m.WorkspaceID {
			w.t.Errorf("tenant %q is recorded with dashboard %s, which was made for %q", m.TenantID, m.DashboardID, d.TenantID)
		} else if a := byMark[d.Mark]; a.Outcome != repo.Made || a.Generation != m.Generation {
			w.t.Errorf("tenant %q: dashboard %s is recorded, but its attempt says %s, generation %d", m.TenantID, d.ID, a.Outcome, a.Generation)
		}
		if other, taken := owners[m.DashboardID]; taken {
			w.t.Errorf("dashboard %s belongs to %q and %q", m.DashboardID, other, m.TenantID)
		}
		owners[m.DashboardID] = m.TenantID
	}
}

// formsOf are the ways in which a secret could be written somewhere: as it is, in hex, in both kinds of base64 wherever it
// begins within a longer text, and percent-encoded.
func formsOf(secret string) [][]byte {
	set := map[string]bool{
		secret: true, url.QueryEscape(secret): true, url.PathEscape(secret): true,
		hex.EncodeToString([]byte(secret)): true, strings.ToUpper(hex.EncodeToString([]byte(secret))): true,
	}
	for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
		for before := range 3 { // what its neighbours have a part in is left out
			text := encoding.EncodeToString([]byte(strings.Repeat("x", before) + secret + "xx"))
			set[text[(8*before+5)/6:(8*(before+len(secret)))/6]] = true
		}
	}
	var list [][]byte
	for form := range set {
		list = append(list, []byte(form))
	}
	return list
}

// checkSecrets looks for secrets, signatures and tokens, in every form, in the logs, in the database (SQLite's files,
// PostgreSQL's rows) and in every file of JetStream, where dead letters and events out are. The workers have stopped.
func (w *world) checkSecrets() {
	w.t.Helper()
	canaries := map[string]string{"a secret": "sk_canary"}
	for _, token := range w.tokens {
		claims, err := papermap.ParseToken(token)
		w.must(err)
		canaries["token "+token[:8]], canaries["the signature of token "+token[:8]] = token, claims.Signature
	}
	for s := range w.front.signatures {
		canaries["the signature "+s[:8]] = s
	}
	forms := map[string][][]byte{}
	for what, canary := range canaries {
		forms[what] = formsOf(canary)
	}
	look := func(where string, text []byte) {
		for what, list := range forms {
			if slices.ContainsFunc(list, func(form []byte) bool { return bytes.Contains(text, form) }) {
				w.t.Errorf("%s is in %s", what, where)
			}
		}
	}
	look("the log", []byte(w.logs.String()))
	if w.shared {
		var tables []string
		w.must(w.sql.Select(&tables, "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"))
		for _, table := range tables {
			var rows []string
			w.must(w.sql.Select(&rows, "SELECT r::text FROM "+table+" r"))
			look("table "+table, []byte(strings.Join(rows, "\n")))
		}
	}
	w.must(filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		look(path, text)
		return err
	}))
}
