package repo

import (
	"context"
	"errors"
	"strings"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

func TestTraceSpansOnlyWithinACallersSpan(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		exporter := tracetest.NewInMemoryExporter()
		provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))
		begin := func(ctx context.Context, tenantID string) {
			t.Helper()
			if _, err := db.Begin(ctx, Created{TenantID: tenantID, WorkspaceID: "ws", Title: "Confidential",
				EventID: "e", EventTime: db.now(), Message: "1-1"}, false); err != nil {
				t.Fatal(err)
			}
			if _, err := db.Mapping(ctx, "none"); !errors.Is(err, ErrNotFound) {
				t.Fatal(err)
			}
		}
		begin(ctx, "org-1")
		if spans := exporter.GetSpans(); len(spans) > 0 {
			t.Errorf("spans without a caller: %v", spans)
		}
		within, caller := provider.Tracer("test").Start(ctx, "caller")
		begin(within, "org-2")
		caller.End()
		var names []string
		system, lock := "sqlite", "SELECT tenant_dashboards"
		if db.path == "" { // which rows there are is read with the clock
			system, lock = "postgresql", "SELECT tenant_dashboards, SELECT tenant_dashboards"
		}
		for _, s := range exporter.GetSpans() { // in the order of their end
			names = append(names, s.Name)
			if s.Status.Description != "" {
				t.Errorf("%s failed: %v", s.Name, s.Status)
			}
			for _, a := range s.Attributes {
				text := a.Value.AsString()
				if strings.Contains(text, "org-2") || strings.Contains(text, "Confidential") ||
					a.Key == "db.system.name" && text != system {
					t.Errorf("%s has %s=%s", s.Name, a.Key, text)
				}
			}
		}
		same(t, "spans", strings.Join(names, ", "), strings.Join([]string{
			lock, "INSERT tenant_dashboards", "INSERT provision_attempts", "transaction",
			"SELECT tenant_dashboards", "caller",
		}, ", "))
	})
}

func TestTraceSummarizesStatements(t *testing.T) {
	for query, want := range map[string]string{
		"SELECT a, b FROM tenants WHERE c = ?":                                   "SELECT tenants",
		"SELECT EXISTS (SELECT 1 FROM attempts\n\t\tWHERE a = ?)":                "SELECT attempts",
		"SELECT u.a FROM (VALUES (?, ?)) v CROSS JOIN tenant_usage u":            "SELECT",
		"INSERT INTO outbox (a) VALUES (?) ON CONFLICT (a) DO UPDATE SET a = 1":  "INSERT outbox",
		"INSERT INTO usage SELECT ?1, v.column1 FROM (VALUES (?, ?)) v":          "INSERT usage",
		"UPDATE leases SET until = ?":                                            "UPDATE leases",
		"DELETE FROM leases WHERE name = ?":                                      "DELETE leases",
		"SELECT COUNT(*) FROM (SELECT DISTINCT u.tenant_id FROM tenant_usage) d": "SELECT tenant_usage",
		"SELECT clock_timestamp()":                                               "SELECT",
	} {
		operation, table := summarize(query)
		same(t, query, strings.TrimSpace(operation+" "+table), want)
	}
}
