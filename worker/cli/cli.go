// Package cli is the command line of papermap-worker. Main does nothing but call [Run]:
//
//	os.Exit(cli.Run(version, os.Args[1:], os.Stdout, os.Stderr))
//
// This is also the one package that wires everything together: serve.go starts a worker with its
// HTTP server, and embedded.go starts the NATS server and the Papermap simulator that demo and dev
// run it on.
//
// Each command is in the file that has its name, as a struct of its flags and a method Run. Beside
// them, cli.go has the grammar, config.go the settings and settings.go what checks them, connect.go
// opens NATS and the database for a command, tracing.go sets up OpenTelemetry, log.go the log,
// and print.go prints tables and JSON. warnings.go says which settings are unsafe.
//
// A new command is a struct in [grammar], and a file. Its Run takes what it needs: an *app, a
// *repo.DB, and, if it embeds natsSettings, an *events.Bus; they are closed when it ends. Settings
// are checked only by the commands that use them.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"papermap-worker/repo"
	"papermap-worker/worker"
)

// grammar is what the command line can say. The examples are in examples.
type grammar struct {
	Serve    serveCmd    `cmd:"" help:"Run the worker."`
	Demo     demoCmd     `cmd:"" help:"Run the main job once, with everything embedded."`
	Dev      devCmd      `cmd:"" help:"Run the worker with everything embedded, to try things out."`
	Simulate simulateCmd `cmd:"" help:"Run the Papermap simulator."`
	Migrate  migrateCmd  `cmd:"" help:"Migrate the database."`
	Health   healthCmd   `cmd:"" help:"Check that the running worker is ready."`
	Publish  publishCmd  `cmd:"" help:"Publish an event as an upstream service would."`
	Token    tokenCmd    `cmd:"" help:"Request an embed token."`
	Tenants  tenantsCmd  `cmd:"" help:"Show tenants and their dashboards."`
	Import   importCmd   `cmd:"" help:"Give dashboards to the tenants of a file."`
	Attempts attemptsCmd `cmd:"" help:"Show create requests whose outcome is unknown."`
	Dead     deadCmd     `cmd:"" help:"Show, replay and discard dead letters."`
	Replay   replayCmd   `cmd:"" help:"Publish the stream's events again, into a restored database."`
	Audit    auditCmd    `cmd:"" help:"Show who did what."`
	Usage    usageCmd    `cmd:"" help:"Show and export synced usage."`
	Doctor   doctorCmd   `cmd:"" help:"Check configuration, NATS, database and Papermap."`
	JWT      jwtCmd      `cmd:"" name:"jwt" help:"Mint a bearer token for REST, to try it."`
	Version  versionCmd  `cmd:"" help:"Print the version."`

	ConsoleUser consoleUserCmd `cmd:"" help:"Make a line for CONSOLE_USERS_FILE."`

	logSettings `group:"Log"`
}

// examples are shown in the help of the command, by its name.
var examples = map[string]string{
	"serve":                    "PAPERMAP_SECRET_KEY_FILE=key papermap-worker serve --log-level debug",
	"demo":                     "papermap-worker demo -v",
	"dev":                      "papermap-worker dev --tenants 150",
	"simulate":                 "papermap-worker simulate --fault 'on=create status=503 rate=0.1'",
	"migrate status":           "DATABASE_URL=sqlite:papermap.db papermap-worker migrate status",
	"health":                   "papermap-worker health --http-addr 127.0.0.1:8080",
	"publish tenant-created":   "papermap-worker publish tenant-created org-1 --name 'Acme Corp'",
	"publish tenant-suspended": "papermap-worker publish tenant-suspended org-1 --reason unpaid",
	"publish usage-sync":       "papermap-worker publish usage-sync --from-period 2026-01 --wait",
	"token":                    "papermap-worker token org-1 --url",
	"tenants list":             "papermap-worker tenants list --status held",
	"tenants show":             "papermap-worker tenants show org-1",
	"tenants resolve":          "papermap-worker tenants resolve org-1 --dashboard-id 6f1c1f6e",
	"import":                   "papermap-worker import tenants.csv --dry-run",
	"attempts resolve":         "papermap-worker attempts resolve pmw:0f4e4f57",
	"dead list":                "papermap-worker dead list --type tenant.created --since 2h",
	"dead replay":              "papermap-worker dead replay --code API_REFUSED --dry-run",
	"dead discard":             "papermap-worker dead discard 17 18",
	"replay":                   "papermap-worker replay --since 2026-01-31T12:00:00Z --dry-run",
	"audit":                    "papermap-worker audit --tenant-id org-1 --since 24h",
	"usage show":               "papermap-worker usage show --tenant org-1 --from 2026-01",
	"usage export":             "papermap-worker usage export --from 2026-01 --to 2026-03 > usage.csv",
	"usage run":                "papermap-worker usage run --json",
	"usage budget set":         "papermap-worker usage budget set org-1 --credits 1000 --thresholds 80,100",
	"doctor":                   "papermap-worker doctor --json",
	"jwt":                      "papermap-worker jwt --tenant-id org-1 --scope papermap:create --ttl 10m",
	"console-user":             "papermap-worker console-user ann --role viewer >> console-users",
}

// app is what every command gets.
type app struct {
	version  string
	ctx      context.Context // ends at SIGINT, SIGTERM and SIGHUP
	stdout   io.Writer
	stderr   io.Writer
	log      *slog.Logger
	problems []string // of the log settings
	closers  []func() // of what the command opened, called in reverse order when it ends

	auditLog  *repo.DB // of a command that needs no database otherwise: see record
	unaudited bool     // it could not be used
}

// parser returns a parser of a command's settings. It has the problems of the log settings, so that
// one message names all problems.
func (a *app) parser() *parser { return &parser{getenv: os.Getenv, problems: slices.Clone(a.problems)} }

// usageError is a wrong command line or configuration: exit code 2.
type usageError struct {
	text     string
	settings []string // what is wrong with each setting, if it is about settings
}

func (e *usageError) Error() string { return e.text }

// usageErrorf returns a *usageError with that text.
func usageErrorf(format string, args ...any) error {
	return &usageError{text: fmt.Sprintf(format, args...)}
}

// Run runs the command that args name, without the program's name, and returns the exit code: 0
// done, 1 failed, 2 wrong usage or configuration. It reads settings from the environment, and
// unsets variables that are empty. release is the version that was set when a release was built;
// empty for any other build.
func Run(release string, args []string, stdout, stderr io.Writer) int {
	unsetEmpty()
	syscall.Umask(syscall.Umask(0) | 0o077) // files are for this user alone
	var g grammar
	a := &app{version: programVersion(release), stdout: stdout, stderr: stderr}
	helped := false
	k := newKong(&g,
		kong.Name("papermap-worker"),
		kong.Description("Gives each tenant its Papermap dashboard.\n\n"+
			"Settings are environment variables; those that are no secret are flags as well."),
		kong.Writers(stdout, stderr),
		kong.Exit(func(int) { helped = true }), // after it has printed help; then it parses the rest
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.BindToProvider(a.database),
	)
	command, err := k.Parse(args)
	if helped {
		return 0
	}
	if err != nil {
		fmt.Fprintf(stderr, "papermap-worker: %v\nTry `papermap-worker --help`.\n", err)
		return 2
	}
	if slices.Contains(longRunning, command.Command()) {
		signal.Ignore(syscall.SIGPIPE) // or a log that nobody reads any more would end the process
		log := newBackgroundLog(stderr)
		defer log.close()
		stderr = log
	}
	var cancel context.CancelFunc
	a.ctx, cancel = untilSignal()
	defer cancel()
	a.ctx = worker.WithActor(a.ctx, operator())
	p := a.parser()
	a.log = g.logger(p, stderr)
	a.problems = p.problems
	err = command.Run(a)
	for _, close := range slices.Backward(a.closers) {
		close()
	}
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "papermap-worker: %v\n", err)
	if usage := (*usageError)(nil); errors.As(err, &usage) {
		return 2
	}
	return 1
}

// longRunning are the commands whose work goes on when their output cannot be written. Others end, as
// a pipe to head expects.
var longRunning = []string{"serve", "dev", "simulate"}

// newKong returns a parser of the command line that sets what into points to. Settings, which are
// the flags of a group, come from the environment as well, under the flag's name: --max-attempts is
// MAX_ATTEMPTS.
func newKong(into any, options ...kong.Option) *kong.Kong {
	return kong.Must(into, append(options, kong.PostBuild(func(k *kong.Kong) error {
		return kong.Visit(k.Model, func(v kong.Visitable, next kong.Next) error {
			if node, ok := v.(*kong.Node); ok {
				if example := examples[strings.TrimPrefix(node.FullPath(), k.Model.Name+" ")]; example != "" {
					node.Detail = "Example:\n\n    " + example
				}
			}
			if flag, ok := v.(*kong.Flag); ok && flag.Group != nil {
				flag.Envs = []string{strings.ToUpper(strings.ReplaceAll(flag.Name, "-", "_"))}
				flag.Tag.Envs = flag.Envs
			}
			return next(nil)
		})
	}))...)
}

// untilSignal returns a context that ends at SIGINT, SIGTERM and SIGHUP, unless nohup has that ignored.
// From then on a second signal ends the process at once, by its default action.
func untilSignal() (ctx context.Context, cancel context.CancelFunc) {
	ctx, cancel = context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(signals, syscall.SIGHUP)
	}
	go func() {
		select {
		case <-signals:
		case <-ctx.Done():
		}
		signal.Stop(signals) // before the context ends, which is what others see of the first signal
		cancel()
	}()
	return ctx, cancel
}

// unsetEmpty makes an empty variable an unset one, for us and for the libraries that read the
// environment.
func unsetEmpty() {
	for _, entry := range os.Environ() {
		if name, value, _ := strings.Cut(entry, "="); value == "" {
			os.Unsetenv(name)
		}
	}
}
