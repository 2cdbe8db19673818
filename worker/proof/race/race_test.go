package main

import (
	"context"
	"io"
	"os"
	"slices"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if isRole(os.Args) { // the contenders are processes of the test's binary
		os.Exit(runRole(os.Args))
	}
	os.Exit(m.Run())
}

func TestRateLeavesOutTheFirstTenth(t *testing.T) {
	start := time.Now()
	var times []time.Time
	for i := range 100 {
		at := start.Add(time.Minute + time.Duration(i)*10*time.Millisecond)
		if i < 9 {
			at = start // far too early
		}
		times = append(times, at)
	}
	if got := rate(times); got < 99.9 || got > 100.1 {
		t.Errorf("rate is %v, want 100", got)
	}
}

func TestSummaryComparesRoundsWithTheRivalOnTheSameDatabase(t *testing.T) {
	runs := []result{
		{Contender: "papermap-sqlite", InFlight: 64, Rate: 200, CPU: 10, Created: 100},
		{Contender: baselineSQLite, InFlight: 64, Rate: 100, CPU: 30, Created: 100},
		{Contender: "papermap-sqlite", InFlight: 64, Rate: 900, CPU: 30, Created: 103},
		{Contender: baselineSQLite, InFlight: 64, Rate: 300, CPU: 30, Created: 100},
		{Contender: "nats-postgres", InFlight: 64, Rate: 300, CPU: 30, Created: 100},
	}
	got := summarize(runs, 100)
	want := summary{
		Contender: "papermap-sqlite", InFlight: 64, Rate: 550, CPU: 20,
		Baseline: baselineSQLite, Ratio: 2.5, RatioMin: 2, RatioMax: 3, Extra: 3,
	}
	if len(got) != 3 || got[0] != want {
		t.Errorf("got %+v, want first %+v", got, want)
	}
	if got[2].Baseline != "nats-postgres" || got[2].Ratio != 1 {
		t.Errorf("the first on PostgreSQL, where River did not run, has %+v", got[2])
	}
}

func TestSummaryComparesNumbersOfWorkersWithTheFirst(t *testing.T) {
	const name = "papermap-postgres"
	got := summarize([]result{
		{Contender: name, InFlight: 4, Workers: 1, Rate: 100},
		{Contender: name, InFlight: 4, Workers: 8, Rate: 700},
		{Contender: name, InFlight: 9, Workers: 1, Rate: 200},
		{Contender: name, InFlight: 9, Workers: 8, Rate: 400},
	}, 100)
	for i, want := range []float64{1, 7, 1, 2} {
		if got[i].Ratio != want {
			t.Errorf("%d workers, %d in flight: ratio %v, want %v",
				got[i].Workers, got[i].InFlight, got[i].Ratio, want)
		}
	}
}

func TestOnlyChoosesEachBuildOfTheProgram(t *testing.T) {
	all := contenders([]string{"/a/worker", "/b/worker"})
	chosen, err := choose(all, []string{"papermap-sqlite", baselineSQLite})
	if err != nil || len(chosen) != 3 || chosen[0].name == chosen[1].name {
		t.Errorf("chose %v, %v", names(chosen), err)
	}
	if _, err := choose(all, []string{"nats-oracle"}); err == nil {
		t.Error("an unknown contender was accepted")
	}
}

// Every contender finishes a small run, and its rows pass the verification.
func TestEveryContenderFinishes(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program and starts PostgreSQL")
	}
	o := options{
		tenants: 100, rounds: 1, inFlight: []int{16}, workers: []int{1, 2}, delay: time.Millisecond,
		json: true,
	}
	r, err := compare(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.print(io.Discard, true); err != nil {
		t.Error(err)
	}
	all := contenders([]string{""})
	onBoth := slices.DeleteFunc(slices.Clone(all), func(c contender) bool { return c.database == onSQLite })
	if got, want := len(r.Summary), len(all)+len(onBoth); got != want {
		t.Errorf("%d contenders were measured, want %d", got, want)
	}
	for _, s := range r.Summary {
		if s.Rate <= 0 || s.CPU <= 0 || s.API <= 0 || s.Extra != 0 {
			t.Errorf("improbable: %+v", s)
		}
	}
}

func TestWorkerThatExitsFailsTheRun(t *testing.T) {
	o := options{tenants: 100, delay: time.Millisecond}
	r := run{options: o, inFlight: 1, workers: 2, folder: t.TempDir(), contender: contender{
		name: "broken", database: onSQLite, binary: "/bin/false",
	}}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := r.measure(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("got %v, want an error at once", err)
	}
}
