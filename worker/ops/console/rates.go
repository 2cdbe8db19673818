package console

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"papermap-worker/worker"
)

const (
	sampleEvery = 2 * time.Second
	maxSamples  = 91 // three minutes
)

// rates keeps what the worker counted in the last minutes.
type rates struct {
	mu      sync.Mutex
	samples []worker.Counts // the newest last
}

// run takes samples until ctx ends.
func (r *rates) run(ctx context.Context, count func() worker.Counts) {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		r.mu.Lock()
		r.samples = append(r.samples, count())
		if len(r.samples) > maxSamples {
			r.samples = r.samples[1:]
		}
		r.mu.Unlock()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// pace is one count per second, over the last minutes.
type pace struct {
	Name string
	Now  float64 // over the last ten seconds
	Line string  // points of a line in a box of 180 by 40
	Most float64
}

// list is the rates as the overview shows them.
func (r *rates) list() []pace {
	r.mu.Lock()
	samples := append([]worker.Counts(nil), r.samples...)
	r.mu.Unlock()
	return []pace{
		rateOf("events", samples, func(c worker.Counts) float64 { return c.Events }),
		rateOf("dashboards", samples, func(c worker.Counts) float64 { return c.Dashboards }),
		rateOf("tokens", samples, func(c worker.Counts) float64 { return c.Tokens }),
		rateOf("API requests", samples, func(c worker.Counts) float64 { return c.Requests }),
	}
}

func rateOf(name string, samples []worker.Counts, of func(worker.Counts) float64) pace {
	r := pace{Name: name}
	var each []float64
	for i := 1; i < len(samples); i++ {
		each = append(each, (of(samples[i])-of(samples[i-1]))/sampleEvery.Seconds())
		r.Most = max(r.Most, each[i-1])
	}
	last := each[max(0, len(each)-5):]
	for _, v := range last {
		r.Now += v / float64(len(last))
	}
	var line strings.Builder
	for i, v := range each {
		x := 180 - 2*float64(len(each)-1-i)
		fmt.Fprintf(&line, "%.0f,%.1f ", x, 38-36*v/max(r.Most, 1e-9))
	}
	r.Line = strings.TrimSpace(line.String())
	return r
}
