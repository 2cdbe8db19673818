package e2e

import (
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metricsql"
	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"papermap-worker/papermap/simulator"
)

// family is what /metrics has under one name.
type family struct {
	kind   dto.MetricType
	labels map[string]bool
}

// familiesOfARun runs the main job with all that can go wrong in it, and returns what /metrics then
// has.
func familiesOfARun(t *testing.T) map[string]family {
	t.Helper()
	s := newSystem(t, "on=create tenant=lost drop=after", "on=create tenant=rude status=422")
	s.sim.SetUsage(testWorkspace.ID, simulator.Usage{Rows: []simulator.UsageRow{{
		TenantID: "acme", Period: time.Now().UTC().Format("2006-01"), Credits: "1.5", Requests: 2,
	}}})
	worker := start(t, append(s.env, "PAPERMAP_ON_AMBIGUOUS=hold"), "serve")
	address := worker.address(t)
	js := s.jetStream(t)
	for _, tenant := range []string{"acme", "lost", "rude"} {
		publishCreated(t, js, tenant)
	}
	_, err := js.Publish(t.Context(), "papermap.events.usage.sync", []byte("{}"))
	must(t, err)
	prints(t, "", s.env, "token", "acme")
	var text string
	eventually(t, func() error {
		var err error
		if _, text, err = read(http.Get("http://" + address + "/metrics")); err != nil {
			return err
		}
		for _, want := range []string{
			`papermap_tenants{status="held"} 1`, `papermap_tenants{status="failed"} 1`,
			"papermap_dead_letters 1", "papermap_usage_synced_seconds{",
		} {
			if !strings.Contains(text, want) {
				return fmt.Errorf("no %s in\n%s", want, text)
			}
		}
		return nil
	})
	parser := expfmt.NewTextParser(model.LegacyValidation)
	parsed, err := parser.TextToMetricFamilies(strings.NewReader(text))
	must(t, err)
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
	var rules struct {
		Groups []struct{ Rules []alert }
	}
	readYAML(t, "docs/observability/alerts.yml", &rules)
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
	var dashboard struct {
		Panels []struct {
			ID      int
			Type    string
			Title   string
			Targets []struct{ Expr string }
		}
	}
	text := readFile(t, "docs/observability/grafana-dashboard.json")
	must(t, json.Unmarshal([]byte(text), &dashboard, json.MatchCaseInsensitiveNames(true)))
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
				if base := regexp.MustCompile("_(bucket|sum|count)$").ReplaceAllString(name, ""); !ok &&
					families[base].kind == dto.MetricType_HISTOGRAM {
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

func TestMetricsMatchDashboardAlertsAndDocs(t *testing.T) {
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
	document := readFile(t, "docs/observability/README.md")
	var have, documented []string
	for name, f := range families {
		if !strings.HasPrefix(name, "papermap_") {
			continue
		}
		if !used[name] {
			t.Errorf("neither the dashboard nor an alert uses %s", name)
		}
		labels := slices.Sorted(maps.Keys(f.labels))
		for i, l := range labels {
			labels[i] = "`" + l + "`"
		}
		have = append(have, name+" "+strings.Join(labels, ", "))
	}
	row := regexp.MustCompile("(?m)^\\| `(papermap_[a-z_]+)` \\| ([^|]*?) ?\\|")
	for _, m := range row.FindAllStringSubmatch(document, -1) {
		documented = append(documented, m[1]+" "+m[2])
	}
	slices.Sort(have)
	slices.Sort(documented)
	if diff := cmp.Diff(have, documented); diff != "" {
		t.Errorf("/metrics (-) and docs/observability/README.md (+):\n%s", diff)
	}
}

func TestCheckQueryFindsUnknownNames(t *testing.T) {
	t.Parallel()
	families := map[string]family{
		"papermap_up":            {dto.MetricType_GAUGE, map[string]bool{"part": true}},
		"papermap_event_seconds": {dto.MetricType_HISTOGRAM, nil},
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
		err := checkQuery(query, families, map[string]bool{})
		if (err == nil) != (want == "") || !strings.Contains(fmt.Sprint(err), want) && want != "" {
			t.Errorf("%s: %v, want %q", query, err, want)
		}
	}
}

func TestAlertsAreTestedAndInRunbook(t *testing.T) {
	t.Parallel()
	data := readFile(t, "docs/operations.md")
	entries := map[string]string{} // text by heading
	for _, part := range regexp.MustCompile("(?m)^### ").Split(data, -1)[1:] {
		heading, text, _ := strings.Cut(part, "\n")
		text, _, _ = strings.Cut(text, "\n## ")
		entries[heading] = text
	}
	tried := readFile(t, "docs/observability/alerts_test.yml")
	known := map[string]bool{}
	for _, a := range alerts(t) {
		if !strings.Contains(tried, `{alertname="`+a.Name+`"}`) {
			t.Errorf("alerts_test.yml does not try %s", a.Name)
		}
		known[a.Name] = true
		if len(entries[a.Name]) < 100 {
			t.Errorf("the runbook says nothing, or too little, about %s", a.Name)
		}
		want := "docs/operations.md#" + strings.ToLower(a.Name) // where GitHub puts the heading
		if got := a.Annotations["runbook_url"]; got != want {
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
