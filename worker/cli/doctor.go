package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
	"papermap-worker/worker"
	"papermap-worker/worker/ops"
)

// doctorCmd takes the settings of serve, and reports what a worker with them would find: a row for
// each check, with what to do where something is wrong. The exit code is 0 if a worker could work,
// also when there are warnings; 1 if not; 2 if the settings are invalid.
type doctorCmd struct {
	JSON bool `help:"Print JSON."`
	serveCmd
}

// findings are the results of the checks, in their order.
type findings []events.Finding

// ok adds a check that found all well.
func (f *findings) ok(check, format string, args ...any) {
	*f = append(*f, events.Finding{Check: check, Found: fmt.Sprintf(format, args...)})
}

// warn adds what the worker can work with, but a person should change. fix says how.
func (f *findings) warn(check, found, fix string) {
	*f = append(*f, events.Finding{Check: check, Found: found, Fix: fix})
}

// fail adds what the worker cannot work with. fix says what to do.
func (f *findings) fail(check, found, fix string) {
	*f = append(*f, events.Finding{Check: check, Found: found, Fix: fix, Fatal: true})
}

// Run checks everything that serve needs. It makes no stream, no table and no dashboard.
func (c *doctorCmd) Run(a *app) error {
	var f findings
	cfg, err := c.serveCmd.config(a.parser())
	wrong, invalid := errors.AsType[*usageError](err)
	if invalid {
		for _, problem := range wrong.settings {
			f.fail("configuration", problem, "correct the setting")
		}
	} else {
		f.ok("configuration", "%s", count(len(cfg.worker.Workspaces), "workspace"))
		ctx, cancel := context.WithTimeout(a.ctx, time.Minute)
		defer cancel()
		f.nats(ctx, cfg.bus, cfg.worker.ReplyPrefixes)
		f.database(ctx, cfg.database, cfg.migrate)
		cfg.worker.Build = a.build
		f.papermap(ctx, cfg.worker)
		f.restKeys(ctx, cfg.http.JWT)
	}
	failed, err := f.print(a.stdout, c.JSON)
	switch {
	case err != nil:
		return err
	case invalid:
		return usageErrorf("invalid configuration: `serve` would not start")
	case failed > 0:
		return fmt.Errorf("the worker could not work: %d of %s failed", failed, count(len(f), "check"))
	}
	return nil
}

// print prints the findings and counts those that failed.
func (f findings) print(w io.Writer, asJSON bool) (failed int, err error) {
	type finding struct {
		Status string `json:"status"` // ok, warning or error
		Check  string `json:"check"`
		Found  string `json:"found"`
		Do     string `json:"do,omitempty"`
	}
	list, rows := []finding{}, table{{" ", "CHECK", "FOUND"}}
	for _, one := range f {
		status, short := "ok", "ok"
		switch {
		case one.Fatal:
			status, short = "error", "ERROR"
			failed++
		case one.Fix != "":
			status, short = "warning", "warn"
		}
		list = append(list, finding{status, one.Check, one.Found, one.Fix})
		rows.add(short, one.Check, one.Found)
		if one.Fix != "" {
			rows.add(" ", " ", "→ "+one.Fix)
		}
	}
	return failed, jsonFlag{asJSON}.print(w, list, rows)
}

// nats connects with the worker's settings, once, and checks server, streams and consumers.
func (f *findings) nats(ctx context.Context, o events.Options, replyPrefixes []string) {
	o.Wait, o.Name = false, "papermap-worker-doctor"
	bus, err := events.Connect(o, slog.New(slog.DiscardHandler))
	if err != nil {
		f.fail("NATS", err.Error(), "is the server running, is NATS_URL right, and are the credentials? "+
			"serve waits until it can connect")
		return
	}
	defer closeWithin(2*time.Second, bus.Close)
	*f = append(*f, bus.Check(ctx, replyPrefixes)...)
}

// database opens the database as it is and checks it. migrate is whether serve would migrate it.
// A database that does not exist is no error, if serve could make it.
func (f *findings) database(ctx context.Context, address string, migrate bool) {
	const check = "database"
	if err := repo.CheckWorkersFile(address); err != nil {
		*f = append(*f, worker.DatabaseFinding(err))
		return
	}
	if err := repo.Exists(address); err != nil {
		if err := checkFolder(address); err != nil {
			f.fail(check, err.Error(), "make the folder, or correct DATABASE_URL")
			return
		}
		if !migrate {
			f.fail(check, "there is none yet", "run `papermap-worker migrate`, or set DATABASE_MIGRATE=true")
			return
		}
		f.ok(check, "there is none yet: serve creates it")
		return
	}
	opening, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	db, err := repo.OpenLimited(opening, address, repo.CommandConns)
	switch {
	case repo.Unreachable(err):
		f.fail(check, err.Error(),
			"start the server, or correct DATABASE_URL; serve waits until it can connect")
		return
	case err != nil:
		f.fail(check, err.Error(), "correct DATABASE_URL")
		return
	}
	defer db.Close()
	if err := db.CheckIntegrity(ctx); err != nil {
		f.fail(check, err.Error(),
			"restore it from a backup, then `papermap-worker replay --since` a time before that")
		return
	}
	if list := worker.CheckDatabase(ctx, db, migrate); len(list) > 0 {
		*f = append(*f, list...)
		return
	}
	f.tables(ctx, db, strings.HasPrefix(address, "sqlite:"))
}

// tables says what is in a database of this program's version, and what waits for a person.
func (f *findings) tables(ctx context.Context, db *repo.DB, sqlite bool) {
	const check = "database"
	s, err := db.Stats(ctx)
	engine, unknown := db.Engine(ctx)
	if err = errors.Join(err, unknown); err != nil {
		f.fail(check, err.Error(), "can the user read the tables?")
		return
	}
	if sqlite {
		engine += ", undamaged"
	}
	active := s.Tenants[repo.Active]
	f.ok(check, "%s, up to date; %s active, %s out waiting", engine, count(active, "tenant"),
		count(s.Unsent, "event"))
	if held := s.Tenants[repo.Held]; held > 0 {
		f.warn("held tenants", fmt.Sprintf("%d wait for a decision", held),
			"`papermap-worker tenants list --status held`, then `tenants resolve`")
	}
	if s.PossibleOrphans > 0 {
		f.warn("possible orphans",
			count(s.PossibleOrphans, "create request")+" of unknown outcome",
			"`papermap-worker attempts list` says what to look for in Papermap")
	}
}

// papermap reads one row of usage with each key pair. That checks address, credentials and clock.
// If the pair for API requests is accepted, it also reads a page, and says which of its field names
// are understood. Nothing is changed.
func (f *findings) papermap(ctx context.Context, cfg worker.Config) {
	agent := "papermap-worker-doctor/" + cfg.Build.Version
	for _, ws := range cfg.Workspaces {
		check := "Papermap, workspace " + ws.ID
		if ambiguousID(ws.ID) {
			f.warn(check, "its id ends in a digit: Papermap signs id and time without a separator, "+
				"so a signature could fit another id", "use an id of fixed length, if you can choose")
		}
		pairs := []papermap.KeyPair{ws.Key}
		if ws.EmbedKey != ws.Key {
			pairs = append(pairs, ws.EmbedKey)
		} else {
			f.warn(check, "one pair signs API requests and embed tokens: a token's holder can call the API",
				"set PAPERMAP_EMBED_API_KEY_ID and PAPERMAP_EMBED_SECRET_KEY to a pair of their own")
		}
		for _, pair := range pairs {
			one := ws
			one.Key = pair
			client := papermap.NewClient(one, papermap.ClientOptions{Timeout: cfg.Timeout, UserAgent: agent})
			list := worker.CheckPapermap(ctx, check+", key "+pair.ID, client)
			if pair == ws.Key && list[0].Fix == "" {
				list = append(list, worker.CheckUsage(ctx, ws.ID, client)...)
			}
			*f = append(*f, list...)
			client.Close()
		}
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
		f.warn(check, err.Error(),
			"until it answers, callers' tokens are refused; can this host reach HTTP_JWT_JWKS?")
	default:
		f.fail(check, err.Error(), "correct HTTP_JWT_JWKS")
	}
}
