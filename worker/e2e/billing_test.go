package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	"github.com/shopspring/decimal"

	"papermap-worker/papermap/simulator"
)

// standIn is an HTTP service that acts once for each Idempotency-Key. It loses the first answers.
type standIn struct {
	*httptest.Server
	mu       sync.Mutex
	lose     int
	requests int
	bodies   map[string]string // by key
	wrong    []string
}

func newStandIn(t *testing.T, lose int) *standIn {
	s := &standIn{lose: lose, bodies: map[string]string{}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.requests++
		key := req.Header.Get("Idempotency-Key")
		if before, known := s.bodies[key]; err != nil || key == "" || known && before != string(body) {
			s.wrong = append(s.wrong, fmt.Sprintf("key %q: %q, before %q, %v", key, body, before, err))
		}
		s.bodies[key] = string(body)
		if s.lose > 0 {
			s.lose--
			rw.WriteHeader(http.StatusBadGateway)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

// recipe starts a program of docs/examples/go. It does not outlive the test.
func recipe(t *testing.T, name string, env ...string) *exec.Cmd {
	t.Helper()
	c := exec.Command("./" + name)
	c.Dir, c.Env, c.Stdout, c.Stderr = goExamples(t), append(os.Environ(), env...), t.Output(), t.Output()
	must(t, c.Start())
	t.Cleanup(func() {
		_ = c.Process.Kill() // it may have ended
		_ = c.Wait()
	})
	return c
}

// use has the API report these credits of this month, and syncs them.
func (s *system) use(t *testing.T, credits map[string]string) (month string) {
	t.Helper()
	month = time.Now().UTC().Format("2006-01")
	var u simulator.Usage
	for tenant, amount := range credits {
		u.Rows = append(u.Rows,
			simulator.UsageRow{TenantID: tenant, Period: month, Credits: amount, Requests: 1})
	}
	s.sim.SetUsage(testWorkspace.ID, u)
	run(t, s.env, "publish", "usage-sync", "--from-period", month, "--to-period", month, "--wait")
	return month
}

func TestAccountManagersLearnOfThresholds(t *testing.T) {
	t.Parallel()
	s, nc := runWorker(t, "USAGE_SYNC_SCHEDULE=off")
	webhook := newStandIn(t, 1)
	recipe(t, "thresholds", "NATS_URL="+nc.ConnectedUrl(), "WEBHOOK_URL="+webhook.URL)
	run(t, s.env, "usage", "budget", "set", "*", "--credits", "1000")
	s.use(t, map[string]string{"org-1": "850", "org-2": "10"})
	month := s.use(t, map[string]string{"org-1": "1000.5", "org-2": "20"})
	want := []string{
		`{"text":"org-1 has used 100 % of its budget in ` + month + `: 1000.5 of 1000 credits"}`,
		`{"text":"org-1 has used 80 % of its budget in ` + month + `: 850 of 1000 credits"}`,
	}
	eventually(t, func() error {
		webhook.mu.Lock()
		defer webhook.mu.Unlock()
		var got []string
		for _, body := range webhook.bodies {
			got = append(got, body)
		}
		slices.Sort(got)
		if d := cmp.Diff(want, got); d != "" || len(webhook.wrong) > 0 || webhook.requests != 3 {
			return fmt.Errorf("%d requests, %v (-want +got)\n%s", webhook.requests, webhook.wrong, d)
		}
		return nil
	})
}

func TestMeteringGetsEachDeltaOnce(t *testing.T) {
	t.Parallel()
	s, nc := runWorker(t, "USAGE_SYNC_SCHEDULE=off")
	api := newStandIn(t, 1)
	env := []string{"NATS_URL=" + nc.ConnectedUrl(), "METERING_URL=" + api.URL, "LEDGER=" + t.TempDir()}
	program := recipe(t, "metering", env...)
	for i, credits := range []map[string]string{
		{"org-1": "10", "org/2": "0.000000000001"},
		{"org-1": "25.5", "org/2": "3"},
		{"org-1": "20.25", "org/2": "3", "*": "7"}, // org-1 was corrected
	} {
		s.use(t, credits)
		if i == 1 { // wherever it is
			must(t, program.Process.Kill())
			_ = program.Wait()
			program = recipe(t, "metering", env...)
		}
		eventually(t, func() error {
			api.mu.Lock()
			defer api.mu.Unlock()
			sums := map[string]decimal.Decimal{}
			for _, body := range api.bodies {
				var delta struct {
					Customer string `json:"customer"`
					Credits  string `json:"credits"`
				}
				must(t, json.Unmarshal([]byte(body), &delta))
				sums[delta.Customer] = sums[delta.Customer].Add(decimal.RequireFromString(delta.Credits))
			}
			for tenant, want := range credits {
				if got := sums[tenant].String(); got != want {
					return fmt.Errorf("the deltas of %s are %s in all, want %s", tenant, got, want)
				}
			}
			return nil
		})
	}
	if len(api.wrong) > 0 {
		t.Errorf("%v", api.wrong)
	}
	month := time.Now().UTC().Format("2006-01")
	if body := api.bodies[testWorkspace.ID+"/org-1/"+month+"/3"]; body !=
		`{"credits":"-5.25","customer":"org-1","month":"`+month+`"}` {
		t.Errorf("the third delta of org-1 is %q", body)
	}
}

func TestAccountantsGetAMonthAsCSV(t *testing.T) {
	t.Parallel()
	s, _ := runWorker(t, "USAGE_SYNC_SCHEDULE=off")
	accounting := newStandIn(t, 1)
	month := s.use(t, map[string]string{"org-1": "12.5"})
	c := exec.Command("docs/examples/shell/monthly-csv.sh", month)
	c.Env = append(append(os.Environ(), s.env...), "ACCOUNTING_URL="+accounting.URL)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	body := accounting.bodies["usage-"+month]
	if !strings.HasPrefix(body, "tenant_id,workspace_id,period,credits,requests,synced_at,") ||
		!strings.Contains(body, "\norg-1,"+testWorkspace.ID+","+month+",12.5,1,") ||
		len(accounting.wrong) > 0 {
		t.Errorf("%q %v", body, accounting.wrong)
	}
	c = exec.Command("docs/examples/shell/monthly-csv.sh", month) // without a database nothing is sent
	c.Env = append(os.Environ(), "DATABASE_URL=sqlite:"+t.TempDir()+"/none.db",
		"ACCOUNTING_URL="+accounting.URL)
	if out, err := c.CombinedOutput(); err == nil || accounting.requests != 2 {
		t.Errorf("%v, %d requests: %s", err, accounting.requests, out)
	}
}
