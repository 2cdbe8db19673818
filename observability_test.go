package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metricsql"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"gopkg.in/yaml.v3"

	"papermap-worker/papermap/simulator"
)

// family is what /metrics has under one name.
type family struct {
	kind   dto.MetricType
	labels map[string]bool
}

// familiesOfARun runs the main job with all that can go wrong in it, and returns what /metrics then has.
func familiesOfARun(t *testing.T) map[string]family {
	t.Helper()
	var faults []simulator.Fault
	for _, text := range []string{"on=create tenant=lost drop=after", "on=create tenant=rude status=422"} {
		f, err := simulator.ParseFault(text)
		if err != nil {
			t.Fatal(err)
		}
		faults = append(faults, f)
	}
	s := newSystem(t, faults...)
	s.sim.ChangeUsage(testWorkspace.ID, func(u *simulator.Usage) {
		u.Rows = append(u.Rows, simulator.UsageRow{TenantID: "acme", Period: time.Now().UTC().Format("2006-01"), Credits: "1.5", Requests: 2})
	})
	worker := start(t, append(s.env, "PAPERMAP_ON_AMBIGUOUS=hold"), "serve")
	address := worker.address(t)
	js := s.jetStream(t)
	publish := func(subject, data string) {
		t.Helper()
		if _, err := js.Publish(t.Context(), "papermap.events."+subject, []byte(data), jetstream.WithRetryAttempts(3)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tenant := range []string{"acme", "lost", "rude"} {
		publish("tenant.created", `{"tenant_id":"`+tenant+`","name":"x"}`)
	}
	publish("usage.sync", "{}")
	eventually(t, 20*time.Second, func() error {
		p := start(t, s.env, "token", "acme")
		if code := p.wait(t, 10*time.Second); code != 0 {
			return fmt.Errorf("no token: %s", p.text())
		}
		return nil
	})
	var text []byte
	eventually(t, 20*time.Second, func() error {
		answer, err := http.Get("http://" + address + "/metrics")
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if text, err = io.ReadAll(answer.Body); err != nil {
			return err
		}
		for _, want := range []string{`papermap_tenants{status="held"} 1`, `papermap_tenants{status="failed"} 1`, "papermap_dead_letters 1", "papermap_usage_synced_seconds{"} {
			if !bytes.Contains(text, []byte(want)) {
				return fmt.Errorf("no %s in\n%s", want, text)
			}
		}
		return nil
	})
	parser := expfmt.NewTextParser(model.LegacyValidation)
	parsed, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	families := map[string]family{}
	for name, f := range parsed {
		labels := map[string]bool{}
		for _, m := range f.Metric {
			for _, l := range m.Label {
				labels[l.GetName()] = true
			}
		}
		families[name] = family{f.GetType(), labels}
	}
	return families
}

// alert is a rule of docs/observability/alerts.yml.
type alert struct {
	Name        string `yaml:"alert"`
	Expr        string `yaml:"expr"`
	For         string `yaml:"for"`
	Labels      map[string]string
	Annotations map[string]string
}

func alerts(t *testing.T) []alert {
	t.Helper()
	data, err := os.ReadFile("docs/observability/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	var rules struct {
		Groups []struct{ Rules []alert }
	}
	if err := yaml.Unmarshal(data, &rules); err != nil {
		t.Fatal(err)
	}
	var list []alert
	for _, g := range rules.Groups {
		list = append(list, g.Rules...)
	}
	if len(list) < 15 {
		t.Fatalf("only %d alerts were read", len(list))
	}
	return list
}

// panels lists the dashboard's queries by the title of their panel.
func panels(t *testing.T) map[string][]string {
	t.Helper()
	data, err := os.ReadFile("docs/observability/grafana-dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			ID      int
			Type    string
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(data, &dashboard); err != nil {
		t.Fatal(err)
	}
	queries, ids := map[string][]string{}, map[int]bool{}
	for _, p := range dashboard.Panels {
		if ids[p.ID] {
			t.Errorf("two panels have the id %d", p.ID)
		}
		ids[p.ID] = true
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
		for _, target := range p.Targets {
			queries[p.Title] = append(queries[p.Title], target.Expr)
		}
	}
	return queries
}

// checkQuery says what in a query is not in /metrics.
func checkQuery(query string, families map[string]family, used map[string]bool) error {
	e, err := metricsql.Parse(strings.ReplaceAll(query, "$__rate_interval", "5m"))
	if err != nil {
		return err
	}
	known := map[string]bool{"instance": true, "job": true} // Prometheus's own
	var by []string
	metricsql.VisitAll(e, func(e metricsql.Expr) {
		switch e := e.(type) {
		case *metricsql.ModifierExpr:
			by = append(by, e.Args...)
		case *metricsql.MetricExpr:
			for _, filters := range e.LabelFilterss {
				name := filters[0].Value
				f, ok := families[name]
				if base := regexp.MustCompile("_(bucket|sum|count)$").ReplaceAllString(name, ""); !ok && families[base].kind == dto.MetricType_HISTOGRAM {
					name, f, ok = base, families[base], true
					known["le"] = true
				}
				if !ok && name != "up" {
					err = fmt.Errorf("/metrics has no %s", name)
				}
				used[name] = true
				for label := range f.labels {
					known[label] = true
				}
				for _, filter := range filters[1:] {
					by = append(by, filter.Label)
				}
			}
		}
	})
	for _, label := range by {
		if !known[label] {
			return fmt.Errorf("nothing in it has the label %s", label)
		}
	}
	return err
}

func TestDashboardAlertsAndDocumentationNameWhatMetricsHas(t *testing.T) {
	t.Parallel()
	families := familiesOfARun(t)
	used := map[string]bool{}
	for title, queries := range panels(t) {
		for _, q := range queries {
			if err := checkQuery(q, families, used); err != nil {
				t.Errorf("panel %q, %s: %v", title, q, err)
			}
		}
	}
	for _, a := range alerts(t) {
		if err := checkQuery(a.Expr, families, used); err != nil {
			t.Errorf("alert %s, %s: %v", a.Name, a.Expr, err)
		}
	}
	document, err := os.ReadFile("docs/observability/README.md")
	if err != nil {
		t.Fatal(err)
	}
	var have, documented []string
	for name, f := range families {
		if !strings.HasPrefix(name, "papermap_") {
			continue
		}
		if !used[name] {
			t.Errorf("neither the dashboard nor an alert uses %s", name)
		}
		labels := map[string]bool{}
		for l := range f.labels {
			labels["`"+l+"`"] = true
		}
		have = append(have, name+" "+strings.Join(sorted(labels), ", "))
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `(papermap_[a-z_]+)` \\| ([^|]*?) ?\\|").FindAllStringSubmatch(string(document), -1) {
		documented = append(documented, m[1]+" "+m[2])
	}
	slices.Sort(have)
	slices.Sort(documented)
	if diff := cmp.Diff(have, documented); diff != "" {
		t.Errorf("/metrics (-) and docs/observability/README.md (+):\n%s", diff)
	}
}

func TestQueriesThatNameNothingAreFound(t *testing.T) {
	t.Parallel()
	families := map[string]family{
		"papermap_up": {dto.MetricType_GAUGE, map[string]bool{"part": true}}, "papermap_event_seconds": {dto.MetricType_HISTOGRAM, nil},
	}
	for query, want := range map[string]string{
		"min by (part, instance) (papermap_up) == 0":                                                   "",
		"histogram_quantile(0.9, sum by (le) (rate(papermap_event_seconds_bucket[$__rate_interval])))": "",
		"papermap_down":                        "no papermap_down",
		"papermap_up_bucket":                   "no papermap_up_bucket",
		"sum by (le) (papermap_up)":            "label le",
		`papermap_up{tenant="x"}`:              "label tenant",
		"rate(papermap_event_seconds_count[5m": "unexpected",
		"sum(papermap_up) / sum(papermap_no)":  "no papermap_no",
	} {
		if err := checkQuery(query, families, map[string]bool{}); (err == nil) != (want == "") || !strings.Contains(fmt.Sprint(err), want) && want != "" {
			t.Errorf("%s: %v, want %q", query, err, want)
		}
	}
}

// anchor is where GitHub puts a heading.
func anchor(heading string) string {
	return strings.ReplaceAll(regexp.MustCompile("[^a-z0-9 _-]").ReplaceAllString(strings.ToLower(heading), ""), " ", "-")
}

func TestEachAlertIsTriedAndHasItsEntryInTheRunbook(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	entries := map[string]string{} // text by heading
	for _, part := range regexp.MustCompile("(?m)^### ").Split(string(data), -1)[1:] {
		heading, text, _ := strings.Cut(part, "\n")
		text, _, _ = strings.Cut(text, "\n## ")
		entries[heading] = text
	}
	tried, err := os.ReadFile("docs/observability/alerts_test.yml")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, a := range alerts(t) {
		if !bytes.Contains(tried, []byte(`{alertname="`+a.Name+`"}`)) {
			t.Errorf("alerts_test.yml does not try %s", a.Name)
		}
		known[a.Name] = true
		if len(entries[a.Name]) < 100 {
			t.Errorf("the runbook says nothing, or too little, about %s", a.Name)
		}
		if got, want := a.Annotations["runbook_url"], "docs/operations.md#"+anchor(a.Name); got != want {
			t.Errorf("%s: runbook_url %q, want %q", a.Name, got, want)
		}
		if a.Annotations["summary"] == "" || a.Annotations["description"] == "" {
			t.Errorf("%s has no summary or no description", a.Name)
		}
		if s := a.Labels["severity"]; s != "critical" && s != "warning" {
			t.Errorf("%s: severity %q", a.Name, s)
		}
		if _, err := model.ParseDuration(a.For); err != nil {
			t.Errorf("%s: for: %v", a.Name, err)
		}
	}
	for heading := range entries {
		if strings.HasPrefix(heading, "Papermap") && !known[heading] && !strings.Contains(heading, " ") {
			t.Errorf("the runbook has an entry for %s, which is no alert", heading)
		}
	}
}
