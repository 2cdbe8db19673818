package console

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"papermap-worker/events"
	"papermap-worker/worker"
)

func TestOverviewSaysWhichTenantsHaveNoDashboardAndWhy(t *testing.T) {
	virtual(t, Config{Dev: true}, inTrouble, func(t *testing.T, w *world) {
		if got := text(w.get("/").body); !strings.Contains(got, "Nothing needs you") ||
			!strings.Contains(got, "Every tenant that wants a dashboard has one") {
			t.Errorf("of an empty worker it says %s", got)
		}
		w.trouble()
		page := w.get("/").body
		got := text(page)
		for _, want := range []string{
			"1 held tenant ", "1 failed tenant ", "2 dead letters", "Tenants without a dashboard 2",
			"held The held ones held whether Papermap made one at ",
			"Look in Papermap's page for a dashboard",
			"refused The refused ones failed creating it failed for good (API_REFUSED: papermap (refused): " +
				"status 422: The workspace is full",
			"Working",
		} {
			if !strings.Contains(got, want) {
				t.Errorf("it does not say %q:\n%s", want, got)
			}
		}
		for _, link := range []string{`href="/tenant?id=held"`, `href="/tenant?id=refused"`,
			`href="/attention"`, `href="/dead"`} {
			if !strings.Contains(page, link) {
				t.Errorf("no link %s", link)
			}
		}
		if strings.Index(page, "Needs attention") > strings.Index(page, ">Now<") {
			t.Error("what needs attention does not come first")
		}
	})
}

func TestOverviewSaysThatCreatingIsPausedAndWhy(t *testing.T) {
	virtual(t, Config{Dev: true}, nil, func(t *testing.T, w *world) {
		w.Simulator.RevokeKey("ak_a")
		w.Publish(events.TypeTenantCreated, `{"tenant_id":"a","name":"A"}`)
		w.Eventually(func() error {
			got := text(w.get("/").body)
			for _, want := range []string{
				"Overview workspace ws-a is paused: Papermap refuses the credentials",
				"a A pending creating dashboards is paused: Papermap refuses the credentials",
				"status 401", "Fix the credentials", "Audit Paused data from",
			} {
				if !strings.Contains(got, want) {
					return fmt.Errorf("it does not say %q:\n%s", want, got)
				}
			}
			return nil
		})
	})
}

func TestPagesSayWhatTheyCanWhileNATSIsAway(t *testing.T) {
	virtual(t, Config{Dev: true}, inTrouble, func(t *testing.T, w *world) {
		w.trouble()
		w.StopNATS()
		w.Eventually(func() error {
			if got := text(w.get("/").body); !strings.Contains(got,
				"Overview no connection to NATS") ||
				!strings.Contains(got, "held The held ones held") {
				return fmt.Errorf("%s", got)
			}
			return nil
		})
		if got := text(w.get("/tenant?id=held").body); !strings.Contains(got,
			"Not looked at: the stream's events and the dead letters: no connection to NATS") ||
			!strings.Contains(got, "A create with an unknown outcome") {
			t.Errorf("%s", got)
		}
		if r := w.ask("GET", "/dead", nil); r.status != http.StatusServiceUnavailable ||
			!strings.Contains(r.body, "The dead letters are in NATS: no connection") {
			t.Errorf("dead letters: %d %s", r.status, text(r.body))
		}
	})
}

func TestRateIsOfTheLastSecondsAndItsLineOfAll(t *testing.T) {
	var samples []worker.Counts
	for _, n := range []float64{0, 20, 20, 20, 20, 20, 30} {
		samples = append(samples, worker.Counts{Events: n})
	}
	p := rateOf("events", samples, func(c worker.Counts) float64 { return c.Events })
	if p.Now != 1 || p.Most != 10 || !strings.HasPrefix(p.Line, "170,2.0 172,38.0 ") ||
		!strings.HasSuffix(p.Line, "180,20.0") {
		t.Errorf("%+v", p)
	}
	if p := rateOf("events", samples[:1], func(c worker.Counts) float64 { return c.Events }); p.Now != 0 ||
		p.Line != "" {
		t.Errorf("of one sample: %+v", p)
	}
}
