// Package cli is the command line of papermap-worker. Main does nothing but call [Run]:
//
//	os.Exit(cli.Run(build, os.Args[1:], os.Stdout, os.Stderr))
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

// grammar is what the command line can say. The examples are in examples, the order of the overview is
// in purposes.
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
	Backup   backupCmd   `cmd:"" help:"Back up the database, while workers run."`
	Replay   replayCmd   `cmd:"" help:"Publish the stream's events again, into a restored database."`
	Audit    auditCmd    `cmd:"" help:"Show who did what."`
	Usage    usageCmd    `cmd:"" help:"Show and export synced usage."`
	Doctor   doctorCmd   `cmd:"" help:"Check configuration, NATS, database and Papermap."`
	JWT      jwtCmd      `cmd:"" name:"jwt" help:"Mint a bearer token for REST, to try it."`
	Man      manCmd      `cmd:"" help:"Print the man page."`
	Version  versionCmd  `cmd:"" help:"Print the version, also --version."`
	Help     helpCmd     `cmd:"" help:"Show these commands, or the help of one."`

	ConsoleUser  consoleUserCmd  `cmd:"" help:"Make a line for CONSOLE_USERS_FILE."`
	RestoreCheck restoreCheckCmd `cmd:"" help:"Check a backup and count what it holds."`
	Completion   completionCmd   `cmd:"" help:"Print the completion script of a shell."`

	EnvFile     string `name:"env-file" help:"File of NAME=value lines with settings. Variables win over it."`
	logSettings `group:"Log"`
}

// purposes are the commands in the order of the overview.
var purposes = []struct{ title, commands string }{
	{"Try it", "demo dev simulate"},
	{"Run it", "serve migrate health doctor"},
	{"Events and tokens", "publish token usage"},
	{"Tenants", "tenants attempts import audit"},
	{"Dead letters and recovery", "dead backup restore-check replay"},
	{"Access", "console-user jwt"},
	{"This program", "completion man version help"},
}

// examples are shown in the help of the command, by its name.
var examples = map[string]string{
	"serve":                    "papermap-worker serve --env-file /etc/papermap/worker.env",
	"demo":                     "papermap-worker demo -v",
	"dev":                      "papermap-worker dev --tenants 150",
	"simulate":                 "papermap-worker simulate --fault 'on=create status=503 rate=0.1'",
	"migrate":                  "papermap-worker migrate --env-file /etc/papermap/worker.env",
	"migrate up":               "papermap-worker migrate up",
	"migrate status":           "DATABASE_URL=sqlite:papermap.db papermap-worker migrate status",
	"health":                   "papermap-worker health --http-addr 127.0.0.1:8080",
	"publish":                  "papermap-worker publish tenant-created org-1 --name 'Acme Corp'",
	"publish tenant-created":   "papermap-worker publish tenant-created org-1 --name 'Acme Corp' --wait",
	"publish tenant-suspended": "papermap-worker publish tenant-suspended org-1 --reason unpaid",
	"publish tenant-resumed":   "papermap-worker publish tenant-resumed org-1",
	"publish tenant-deleted":   "papermap-worker publish tenant-deleted org-1 --wait",
	"publish usage-sync":       "papermap-worker publish usage-sync --from-period 2026-01 --wait",
	"token":                    "papermap-worker token org-1 --url",
	"tenants":                  "papermap-worker tenants show org-1",
	"tenants list":             "papermap-worker tenants list --search acme",
	"tenants show":             "papermap-worker tenants show org-1",
	"tenants resolve":          "papermap-worker tenants resolve org-1 --dashboard-id 6f1c1f6e",
	"attempts":                 "papermap-worker attempts list",
	"attempts list":            "papermap-worker attempts list --json",
	"import":                   "papermap-worker import tenants.csv --dry-run",
	"attempts resolve":         "papermap-worker attempts resolve pmw:0f4e4f57",
	"dead":                     "papermap-worker dead list",
	"dead show":                "papermap-worker dead show 17",
	"dead list":                "papermap-worker dead list --type tenant.created --since 2h",
	"dead replay":              "papermap-worker dead replay --code API_REFUSED --dry-run",
	"dead discard":             "papermap-worker dead discard 17 18",
	"replay":                   "papermap-worker replay --since 2026-01-31T12:00:00Z --dry-run",
	"backup":                   "papermap-worker backup /var/backups/papermap/papermap.db",
	"restore-check":            "papermap-worker restore-check /var/backups/papermap/papermap.db",
	"usage":                    "papermap-worker usage show --from 2026-01",
	"usage runs":               "papermap-worker usage runs --limit 5",
	"usage show":               "papermap-worker usage show --tenant org-1 --from 2026-01",
	"usage export":             "papermap-worker usage export --from 2026-01 --to 2026-03 > usage.csv",
	"usage run":                "papermap-worker usage run --json",
	"completion":               "source <(papermap-worker completion bash)",
	"man":                      "papermap-worker man | man -l -",
	"version":                  "papermap-worker version",
	"help":                     "papermap-worker help tenants list",
	"audit":                    "papermap-worker audit --tenant-id org-1 --since 24h",
	"usage budget":             "papermap-worker usage budget list",
	"usage budget list":        "papermap-worker usage budget list --json",
	"usage budget unset":       "papermap-worker usage budget unset org-1",
	"usage budget set":         "papermap-worker usage budget set org-1 --credits 1000 --thresholds 80,100",
	"doctor":                   "papermap-worker doctor --json",
	"jwt":                      "papermap-worker jwt --tenant-id org-1 --scope papermap:create --ttl 10m",
	"console-user":             "papermap-worker console-user ann --role viewer >> console-users",
}

// app is what every command gets.
type app struct {
	build    worker.Build
	ctx      context.Context // ends at SIGINT, SIGTERM and SIGHUP
	stdout   io.Writer       // data
	stderr   io.Writer       // notes for people, and the log
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
// done, 1 failed, 2 wrong usage or configuration, 128 and its number for a signal that interrupted a
// command. It reads settings from the environment, and unsets variables that are empty. release
// is what was set when a release was built; empty for any other build.
func Run(release Build, args []string, stdout, stderr io.Writer) int {
	unsetEmpty()
	syscall.Umask(syscall.Umask(0) | 0o077) // files are for this user alone
	args = spelledOtherwise(args)
	if err := loadEnvFile(args); err != nil {
		fmt.Fprintf(stderr, "papermap-worker: %v\n", err)
		return 2
	}
	var g grammar
	a := &app{build: programBuild(release), stdout: stdout, stderr: stderr}
	helped := false
	k := newKong(&g,
		kong.Name("papermap-worker"),
		kong.Description("Gives each tenant its Papermap dashboard.\n\n"+
			"Settings are environment variables. Those that are not secret are also flags."),
		kong.Writers(stdout, stderr),
		kong.Exit(func(int) { helped = true }), // after it has printed help; then it parses the rest
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}), kong.Help(printHelp),
		kong.BindToProvider(a.database),
	)
	command, err := k.Parse(args)
	if helped {
		return 0
	}
	if err != nil {
		if len(args) == 0 {
			_ = printOverview(stderr, k.Model, min(terminalWidth(stderr, 80), 100))
			fmt.Fprintln(stderr)
		}
		fmt.Fprintf(stderr, "papermap-worker: %s\n%s\n", plain(err), helpHint(k.Model.Name, err))
		return 2
	}
	if slices.Contains(longRunning, command.Command()) {
		signal.Ignore(syscall.SIGPIPE) // or writing to a closed pipe would end the process
		log := newBackgroundLog(stderr)
		defer log.close()
		stderr, a.stderr = log, log
	}
	var cancel context.CancelCauseFunc
	a.ctx, cancel = untilSignal()
	defer cancel(nil)
	a.ctx = worker.WithActor(a.ctx, operator())
	p := a.parser()
	a.log = g.logger(p, stderr)
	a.problems = p.problems
	a.warnOfUnknown(command, k)
	err = command.Run(a)
	for _, close := range slices.Backward(a.closers) {
		close()
	}
	if err == nil {
		return 0
	}
	if signal, ok := context.Cause(a.ctx).(signalled); ok && errors.Is(err, context.Canceled) {
		text := "interrupted"
		if note := (*interruptedError)(nil); errors.As(err, &note) {
			text += ": " + note.note
		}
		fmt.Fprintf(stderr, "papermap-worker: %s\n", text)
		return 128 + int(signal.Signal)
	}
	fmt.Fprintf(stderr, "papermap-worker: %v\n", err)
	if usage := (*usageError)(nil); errors.As(err, &usage) {
		return 2
	}
	return 1
}

// interruptedError is what a command that a person interrupts has to say about it.
type interruptedError struct{ note string }

func (e *interruptedError) Error() string { return "interrupted: " + e.note }

func (e *interruptedError) Unwrap() error { return context.Canceled }

// signalled is why a context ended.
type signalled struct{ syscall.Signal }

func (s signalled) Error() string { return "interrupted" }

// warnOfUnknown warns of variables that are probably misspelled settings, unless the command reads no
// settings from the environment.
func (a *app) warnOfUnknown(command *kong.Context, k *kong.Kong) {
	name, _, _ := strings.Cut(command.Command(), " ")
	if strings.Contains(" demo dev simulate version completion man restore-check ", " "+name+" ") {
		return
	}
	for _, text := range unknownSettings(settingNames(k), os.Environ()) {
		if slices.Contains(longRunning, name) {
			a.log.Warn("unknown setting", "warning", text)
		} else {
			fmt.Fprintf(a.stderr, "papermap-worker: warning: %s\n", text)
		}
	}
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
func untilSignal() (ctx context.Context, cancel context.CancelCauseFunc) {
	ctx, cancel = context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(signals, syscall.SIGHUP)
	}
	go func() {
		var cause error
		select {
		case s := <-signals:
			cause = signalled{s.(syscall.Signal)}
		case <-ctx.Done():
		}
		signal.Stop(signals) // before the context ends, which is what others see of the first signal
		cancel(cause)
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
