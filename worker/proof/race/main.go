// Race compares papermap-worker with what people would use instead, on one task: give each of N
// tenants a dashboard at an API and record it in a database.
//
// From the repository's root:
//
//	go run -C worker/proof/race .
//	go run -C worker/proof/race . -tenants 300 -rounds 1 -in-flight 64
//	go run -C worker/proof/race . -only papermap-sqlite,nats-sqlite -json
//	go run -C worker/proof/race . -worker /tmp/old,/tmp/new     # two builds against each other
//	go run -C worker/proof/race . -only papermap-postgres -workers 1,2,4,8 -in-flight 4 -delay 50ms
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
	workers         []int         // processes of a contender that share the work
	delay           time.Duration // of each answer of the API
	builds          []string      // of papermap-worker
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
	inFlight := flag.String("in-flight", "64,256",
		"jobs that each worker processes concurrently; several numbers, comma-separated")
	workers := flag.String("workers", "1",
		"worker processes of each contender on PostgreSQL; several numbers, comma-separated")
	flag.DurationVar(&o.delay, "delay", 5*time.Millisecond, "latency of the API")
	builds := flag.String("worker", "",
		"papermap-worker binaries, as absolute paths, comma-separated; default: build one")
	only := flag.String("only", "", "contenders to run, comma-separated; default: all of "+
		strings.Join(names(contenders([]string{""})), ","))
	flag.StringVar(&o.postgres, "postgres", "",
		"URL of a PostgreSQL server and a user who may create databases; default: start one")
	flag.BoolVar(&o.json, "json", false, "print JSON")
	flag.Parse()

	o.builds, o.only = split(*builds), split(*only)
	for _, path := range o.builds {
		if _, err := exec.LookPath(path); err != nil || !filepath.IsAbs(path) {
			usage("-worker: %q is not the absolute path of a program", path)
		}
	}
	o.inFlight, o.workers = numbers("-in-flight", *inFlight), numbers("-workers", *workers)
	if o.tenants < 100 || o.rounds < 1 || flag.NArg() > 0 {
		usage("want at least 100 tenants, 1 round, and no arguments")
	}
	return o
}

// numbers reads a flag's list of positive numbers.
func numbers(name, list string) (all []int) {
	for _, text := range split(list) {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			usage("%s: %q is not a positive number", name, text)
		}
		all = append(all, n)
	}
	if len(all) == 0 {
		usage("%s: want a number", name)
	}
	return all
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
	if len(o.builds) == 0 {
		built, err := build(ctx, folder)
		if err != nil {
			return nil, err
		}
		o.builds = []string{built}
	}
	racers, err := choose(contenders(o.builds), o.only)
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
			for _, workers := range o.workers {
				for _, c := range racers {
					if c.database == onSQLite && workers > 1 {
						continue // refused by papermap-worker
					}
					one := run{
						options: o, contender: c, inFlight: inFlight, workers: workers, folder: folder,
						postgres: pg,
					}
					result, err := one.measure(ctx)
					what := fmt.Sprintf("%d x %d in flight, %s", workers, inFlight, c.name)
					if err != nil {
						return nil, fmt.Errorf("%s: %w", what, err)
					}
					result.Round = round + 1
					fmt.Fprintf(os.Stderr, "round %d, %s: %.0f tenants/s, %.0f us each\n",
						round+1, what, result.Rate, result.CPU)
					r.Runs = append(r.Runs, result)
				}
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
