package repo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"papermap-worker/repo/pgtest"
)

// throughPooler runs a test on a new PostgreSQL database directly, and through a pooler that gives
// every transaction another connection.
func throughPooler(t *testing.T, test func(t *testing.T, address string)) {
	t.Run("direct", func(t *testing.T) { test(t, pgtest.Need(t, postgres)) })
	t.Run("PgBouncer", func(t *testing.T) {
		test(t, pgtest.PgBouncer(t, pgtest.Need(t, postgres)))
	})
}

func TestMigrateOfSeveralProgramsAppliesEachOnce(t *testing.T) {
	throughPooler(t, func(t *testing.T, address string) {
		for round := range 10 {
			var applied atomic.Int32
			var group sync.WaitGroup
			for range 3 {
				group.Go(func() {
					db, err := OpenLimited(ctx, address, CommandConns)
					if err != nil {
						t.Error(err)
						return
					}
					defer db.Close()
					names, err := db.Migrate(ctx)
					if err != nil {
						t.Error(err)
					}
					applied.Add(int32(len(names)))
				})
			}
			group.Wait()
			db, err := OpenLimited(ctx, address, CommandConns)
			must(t, err)
			list, err := db.Migrations(ctx)
			must(t, errors.Join(err, db.CheckSchema(ctx)))
			same(t, fmt.Sprintf("applied in round %d", round), int(applied.Load()), len(list))
			db.write.MustExec("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
			must(t, db.Close())
		}
	})
}

// A migration may take longer than a statement, and waits for another program's, with a word.
func TestMigrateWaitsForAnotherProgram(t *testing.T) {
	throughPooler(t, func(t *testing.T, address string) {
		db := openPostgresTest(t, address)
		other, err := db.write.BeginTxx(ctx, nil)
		must(t, err)
		defer other.Rollback()
		must(t, func() error {
			_, err := other.ExecContext(ctx, "SELECT pg_advisory_xact_lock(31645556022274407)")
			return err
		}())
		waits := make(chan bool, 2)
		done := make(chan error, 1)
		go func() {
			_, err := db.MigrateWhenFree(ctx, func(w bool) { waits <- w })
			done <- err
		}()
		same(t, "it waits", <-waits, true)
		must(t, other.Commit())
		must(t, <-done)
		same(t, "it waits", <-waits, false)
		must(t, db.CheckSchema(ctx))
	})
}

// The time-outs of migrations are their own, whatever DATABASE_URL or the role says.
func TestMigrateHasNoStatementTimeout(t *testing.T) {
	address := pgtest.Need(t, postgres)
	admin := openPostgresTest(t, address)
	admin.write.MustExec("CREATE FUNCTION slow() RETURNS event_trigger LANGUAGE plpgsql AS " +
		"$$ BEGIN PERFORM pg_sleep(0.3); END $$")
	admin.write.MustExec("CREATE EVENT TRIGGER slow ON ddl_command_end WHEN TAG IN ('CREATE TABLE') " +
		"EXECUTE FUNCTION slow()")
	db := openPostgresTest(t, address+"&statement_timeout=250ms")
	_, err := db.Migrate(ctx)
	must(t, err)
}

// Nothing reads the list of migrations but `migrate` and serve may make it.
func TestCheckSchemaChangesNothing(t *testing.T) {
	db := openPostgresTest(t, pgtest.Need(t, postgres))
	if err := db.CheckSchema(ctx); !errors.Is(err, ErrSchemaBehind) {
		t.Errorf("an empty database: %v", err)
	}
	list, err := db.Migrations(ctx)
	must(t, err)
	for _, m := range list {
		same(t, m.Name+" is applied", m.Applied, false)
	}
	tables := 0
	must(t, db.read.get(ctx, &tables, "SELECT COUNT(*) FROM pg_tables WHERE schemaname = 'public'"))
	same(t, "tables", tables, 0)
}

// Sessions of a pooler's connection may have been changed by others, and roles have settings.
func TestSessionSettingsDoNotMatter(t *testing.T) {
	throughPooler(t, func(t *testing.T, address string) {
		admin := openPostgresTest(t, address)
		for _, setting := range []string{
			"datestyle = 'SQL, DMY'", "timezone = 'Asia/Kathmandu'", "intervalstyle = 'sql_standard'",
			"extra_float_digits = -15", "bytea_output = 'escape'", "client_encoding = 'LATIN1'",
			"default_transaction_isolation = 'serializable'", "statement_timeout = '1h'",
		} {
			name, value, _ := strings.Cut(setting, " = ")
			admin.write.MustExec(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET ` + name + ` = ` +
				strings.ReplaceAll(value, "'", "''") + `', current_database()); END $$`)
		}
		must(t, admin.Close())
		for _, mode := range []string{"", "exec", "simple_protocol", "cache_statement", "describe_exec"} {
			if mode != "" {
				mode = "&default_query_exec_mode=" + mode
			}
			db := openPostgresTest(t, address+mode)
			_, err := db.Migrate(ctx)
			must(t, err)
			tenant := "tenant-Ä€" + mode
			e := created(tenant, 10, "m")
			c, err := db.Begin(ctx, e, false)
			must(t, err)
			same(t, "recorded", finish(t, db, c), true)
			m := mapping(t, db, tenant)
			if since := time.Since(m.CreatedAt.Time); since < -time.Minute || since > time.Minute {
				t.Errorf("%s: created %v ago", mode, since)
			}
			list, err := db.Mappings(ctx, Active, "", 100)
			must(t, err)
			if !strings.Contains(fmt.Sprint(list), tenant) {
				t.Errorf("%s: %v", mode, list)
			}
			run, err := tryRun(db, want("w"+mode, "e"))
			must(t, err)
			record(t, db, &run,
				UsageRow{TenantID: tenant, Period: "2026-01", Credits: "12345.678901", Requests: 7})
			months, err := db.UsageByMonth(ctx)
			must(t, err)
			if got := fmt.Sprint(months); !strings.Contains(got, "2026-01") ||
				!strings.Contains(got, "5.678901") && !strings.Contains(got, ".") {
				t.Errorf("%s: %s", mode, got)
			}
			_, err = db.Stats(ctx)
			must(t, errors.Join(err, db.Check(ctx)))
			_, err = db.Prune(ctx, time.Hour)
			must(t, err)
			must(t, db.EachUsage(ctx, UsageFilter{}, func(Usage) error { return nil }))
		}
	})
}

// Behind a pooler nothing may be left for whoever gets the connection next.
func TestPoolerConnectionsAreLeftAsTheyWere(t *testing.T) {
	address := pgtest.Need(t, postgres)
	db := openPostgresTest(t, pgtest.PgBouncer(t, address))
	_, err := db.Migrate(ctx)
	must(t, err)
	for i := range 20 {
		finish(t, db, claim(t, db, fmt.Sprint("t", i)))
	}
	must(t, db.Check(ctx))
	_, err = db.Prune(ctx, time.Hour)
	must(t, err)
	for range 20 {
		var left string
		must(t, db.write.GetContext(ctx, &left, `SELECT concat_ws(' ', current_setting('statement_timeout'),
			current_setting('lock_timeout'), current_setting('enable_seqscan'),
			(SELECT count(*) FROM pg_prepared_statements),
			(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'))`))
		same(t, "settings, prepared statements and advisory locks", left, "0 0 on 0 0")
	}
}

func TestPoolsOfAWorkerAreApart(t *testing.T) {
	for conns := MinConns; conns <= 200; conns++ {
		sum := 0
		for name, n := range connectionShares(conns) {
			if sum += n; n < 1 {
				t.Errorf("of %d connections %s has %d", conns, name, n)
			}
		}
		same(t, "connections of all pools", sum, conns)
	}
	db := openPostgresTest(t, pgtest.Need(t, postgres))
	_, err := db.Migrate(ctx)
	must(t, err)
	for range connectionShares(DefaultConns)["people"] { // people look at something that takes long
		conn, err := db.People().read.Connx(ctx)
		must(t, err)
		defer conn.Close()
	}
	soon, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	finish(t, db, claim(t, db, "a"))
	_, err = db.Tokens().Mapping(soon, "a")
	must(t, errors.Join(err, db.Check(soon)))
	waits, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := db.People().Mapping(waits, "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a person's read found a connection: %v", err)
	}
}

func TestTooManyConnectionsIsExplained(t *testing.T) {
	address := pgtest.Need(t, postgres)
	admin := openPostgresTest(t, address)
	admin.write.MustExec("CREATE ROLE one_only LOGIN CONNECTION LIMIT 0")
	defer admin.write.MustExec("DROP ROLE one_only")
	_, err := Open(ctx, strings.Replace(address, "postgres@", "one_only@", 1))
	if err == nil || !strings.Contains(err.Error(), "lower DATABASE_MAX_CONNS") || !Unreachable(err) {
		t.Errorf("a role without a connection left: %v", err)
	}
}
