package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// report is what -json prints.
type report struct {
	Date     time.Time `json:"date"`
	CPU      string    `json:"cpu"`
	Cores    int       `json:"cores"`
	Load     string    `json:"load_at_start"` // averages of 1, 5 and 15 minutes
	Revision string    `json:"revision"`      // of the repository
	Postgres string    `json:"postgres,omitempty"`
	Tenants  int       `json:"tenants"`
	Rounds   int       `json:"rounds"`
	Delay    string    `json:"api_latency"`
	Summary  []summary `json:"summary"`
	Runs     []result  `json:"runs"`
}

// summary is the medians of one contender's rounds.
type summary struct {
	Contender string  `json:"contender"`
	InFlight  int     `json:"in_flight"` // of each worker
	Workers   int     `json:"workers"`
	Rate      float64 `json:"tenants_per_second"`
	CPU       float64 `json:"cpu_us_per_tenant"`
	Postgres  float64 `json:"postgres_cpu_us_per_tenant,omitzero"`
	NATS      float64 `json:"nats_cpu_us_per_tenant,omitzero"`
	API       float64 `json:"api_cpu_us_per_tenant"`
	Baseline  string  `json:"baseline"`         // a contender on the same database, or with fewer workers
	Ratio     float64 `json:"ratio"`            // of rates, to the baseline in the same round: median,
	RatioMin  float64 `json:"ratio_min"`        // lowest
	RatioMax  float64 `json:"ratio_max"`        // and highest
	Extra     int     `json:"extra_dashboards"` // created beyond one for each tenant, in all rounds
}

func newReport(ctx context.Context, o options, pg *postgres) *report {
	r := &report{
		Date: time.Now().UTC().Truncate(time.Second), CPU: cpuModel(), Cores: runtime.NumCPU(),
		Tenants: o.tenants, Rounds: o.rounds, Delay: o.delay.String(),
	}
	if pg != nil {
		r.Postgres = pg.version
	}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		r.Load = strings.Join(strings.Fields(string(load))[:3], " ")
	}
	// Without git, or outside a checkout, the revision is unknown.
	revision, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty").Output()
	if err == nil {
		r.Revision = strings.TrimSpace(string(revision))
	}
	return r
}

func cpuModel() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(text)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

// summarize computes the medians, in the order of the runs.
func summarize(runs []result, tenants int) []summary {
	type key struct {
		contender         string
		inFlight, workers int
	}
	groups := map[key][]result{}
	var order []key
	for _, r := range runs {
		k := key{r.Contender, r.InFlight, r.Workers}
		if _, known := groups[k]; !known {
			order = append(order, k)
		}
		groups[k] = append(groups[k], r)
	}
	var list []summary
	for _, k := range order {
		s := summary{Contender: k.contender, InFlight: k.inFlight, Workers: k.workers}
		var rates, cpus, postgres, nats, api, ratios []float64
		rival, database := baselinePostgres, onPostgres
		if strings.HasSuffix(k.contender, onSQLite) {
			rival, database = baselineSQLite, onSQLite
		}
		// Without the rival, such as between two builds, the first on this database is the baseline.
		base := groups[key{rival, k.inFlight, k.workers}]
		if base == nil {
			i := slices.IndexFunc(order, func(other key) bool {
				return strings.HasSuffix(other.contender, database) && other.inFlight == k.inFlight
			})
			base = groups[order[i]]
		}
		s.Baseline = base[0].Contender
		for i, r := range groups[k] {
			rates, cpus = append(rates, r.Rate), append(cpus, r.CPU)
			postgres, nats, api = append(postgres, r.Postgres), append(nats, r.NATS), append(api, r.API)
			s.Extra += r.Created - tenants
			ratios = append(ratios, r.Rate/base[i].Rate)
		}
		s.Rate, s.CPU, s.Ratio = median(rates), median(cpus), median(ratios)
		s.Postgres, s.NATS, s.API = median(postgres), median(nats), median(api)
		s.RatioMin, s.RatioMax = slices.Min(ratios), slices.Max(ratios)
		list = append(list, s)
	}
	return list
}

func median(values []float64) float64 {
	values = slices.Sorted(slices.Values(values))
	middle := len(values) / 2
	if len(values)%2 == 0 {
		return (values[middle-1] + values[middle]) / 2
	}
	return values[middle]
}

// print writes a table for people, or JSON.
func (r *report) print(w io.Writer, asJSON bool) error {
	r.Summary = summarize(r.Runs, r.Tenants)
	if asJSON {
		if err := json.MarshalWrite(w, r, jsontext.WithIndent("  ")); err != nil {
			return fmt.Errorf("print JSON: %w", err)
		}
		return nil
	}
	fmt.Fprintf(w, "\n%s, revision %s, %d cores of %s, load %s at the start\n", r.Date.Format(time.DateOnly),
		r.Revision, r.Cores, r.CPU, r.Load)
	fmt.Fprintf(w, "%d tenants, API latency %s, PostgreSQL %s, medians of %d rounds, ",
		r.Tenants, r.Delay, cmp.Or(r.Postgres, "not used"), r.Rounds)
	fmt.Fprint(w, "over the last 90 % of each\n\n")
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "workers\tin flight\tcontender\ttenants/s\tCPU us/tenant\tPostgreSQL\tNATS\tAPI\t"+
		"ratio\tlowest\thighest\tto\textra\t")
	for _, s := range r.Summary {
		fmt.Fprintf(table, "%d\t%d\t%s\t%.0f\t%.0f\t", s.Workers, s.InFlight, s.Contender, s.Rate, s.CPU)
		fmt.Fprintf(table, "%.0f\t%.0f\t%.0f\t", s.Postgres, s.NATS, s.API)
		fmt.Fprintf(table, "%.2f\t%.2f\t%.2f\t%s\t", s.Ratio, s.RatioMin, s.RatioMax, s.Baseline)
		fmt.Fprintf(table, "%d\t\n", s.Extra)
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("print the table: %w", err)
	}
	return nil
}
