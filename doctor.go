package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
	"papermap-worker/schema"
	"papermap-worker/worker"
	"papermap-worker/worker/ops"
)

type doctorCmd struct {
	JSON bool `help:"Print JSON."`
	serveCmd
}

// finding is what doctor found at one place.
type finding struct {
	Status string `json:"status"` // ok, warning or error
	Check  string `json:"check"`
	Found  string `json:"found"`
	Do     string `json:"do,omitempty"`
}

// findings collects them.
type findings struct{ list []finding }

func (f *findings) ok(check, format string, args ...any) {
	f.list = append(f.list, finding{"ok", check, fmt.Sprintf(format, args...), ""})
}

func (f *findings) warn(check, found, do string) {
	f.list = append(f.list, finding{"warning", check, found, do})
}

func (f *findings) fail(check, found, do string) {
	f.list = append(f.list, finding{"error", check, found, do})
}

func (f *findings) errors() int {
	n := 0
	for _, one := range f.list {
		if one.Status == "error" {
			n++
		}
	}
	return n
}

// Run looks at everything that serve needs, and changes nothing: no stream, no table, no dashboard.
func (c *doctorCmd) Run(a *app) error {
	var f findings
	cfg, err := c.serveCmd.config(a.problems)
	var wrong *usageError
	if errors.As(err, &wrong) {
		for line := range strings.SplitSeq(wrong.text, "\n  - ") {
			if !strings.HasPrefix(line, "the configuration is wrong") {
				f.fail("configuration", line, "correct the setting")
			}
		}
	} else {
		f.ok("configuration", "%d workspaces", len(cfg.worker.Workspaces))
		ctx, cancel := context.WithTimeout(a.ctx, time.Minute)
		defer cancel()
		f.nats(ctx, cfg.bus)
		f.database(ctx, cfg.database, cfg.migrate)
		f.papermap(ctx, cfg.worker)
		f.restKeys(ctx, cfg.http.JWT)
	}
	if err := f.print(a.stdout, c.JSON); err != nil {
		return err
	}
	switch n := f.errors(); {
	case wrong != nil:
		return &usageError{"the worker could not start: its configuration is wrong"}
	case n > 0:
		return fmt.Errorf("the worker could not work: %d of %d checks failed", n, len(f.list))
	}
	return nil
}

func (f *findings) nats(ctx context.Context, o events.Options) {
	o.Wait, o.Name = false, "papermap-worker-doctor"
	bus, err := events.Connect(o, slog.New(slog.DiscardHandler))
	if err != nil {
		f.fail("NATS", err.Error(), "is the server running, is NATS_URL right, and are the credentials? serve waits until it can connect")
		return
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		bus.Close(closing)
	}()
	for _, one := range bus.Diagnose(ctx) {
		switch {
		case one.Do == "":
			f.ok(one.Check, "%s", one.Found)
		case one.Fatal:
			f.fail(one.Check, one.Found, one.Do)
		default:
			f.warn(one.Check, one.Found, one.Do)
		}
	}
}

func (f *findings) database(ctx context.Context, address string, migrate bool) {
	const check = "database"
	if err := repo.Exists(address); err != nil {
		if path, ok := strings.CutPrefix(address, "sqlite:"); ok {
			if _, err := os.Stat(filepath.Dir(path)); err != nil {
				f.fail(check, fmt.Sprintf("there is none yet, and no folder %s for it", filepath.Dir(path)), "make the folder, or correct DATABASE_URL")
				return
			}
		}
		f.ok(check, "there is none yet: serve makes it")
		return
	}
	opening, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	db, err := repo.Open(opening, address)
	if err != nil {
		do := "correct DATABASE_URL"
		if repo.Unreachable(err) {
			do = "start the server, or correct DATABASE_URL; serve waits until it can connect"
		}
		f.fail(check, err.Error(), do)
		return
	}
	defer db.Close()
	if err := db.CheckIntegrity(ctx); err != nil {
		f.fail(check, err.Error(), "restore it from a backup, then `papermap-worker replay --since` a time before that")
		return
	}
	switch err := db.CheckSchema(ctx); {
	case errors.Is(err, schema.ErrBehind) && migrate:
		f.ok(check, "it is behind this program: serve migrates it")
	case errors.Is(err, schema.ErrBehind):
		f.fail(check, err.Error(), "run `papermap-worker migrate`, or set DATABASE_MIGRATE=true")
	case errors.Is(err, schema.ErrNewer):
		f.fail(check, err.Error(), "run the newer program")
	case err != nil:
		f.fail(check, err.Error(), "may the user read and write the tables?")
	default:
		s, err := db.Stats(ctx)
		if err != nil {
			f.fail(check, err.Error(), "may the user read the tables?")
			return
		}
		engine, err := db.Engine(ctx)
		if err != nil {
			f.fail(check, err.Error(), "is it a database of the kind that DATABASE_URL names?")
			return
		}
		if strings.HasPrefix(address, "sqlite:") {
			engine += ", whole"
		}
		f.ok(check, "%s, up to date; %d tenants active, %d events out wait", engine, s.Tenants[repo.Active], s.Unsent)
		if held := s.Tenants[repo.Held]; held > 0 {
			f.warn("held tenants", fmt.Sprintf("%d wait for a decision", held), "`papermap-worker tenants list --status held`, then `tenants resolve`")
		}
		if s.Uncertain > 0 {
			f.warn("possible orphans", fmt.Sprintf("%d create requests have an unknown outcome", s.Uncertain), "`papermap-worker attempts list` says what to look for in Papermap's page")
		}
	}
}

// papermap reads one row of usage with each key pair: that tells address, credentials and clock, and makes nothing.
func (f *findings) papermap(ctx context.Context, cfg worker.Config) {
	for _, ws := range cfg.Workspaces {
		check := "Papermap, workspace " + ws.ID
		if ambiguousID(ws.ID) {
			f.warn(check, "its id ends in a digit: Papermap signs id and time without a separator, so a signature could fit another id", "use an id of fixed length, if you can choose")
		}
		pairs := []papermap.KeyPair{ws.Key}
		if ws.EmbedKey != ws.Key {
			pairs = append(pairs, ws.EmbedKey)
		} else {
			f.warn(check, "one pair signs API requests and embed tokens: until it expires, a token's holder can call the API",
				"set PAPERMAP_EMBED_API_KEY_ID and PAPERMAP_EMBED_SECRET_KEY to a pair of their own")
		}
		for _, pair := range pairs {
			one := ws
			one.Key = pair
			f.probe(ctx, check+", key "+pair.ID, one, cfg.Timeout)
		}
	}
}

func (f *findings) probe(ctx context.Context, check string, ws papermap.Workspace, timeout time.Duration) {
	client := papermap.NewClient(ws, papermap.ClientOptions{Timeout: timeout, UserAgent: "papermap-worker-doctor/" + programVersion()})
	defer client.Close()
	err := client.Probe(ctx)
	skew, known := client.ClockSkew()
	var api *papermap.Error
	switch {
	case err == nil:
		f.ok(check, "it answers, and takes the key")
	case errors.As(err, &api) && api.Class == papermap.Credentials:
		f.fail(check, err.Error(), "check key id, secret and workspace id; was the pair revoked?")
	case errors.As(err, &api) && api.Class == papermap.Configuration:
		f.fail(check, err.Error(), "the API is not where PAPERMAP_API_URL says, or the workspace is another's")
	case errors.As(err, &api) && api.Deferred:
		f.warn(check, err.Error(), "try again later; the worker waits, too")
	default:
		f.fail(check, err.Error(), "can this host reach the address? The worker waits, and tokens go on")
	}
	if !known {
		return
	}
	found := fmt.Sprintf("the host's clock is %v off Papermap's", skew.Abs().Round(time.Second))
	switch {
	case skew.Abs() > worker.MostSkew:
		f.fail("clock", found, "set it; no tokens are minted until then")
	case skew.Abs() > worker.WarnSkew:
		f.warn("clock", found, "set it; beyond 5 minutes no tokens are minted")
	default:
		f.ok("clock", "it agrees with Papermap's")
	}
}

// restKeys reads the key set that REST callers' tokens are checked with, if there is one.
func (f *findings) restKeys(ctx context.Context, j ops.JWT) {
	if j.JWKS == "" {
		return
	}
	const check = "REST keys"
	switch err := j.CheckKeySet(ctx); {
	case err == nil:
		f.ok(check, "the key set can be read")
	case strings.HasPrefix(j.JWKS, "https://"):
		f.warn(check, err.Error(), "until it answers, callers' tokens are refused; can this host reach HTTP_JWT_JWKS?")
	default:
		f.fail(check, err.Error(), "correct HTTP_JWT_JWKS")
	}
}

func (f *findings) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return printJSON(w, f.list)
	}
	rows := table{{" ", "CHECK", "FOUND"}}
	for _, one := range f.list {
		rows = append(rows, []string{map[string]string{"ok": "ok", "warning": "warn", "error": "ERROR"}[one.Status], one.Check, one.Found})
		if one.Do != "" {
			rows = append(rows, []string{" ", " ", "→ " + one.Do})
		}
	}
	return rows.print(w)
}
