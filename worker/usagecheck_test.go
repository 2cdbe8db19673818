package worker_test

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"testing"
	"time"

	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/worker"
)

func TestUsageCheckSaysWhichFieldNamesItUnderstood(t *testing.T) {
	ws := papermap.Workspace{
		ID: "ws-check", Key: papermap.KeyPair{ID: "ak_1", Secret: papermap.NewSecret("sk_1")},
	}
	sim := simulator.New(simulator.Options{Workspaces: []papermap.Workspace{ws}})
	server := httptest.NewServer(sim)
	defer server.Close()
	ws.APIURL = server.URL
	client := papermap.NewClient(ws, papermap.ClientOptions{})
	defer client.Close()
	type names = map[string]string
	month := time.Now().UTC().Format("2006-01")
	for _, c := range []struct {
		name  string
		usage simulator.Usage
		fault string
		want  []string // findings: status, what was found, what to do
	}{
		{"the documented names", simulator.Usage{Tenants: 3}, "", []string{
			"ok 6 of 6 rows understood: tenant in tenant_id; credits in credits_consumed; " +
				"requests in request_count; period in period_start → ",
		}},
		{"other accepted names", simulator.Usage{Tenants: 3, Style: "flat"}, "", []string{
			"ok 6 of 6 rows understood: tenant in external_tenant_id; credits in total_credits; " +
				"requests in total_requests; period in billing_period_start → ",
		}},
		{"no usage", simulator.Usage{}, "", []string{
			"ok there is none from [0-9-]+ to " + month +
				", so the names of its fields could not be checked → ",
		}},
		{"credits under an unknown name", simulator.Usage{
			Tenants: 3, Names: names{"credits_consumed": "creditsUsed"},
		}, "", []string{
			"error no row has credits \\(accepted: credits_consumed, credits_used, total_credits, " +
				"credits\\); other names in the rows: creditsUsed, period_end " +
				"→ no usage can be recorded; " +
				"add the right name to papermap/usagefields.go and build again",
		}},
		{"no known name at all", simulator.Usage{
			Rows:  []simulator.UsageRow{{TenantID: "a", Period: month, Credits: "1"}},
			Style: "meta",
			Names: names{"tenant": "customer", "credits_used": "cost", "requests": "calls", "period": "month"},
		}, "", []string{
			"error no row has tenant \\(accepted: .*\\), or credits \\(accepted: .*\\), " +
				"or requests \\(accepted: .*\\), or period \\(accepted: .*\\); " +
				"other names in the rows: customer, cost, calls, month → no usage can",
		}},
		{"requests under an unknown name", simulator.Usage{
			Tenants: 3, Names: names{"request_count": "calls"},
		}, "", []string{
			"ok 6 of 6 rows understood: tenant in tenant_id; credits in credits_consumed; " +
				"period in period_start → ",
			"warning no row has requests \\(.*\\); other names in the rows: calls, period_end → " +
				"requests count as 0; ",
		}},
		{"some unusable rows", simulator.Usage{
			Tenants: 3, Rows: []simulator.UsageRow{{TenantID: "a", Period: month}},
		}, "", []string{
			"ok 6 of 7 rows understood: ",
			"warning 1 of 7 rows are unusable: no credits → a run leaves such rows out; ",
		}},
		{"unusable rows alone", simulator.Usage{Rows: []simulator.UsageRow{
			{TenantID: "a", Period: month, Credits: "-1"},
			{TenantID: "b", Period: month, Credits: `"many"`},
		}}, "", []string{
			"error 2 of 2 rows are unusable: credits are negative; credits are not a number → no usage can",
		}},
		{"no list", simulator.Usage{}, "on=usage status=200 body=`{\"success\":true,\"data\":{}}`", []string{
			"error papermap .*no list of usage in it → no usage can be recorded; is PAPERMAP_API_URL right",
		}},
		{"asked to wait", simulator.Usage{}, "on=usage status=429 retry-after=60", []string{
			"warning papermap .*429.* → try again later; the worker waits, too",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			sim.SetUsage(ws.ID, c.usage)
			sim.SetFaults()
			if c.fault != "" {
				fault, err := simulator.ParseFault(c.fault)
				if err != nil {
					t.Fatal(err)
				}
				sim.SetFaults(fault)
			}
			list := worker.CheckUsage(t.Context(), ws.ID, client)
			if len(list) != len(c.want) {
				t.Fatalf("findings %+v, want %q", list, c.want)
			}
			for i, f := range list {
				status := "ok"
				if f.Fatal {
					status = "error"
				} else if f.Fix != "" {
					status = "warning"
				}
				got := status + " " + f.Found + " → " + f.Fix
				if !regexp.MustCompile("^" + c.want[i]).MatchString(got) {
					t.Errorf("got  %s\nwant %s", got, c.want[i])
				}
			}
		})
	}
	for _, r := range sim.Log() {
		if r.Method != http.MethodGet {
			t.Errorf("it sent %s %s", r.Method, r.Path)
		}
	}
}
