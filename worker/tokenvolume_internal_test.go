package worker

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"papermap-worker/papermap"
)

func TestTokenVolumeNamesTenantsFarOverTheirUsual(t *testing.T) {
	var log bytes.Buffer
	v, mint := volumeOf()
	now := time.Date(2026, 11, 27, 0, 0, 0, 0, time.UTC)
	v.judge(now, slog.New(slog.DiscardHandler))
	window := func(tokens map[string]uint32) string {
		log.Reset()
		for id, n := range tokens {
			mint(id, n)
		}
		v.judge(now, slog.New(slog.NewTextHandler(&log, nil))) // not yet
		now = now.Add(volumeWindow)
		v.judge(now, slog.New(slog.NewTextHandler(&log, nil)))
		return log.String()
	}
	usual := map[string]uint32{"busy": 5000, "quiet": 40}
	for i := range 20 {
		if text := window(usual); text != "" {
			t.Fatalf("window %d: %s", i, text)
		}
	}
	for _, c := range []struct {
		busy, quiet uint32
		want        string
	}{
		{49_000, 390, ""},
		{50_000, 40, ""}, // the windows before count as well
		{5000, 2000, "tenant_id=quiet tokens=2000"},
		{120_000, 40, "tenant_id=busy tokens=120000"},
	} {
		text := window(map[string]uint32{"busy": c.busy, "quiet": c.quiet})
		if c.want == "" && text != "" || !strings.Contains(text, c.want) || strings.Count(text, "\n") > 1 {
			t.Errorf("%d and %d tokens: %q, want %q", c.busy, c.quiet, text, c.want)
		}
	}
	if n := sum(v.unusual); n != 2 {
		t.Errorf("%v are counted", n)
	}
	many := map[string]uint32{}
	for i := range 100 {
		many[fmt.Sprint(i)] = 1000
	}
	if text := window(many); strings.Count(text, "\n") != volumeLines || sum(v.unusual) != 102 {
		t.Errorf("%v are counted, and logged:\n%s", sum(v.unusual), text)
	}
}

// volumeOf returns a tokenVolume and a function that counts tokens of a tenant.
func volumeOf() (*tokenVolume, func(tenantID string, n uint32)) {
	tenants := newTenantCache(nil)
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "unusual"})
	v := &tokenVolume{unusual: counter, tenants: tenants}
	counts := &tokenCounts{volume: v, tenants: tenants}
	return v, func(tenantID string, n uint32) {
		t, ok := tenants.known.get([]byte(tenantID))
		if !ok {
			t = tenants.keep(&tenant{id: tenantID, ws: &workspace{}}, time.Now())
		}
		counts.add(t, time.Now())
		t.minted += n - 1
		counts.collect(len(counts.minted))
	}
}

func TestTokenVolumeIsKeptWhenTheMappingChanges(t *testing.T) {
	v, mint := volumeOf()
	mint("t", 50)
	v.tenants.invalidate("t")
	mint("t", 7)
	v.tenants.keep(&tenant{id: "t", dashboardID: "another", ws: &workspace{}}, time.Now())
	if known, _ := v.tenants.known.get([]byte("t")); known.volume.now != 57 || known.dashboardID == "" {
		t.Errorf("%+v", known)
	}
}

func TestTokenVolumeJudgesNobodyBeforeItHasAPast(t *testing.T) {
	v, mint := volumeOf()
	now := time.Now()
	for range volumeWarmUp + 1 {
		v.judge(now, slog.New(slog.DiscardHandler))
		mint("busy", 100_000)
		now = now.Add(volumeWindow)
	}
	if n := sum(v.unusual); n != 0 {
		t.Errorf("%v are counted", n)
	}
}

func TestTokenCountsBelongToTheMonthOfTheToken(t *testing.T) {
	v, _ := volumeOf()
	c := &tokenCounts{volume: v, tenants: v.tenants}
	one := &tenant{id: "t", ws: &workspace{Workspace: papermap.Workspace{ID: "w"}}}
	for _, at := range []string{
		"2026-01-31T23:59:59.9Z", "2026-01-31T23:59:59.9Z", "2026-02-01T00:00:00Z", "2026-02-28T23:59:59Z",
		"2026-03-01T00:30:00+01:00", "2026-01-31T23:59:59Z", // the clock was set back
	} {
		now, err := time.Parse(time.RFC3339, at)
		if err != nil {
			t.Fatal(err)
		}
		c.add(one, now)
	}
	want := []string{"w t 2026-01 2", "w t 2026-02 3", "w t 2026-01 1"}
	var got []string
	for left := c.left(); left > 0; left = c.left() {
		batch := c.batch()
		for _, r := range batch {
			got = append(got, fmt.Sprint(r.WorkspaceID, " ", r.TenantID, " ", r.Period, " ", r.Tokens))
		}
		c.written(len(batch))
	}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestTokenVolumeHasTokensThatWereMintedRightBeforeAChange(t *testing.T) {
	v, _ := volumeOf()
	c := &tokenCounts{volume: v, tenants: v.tenants}
	one := v.tenants.keep(&tenant{id: "t", ws: &workspace{}}, time.Now())
	c.add(one, time.Now())
	c.add(one, time.Now())
	v.tenants.invalidate("t")
	c.collect(len(c.minted))
	v.tenants.keep(&tenant{id: "t", dashboardID: "another", ws: &workspace{}}, time.Now())
	if known, _ := v.tenants.known.get([]byte("t")); known.volume.now != 2 {
		t.Errorf("%d tokens are known of, want 2", known.volume.now)
	}
	if rows := c.batch(); len(rows) != 1 || rows[0].Tokens != 2 {
		t.Errorf("counted as %+v, want 2 tokens", rows)
	}
}

// While nothing can be written, tenants that left memory and came back are counted apart.
func TestTokenCountsAreBoundedWhileTheyCannotBeWritten(t *testing.T) {
	v, _ := volumeOf()
	c := &tokenCounts{volume: v, tenants: v.tenants}
	ws := &workspace{}
	for range 2 * maxTenants {
		c.add(&tenant{id: "t", ws: ws}, time.Now())
	}
	if n := c.left(); n > maxTenants {
		t.Errorf("%d are kept to be written", n)
	}
}
