package worker

import (
	"testing"
	"time"

	"papermap-worker/events"
)

func TestMetricsCountUnknownEventTypesAsOther(t *testing.T) {
	t.Parallel()
	m := newMetrics(Build{Version: "0.0.0-test"})
	m.eventHandled("tenant.created", "acknowledged", time.Second)
	// What a consumer may deliver that somebody has changed.
	for _, made := range []string{"tenant.create", "dashboard.created", "x.y.z", ""} {
		m.eventHandled(made, "dead", time.Second)
	}
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	types := map[string]float64{}
	for _, f := range families {
		if f.GetName() != "papermap_events_total" {
			continue
		}
		for _, sample := range f.Metric {
			for _, l := range sample.Label {
				if l.GetName() == "type" {
					types[l.GetValue()] += sample.Counter.GetValue()
				}
			}
		}
	}
	if len(types) != len(events.TypesIn())+1 || types["other"] != 4 || types["tenant.created"] != 1 {
		t.Errorf("events are counted by type as %v", types)
	}
}
