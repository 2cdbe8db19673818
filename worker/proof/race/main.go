// Race compares papermap-worker with what people would use instead, on one task: give each of N
// tenants a dashboard at an API and record it in a database.
//
// From the repository's root:
//
//	go run -C worker/proof/race .
//	go run -C worker/proof/race . -tenants 300 -rounds 1 -in-flight 64
//	go run -C worker/proof/race . -only papermap-sqlite,nats-sqlite -json
//	go run -C worker/proof/race . -worker /tmp/old,/tmp/new     # two builds against each other
//
// The contenders are this program, River, watermill, and a plain nats.go consumer. Each is a
// process of its own and works off a queue that was filled before it started. So are the API,
// which answers after 5 ms, and the NATS server. PostgreSQL is started from Debian's packages in a
// temporary folder unless -postgres names a server. Everything listens on loopback and is ended
// with the race. It needs Linux, for the processor time of another process.
//
// docs/performance.md has the method, results, and what the figures cannot show.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// options are the command line's.
type options struct {
	tenants, rounds int
	inFlight        []int
	delay           time.Duration // of each answer of the API
	workers         []string      // builds of papermap-worker
	only            []string      // names of contenders; empty: all
	postgres        string        // URL of a server to use; empty: start one
	json            bool
}

func main() {
	if isRole(os.Args) {
		os.Exit(runRole(os.Args))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	o := parseFlags()
	r, err := compare(ctx, o)
	stop()
	if err == nil {
		err = r.print(os.Stdout, o.json)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "race:", err)
		os.Exit(1)
	}
}

func parseFlags() options {
	var o options
	flag.IntVar(&o.tenants, "tenants", 3000, "tenants in each run")
	flag.IntVar(&o.rounds, "rounds", 3, "runs of each contender")
	inFlight := flag.String("in-flight", "64,256", "jobs processed concurrently; several, comma-separated")
	flag.DurationVar(&o.delay, "delay", 5*time.Millisecond, "latency of the API")
	workers := flag.String("worker", "",
		"papermap-worker binaries, as absolute paths, comma-separated; default: build one")
	only := flag.String("only", "", "contenders to run, comma-separated; default: all of "+
		strings.Join(names(contenders([]string{""})), ","))
	flag.StringVar(&o.postgres, "postgres", "",
		"URL of a PostgreSQL server and a user who may create databases; default: start one")
	flag.BoolVar(&o.json, "json", false, "print JSON")
	flag.Parse()

	o.workers, o.only = split(*workers), split(*only)
	for _, path := range o.workers {
		if _, err := exec.LookPath(path); err != nil || !filepath.IsAbs(path) {
			usage("-worker: %q is not the absolute path of a program", path)
		}
	}
	for _, text := range split(*inFlight) {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			usage("-in-flight: %q is not a positive number", text)
		}
		o.inFlight = append(o.inFlight, n)
	}
	if o.tenants < 100 || o.rounds < 1 || len(o.inFlight) == 0 || flag.NArg() > 0 {
		usage("want at least 100 tenants, 1 round, one number in flight, and no arguments")
	}
	return o
}

func usage(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "race: "+format+"\n", args...)
	flag.Usage()
	os.Exit(2)
}

func split(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
}

// compare runs all contenders.
func compare(ctx context.Context, o options) (r *report, err error) {
	folder, err := os.MkdirTemp("", "papermap-race-")
	if err != nil {
		return nil, fmt.Errorf("make a folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	if len(o.workers) == 0 {
		built, err := build(ctx, folder)
		if err != nil {
			return nil, err
		}
		o.workers = []string{built}
	}
	racers, err := choose(contenders(o.workers), o.only)
	if err != nil {
		return nil, err
	}
	var pg *postgres
	if slices.ContainsFunc(racers, func(c contender) bool { return c.database == onPostgres }) {
		if pg, err = openPostgres(ctx, folder, o.postgres); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, pg.close()) }()
	}
	r = newReport(ctx, o, pg)
	// Interleaved, so that a change of the machine's load meets all contenders.
	for round := range o.rounds {
		for _, inFlight := range o.inFlight {
			for _, c := range racers {
				fmt.Fprintf(os.Stderr, "round %d, %d in flight, %s: ", round+1, inFlight, c.name)
				one := run{options: o, contender: c, inFlight: inFlight, folder: folder, postgres: pg}
				result, err := one.measure(ctx)
				if err != nil {
					fmt.Fprintln(os.Stderr, "failed")
					return nil, fmt.Errorf("%s, %d in flight: %w", c.name, inFlight, err)
				}
				result.Round = round + 1
				fmt.Fprintf(os.Stderr, "%.0f tenants/s, %.0f us each\n", result.Rate, result.CPU)
				r.Runs = append(r.Runs, result)
			}
		}
	}
	return r, nil
}

// build compiles papermap-worker from the repository that holds this folder.
func build(ctx context.Context, folder string) (string, error) {
	output := filepath.Join(folder, "papermap-worker")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", output, ".")
	cmd.Dir = filepath.Join("..", "..", "..")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build papermap-worker in %s (or give -worker): %w\n%s", cmd.Dir, err, text)
	}
	return output, nil
}
