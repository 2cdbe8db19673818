package worker

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestTokenVolumeNamesTenantsFarOverTheirUsual(t *testing.T) {
	var log bytes.Buffer
	v := newTokenVolume(prometheus.NewCounter(prometheus.CounterOpts{Name: "unusual"}))
	now := time.Date(2026, 11, 27, 0, 0, 0, 0, time.UTC)
	v.judge(now, slog.New(slog.DiscardHandler))
	window := func(tokens map[string]int64) string {
		log.Reset()
		for id, n := range tokens {
			v.add(id, n-1)
			v.add(id, 1)
		}
		v.judge(now, slog.New(slog.NewTextHandler(&log, nil))) // not yet
		now = now.Add(volumeWindow)
		v.judge(now, slog.New(slog.NewTextHandler(&log, nil)))
		return log.String()
	}
	usual := map[string]int64{"busy": 5000, "quiet": 40}
	for i := range 20 {
		if text := window(usual); text != "" {
			t.Fatalf("window %d: %s", i, text)
		}
	}
	for _, c := range []struct {
		busy, quiet int64
		want        string
	}{
		{49_000, 390, ""},
		{50_000, 40, ""}, // the windows before count as well
		{5000, 2000, "tenant_id=quiet tokens=2000"},
		{120_000, 40, "tenant_id=busy tokens=120000"},
	} {
		text := window(map[string]int64{"busy": c.busy, "quiet": c.quiet})
		if c.want == "" && text != "" || !strings.Contains(text, c.want) || strings.Count(text, "\n") > 1 {
			t.Errorf("%d and %d tokens: %q, want %q", c.busy, c.quiet, text, c.want)
		}
	}
	if n := sum(v.unusual); n != 2 {
		t.Errorf("%v are counted", n)
	}
	many := map[string]int64{}
	for i := range 100 {
		many[fmt.Sprint(i)] = 1000
	}
	if text := window(many); strings.Count(text, "\n") != volumeLines || sum(v.unusual) != 102 {
		t.Errorf("%v are counted, and logged:\n%s", sum(v.unusual), text)
	}
	for range 200 {
		window(nil)
	}
	if len(v.tenants) > 0 {
		t.Errorf("%d tenants without tokens are still followed", len(v.tenants))
	}
}

func TestTokenVolumeJudgesNobodyBeforeItHasAPast(t *testing.T) {
	v := newTokenVolume(prometheus.NewCounter(prometheus.CounterOpts{Name: "unusual"}))
	now := time.Now()
	for range volumeWarmUp + 1 {
		v.judge(now, slog.New(slog.DiscardHandler))
		v.add("busy", 100_000)
		now = now.Add(volumeWindow)
	}
	if n := sum(v.unusual); n != 0 {
		t.Errorf("%v are counted", n)
	}
}
