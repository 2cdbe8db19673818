// Papermap-worker gives each tenant of a SaaS company its Papermap dashboard.
//
// It consumes tenant events from NATS JetStream, creates dashboards at Papermap, records them in SQL, and answers
// requests for embed tokens over NATS. `papermap-worker --help` lists the commands; README.md tells the rest.
//
// This file is the command grammar. Beside it: config.go reads settings, serve.go wires the worker together, demo.go
// and dev.go run it with embedded parts, admin.go has the commands that look at a running system and settle what is open,
// dead.go dead letters and replay, usage.go usage, doctor.go the check of everything.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
)

// grammar is what the command line can say.
type grammar struct {
	Serve    serveCmd    `cmd:"" help:"Run the worker, against a NATS server and a database that exist."`
	Demo     demoCmd     `cmd:"" help:"Show the whole main job on embedded parts, then exit."`
	Dev      devCmd      `cmd:"" help:"Run the worker with everything that it needs, embedded, to try things out."`
	Simulate simulateCmd `cmd:"" help:"Run the Papermap simulator alone."`
	Migrate  migrateCmd  `cmd:"" help:"Bring the database up to date, or show how far it is."`
	Health   healthCmd   `cmd:"" help:"Ask the running worker whether it is ready (for containers without a shell)."`
	Publish  publishCmd  `cmd:"" help:"Publish an event as an upstream service would."`
	Token    tokenCmd    `cmd:"" help:"Request a tenant's embed token."`
	Tenants  tenantsCmd  `cmd:"" help:"Look at the mappings from tenant to dashboard."`
	Attempts attemptsCmd `cmd:"" help:"Look at create requests whose outcome is unknown."`
	Dead     deadCmd     `cmd:"" help:"Look at dead letters, and replay or discard them."`
	Replay   replayCmd   `cmd:"" help:"Publish the stream's events again, after the database was restored from an older backup."`
	Usage    usageCmd    `cmd:"" help:"Look at synced usage, and export it."`
	Doctor   doctorCmd   `cmd:"" help:"Check configuration, NATS, database and Papermap, and say what to do."`
	Version  versionCmd  `cmd:"" help:"Print the version."`

	logSettings
}

// app is what every command gets.
type app struct {
	ctx    context.Context // ends at SIGINT and SIGTERM
	stdout io.Writer
	log    *slog.Logger

	// problems are those of the log settings. A command that reads settings adds its own, so that one message names all.
	problems problems
}

// usageError is a wrong command line or configuration: exit code 2.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run runs one command and returns the exit code: 0 done, 1 failed, 2 wrong usage or configuration.
func run(args []string, stdout, stderr io.Writer) int {
	unsetEmpty()
	var g grammar
	exited := -1
	parser := kong.Must(&g,
		kong.Name("papermap-worker"),
		kong.Description("Gives each tenant its Papermap dashboard: tenant events in from NATS, dashboards made, embed tokens out.\n\n"+
			"Settings are read from the environment; those that are no secret are flags as well."),
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { exited = code; panic(errExit) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
	)
	command, err := parse(parser, args)
	if exited >= 0 { // --help
		return exited
	}
	if err != nil {
		fmt.Fprintf(stderr, "papermap-worker: %v\nTry `papermap-worker --help`.\n", err)
		return 2
	}
	ctx, cancel := untilSignal()
	defer cancel()

	a := &app{ctx: ctx, stdout: stdout}
	a.log = g.logSettings.logger(&a.problems, stderr)
	if err = command.Run(a); err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "papermap-worker: %v\n", err)
	if usage := (*usageError)(nil); errors.As(err, &usage) {
		return 2
	}
	return 1
}

// untilSignal returns a context that ends at SIGINT and SIGTERM. From then on a second signal ends the process at once, as if
// nobody had asked to hear of it.
func untilSignal() (ctx context.Context, cancel context.CancelFunc) {
	ctx, cancel = context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		select {
		case <-signals:
		case <-ctx.Done():
		}
		signal.Stop(signals) // before anybody hears of the first
		cancel()
	}()
	return ctx, cancel
}

var errExit = errors.New("exit")

// parse parses the command line. kong prints help and then exits by the function that it was given.
func parse(parser *kong.Kong, args []string) (command *kong.Context, err error) {
	defer func() {
		if p := recover(); p != nil && p != errExit {
			panic(p)
		}
	}()
	return parser.Parse(args)
}

// unsetEmpty makes an empty variable an unset one, for us and for the libraries that read the environment.
func unsetEmpty() {
	for _, entry := range os.Environ() {
		if name, value, _ := strings.Cut(entry, "="); value == "" {
			os.Unsetenv(name)
		}
	}
}
