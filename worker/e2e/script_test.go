package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rogpeppe/go-internal/testscript"

	"papermap-worker/papermap/simulator"
	"papermap-worker/worker/workertest"
)

// TestScripts runs the scripts, which say what the program does on the command line. Beside
// testscript's own commands they have those of scriptCommands. Their environment is empty but for
// PATH and the like.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: "worker/e2e/testdata/script", Cmds: scriptCommands, RequireExplicitExec: true,
		RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			e.Values[systemKey{}] = new(*system)
			for _, name := range []string{"PORT", "PORT2", "PORT3"} {
				port, err := workertest.FreePort()
				if err != nil {
					return err
				}
				e.Setenv(name, strconv.Itoa(port))
			}
			for name, text := range map[string]string{"ESC": "\x1b", "BEL": "\a", "CSI": "\u009b",
				"RLO": "\u202e", "NL": "\n", "TAB": "\t"} {
				e.Setenv(name, text)
			}
			return nil
		},
	})
}

// systemKey is where a script keeps the system that it started.
type systemKey struct{}

var scriptCommands = map[string]func(*testscript.TestScript, bool, []string){
	// system [fault...] starts a NATS server and a simulator, and sets the variables of a worker
	// that uses them.
	"system": func(ts *testscript.TestScript, _ bool, args []string) {
		s, err := startSystem(ts.Getenv("WORK"), args...)
		ts.Check(err)
		ts.Defer(s.close)
		*ts.Value(systemKey{}).(**system) = s
		for _, setting := range s.env {
			name, value, _ := strings.Cut(setting, "=")
			ts.Setenv(name, value)
		}
		ts.Setenv("HTTP_ADDR", "127.0.0.1:"+ts.Getenv("PORT"))
	},

	// usage TENANT MONTH CREDITS REQUESTS adds what a tenant has used at the simulator that system
	// started.
	"usage": func(ts *testscript.TestScript, _ bool, args []string) {
		requests, err := strconv.ParseInt(args[3], 10, 64)
		ts.Check(err)
		(*ts.Value(systemKey{}).(**system)).sim.ChangeUsage(testWorkspace.ID, func(u *simulator.Usage) {
			u.Rows = append(u.Rows, simulator.UsageRow{TenantID: args[0], Period: args[1], Credits: args[2],
				Requests: requests})
		})
	},

	// publish SUBJECT EVENT-ID TEXT publishes any text to a subject of the stream.
	"publish": func(ts *testscript.TestScript, _ bool, args []string) {
		nc, err := nats.Connect(ts.Getenv("NATS_URL"), nats.Timeout(patience))
		ts.Check(err)
		defer nc.Close()
		js, err := jetstream.New(nc)
		ts.Check(err)
		_, err = js.Publish(context.Background(), args[0], []byte(args[2]), jetstream.WithMsgID(args[1]))
		ts.Check(err)
	},

	// http STATUS ADDRESS [FILE] checks the status of a GET, with the bearer token that a file has.
	"http": func(ts *testscript.TestScript, _ bool, args []string) {
		token := ""
		if len(args) > 2 {
			token = strings.TrimSpace(ts.ReadFile(args[2]))
		}
		status, err := httpStatus(args[1], token)
		ts.Check(err)
		if fmt.Sprint(status) != args[0] {
			ts.Fatalf("status %d, want %s", status, args[0])
		}
	},

	// certificate CERT KEY writes a certificate and its key.
	"certificate": func(ts *testscript.TestScript, _ bool, args []string) {
		ts.Check(makeCertificate(ts.MkAbs(args[0]), ts.MkAbs(args[1])))
	},

	// mode MODE FILE... checks permissions.
	"mode": func(ts *testscript.TestScript, _ bool, args []string) {
		for _, file := range args[1:] {
			info, err := os.Stat(ts.MkAbs(file))
			ts.Check(err)
			if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[0] {
				ts.Fatalf("%s has mode %s, want %s", file, got, args[0])
			}
		}
	},

	// exits CODE COMMAND... runs a command that ends with the code.
	"exits": func(ts *testscript.TestScript, _ bool, args []string) {
		want, err := strconv.Atoi(args[0])
		ts.Check(err)
		code := 0
		if err := ts.Exec(args[1], args[2:]...); err != nil {
			var exit *exec.ExitError
			if !errors.As(err, &exit) {
				ts.Fatalf("%v", err)
			}
			code = exit.ExitCode()
		}
		if code != want {
			ts.Fatalf("exit code %d, want %d", code, want)
		}
	},

	// until PATTERN COMMAND... runs a command until it succeeds and prints what the pattern
	// matches.
	"until": func(ts *testscript.TestScript, _ bool, args []string) {
		pattern := regexp.MustCompile("(?m)" + args[0])
		for limit := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			err := ts.Exec(args[1], args[2:]...)
			if err == nil && pattern.MatchString(ts.ReadFile("stdout")) {
				return
			}
			if time.Now().After(limit) {
				ts.Fatalf("never printed %q: %v", args[0], err)
			}
		}
	},

	// capture NAME PATTERN sets a variable to what the pattern's group matches in the last output.
	"capture": func(ts *testscript.TestScript, _ bool, args []string) {
		match := regexp.MustCompile("(?m)" + args[1]).FindStringSubmatch(ts.ReadFile("stdout"))
		if match == nil {
			ts.Fatalf("%q matches nothing", args[1])
		}
		ts.Setenv(args[0], match[1])
	},

	// opens says whether Papermap's page opens at the address that was printed.
	"opens": func(ts *testscript.TestScript, neg bool, _ []string) {
		err := openEmbedded(strings.TrimSpace(ts.ReadFile("stdout")))
		if (err != nil) != neg {
			ts.Fatalf("opening the printed address: %v", err)
		}
	},

	// empty FOLDER says that there is nothing in it.
	"empty": func(ts *testscript.TestScript, _ bool, args []string) {
		list, err := os.ReadDir(ts.MkAbs(args[0]))
		ts.Check(err)
		if len(list) > 0 {
			ts.Fatalf("left behind: %v", list)
		}
	},
}
