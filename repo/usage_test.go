package repo

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"papermap-worker/repo/pgtest"
)

func TestUsageReadsInOrderAndByFilter(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		for _, workspace := range []string{"w2", "w1"} {
			run := mustRun(t, db, want(workspace, "e"))
			var rows []UsageRow
			for _, tenant := range []string{"b", "a", "B", "é"} {
				for _, period := range []string{"2026-02", "2025-12", "2026-01"} {
					rows = append(rows, UsageRow{TenantID: tenant, Period: period, Credits: "1"})
				}
			}
			record(t, db, run, rows...)
		}
		const all = "w1/B/2025-12 w1/B/2026-01 w1/B/2026-02 w1/a/2025-12 w1/a/2026-01 w1/a/2026-02 " +
			"w1/b/2025-12 w1/b/2026-01 w1/b/2026-02 w1/é/2025-12 w1/é/2026-01 w1/é/2026-02"
		for _, test := range []struct {
			f             UsageFilter
			offset, limit int
			want          string
			total         int
		}{
			{UsageFilter{}, 0, 100, all + " " + strings.ReplaceAll(all, "w1", "w2"), 24},
			{UsageFilter{WorkspaceID: "w1"}, 0, 100, all, 12},
			{UsageFilter{WorkspaceID: "w1"}, 2, 2, "w1/B/2026-02 w1/a/2025-12", 12},
			{UsageFilter{WorkspaceID: "w1"}, 11, 5, "w1/é/2026-02", 12},
			{UsageFilter{WorkspaceID: "w1"}, 12, 5, "", 12},
			{UsageFilter{WorkspaceID: "w1"}, 0, 0, "", 12},
			{UsageFilter{WorkspaceID: "none"}, 0, 5, "", 0},
			{UsageFilter{TenantID: "a", FromPeriod: "2026-01"}, 0, 100,
				"w1/a/2026-01 w1/a/2026-02 w2/a/2026-01 w2/a/2026-02", 4},
			{UsageFilter{TenantID: "a", ToPeriod: "2026-01", WorkspaceID: "w2"}, 0, 100,
				"w2/a/2025-12 w2/a/2026-01", 2},
			{UsageFilter{FromPeriod: "2026-01", ToPeriod: "2026-01", WorkspaceID: "w1"}, 0, 100,
				"w1/B/2026-01 w1/a/2026-01 w1/b/2026-01 w1/é/2026-01", 4},
			{UsageFilter{FromPeriod: "2026-02", ToPeriod: "2026-01"}, 0, 100, "", 0},
			{UsageFilter{TenantID: "A"}, 0, 100, "", 0},
		} {
			list, total, err := db.Usage(ctx, test.f, test.offset, test.limit)
			must(t, err)
			text := func(u Usage) string { return u.WorkspaceID + "/" + u.TenantID + "/" + u.Period }
			var got, each []string
			for _, u := range list {
				got = append(got, text(u))
			}
			same(t, fmt.Sprintf("%+v", test), strings.Join(got, " "), test.want)
			same(t, fmt.Sprintf("total of %+v", test.f), total, test.total)
			if test.offset > 0 || test.limit == 0 {
				continue
			}
			must(t, db.EachUsage(ctx, test.f,
				func(u Usage) error { each = append(each, text(u)); return nil }))
			same(t, fmt.Sprintf("each of %+v", test.f), strings.Join(each, " "), test.want)
		}
		enough := errors.New("enough")
		n := 0
		if err := db.EachUsage(ctx, UsageFilter{}, func(Usage) error { n++; return enough }); !errors.Is(err,
			enough) || n != 1 {
			t.Errorf("a reader that ended it got %v after %d rows", err, n)
		}
	})
}

func TestUsageFlagsUnknownAndUnattributedTenants(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		run := startRun(t, db, "e")
		february := row("a", "1", 1)
		february.Period = "2026-02"
		record(t, db, run, february, row("a", "1", 1), row("b", "1", 1))
		flags := func() string {
			list, _, err := db.Usage(ctx, UsageFilter{}, 0, 10)
			must(t, err)
			var all []string
			for _, u := range list {
				text := u.TenantID + u.Period[4:]
				if u.Unknown {
					text += "?"
				}
				if u.Unattributed {
					text += "!"
				}
				all = append(all, text)
			}
			return strings.Join(all, " ")
		}
		tokens := func(workspace, tenant, period string) {
			must(t, db.AddTokens(ctx, []TokenCount{{workspace, tenant, period, 1}}))
		}
		same(t, "at first", flags(), "a-02?! a-03?! b-03?!")
		claim(t, db, "a")
		same(t, "once a is known", flags(), "a-02! a-03! b-03?!")
		change(t, db, "b", Suspended, 1)
		same(t, "once b is known, without a dashboard", flags(), "a-02! a-03! b-03!")
		tokens("w2", "a", "2026-03")
		tokens("w", "a", "2026-01")
		tokens("w", "c", "2026-03")
		same(t, "after tokens of another workspace, month and tenant", flags(), "a-02! a-03! b-03!")
		tokens("w", "a", "2026-03")
		same(t, "after a token", flags(), "a-02! a-03 b-03!")
	})
}

func TestTokenCountsAddUp(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		var group sync.WaitGroup
		for range 8 { // as replicas do
			group.Go(func() {
				err := db.AddTokens(ctx, []TokenCount{{"w", "a", "2026-03", 2}, {"w", "b", "2026-03", 1},
					{"w", "a", "2026-04", 1}, {"w2", "a", "2026-03", 1}, {"w", "a", "2026-03", 3}})
				if err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		var got []string
		must(t, db.read.Select(&got, `SELECT concat_ws(' ', workspace_id, tenant_id, period, tokens)
			FROM token_counts ORDER BY 1`))
		same(t, "counts", got, []string{"w a 2026-03 40", "w a 2026-04 8", "w b 2026-03 8", "w2 a 2026-03 8"})
		must(t, db.AddTokens(ctx, nil))
	})
}

// One tenant's usage is what its own page asks for, whether or not it names the workspace.
func TestUsageOfATenantIsFoundByItsKey(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		for _, workspace := range []string{"w1", "w2", "w3"} {
			run := mustRun(t, db, want(workspace, "e"))
			rows := make([]UsageRow, 20_000)
			for i := range rows {
				rows[i] = row(fmt.Sprintf("org-%05d", i), "1", 1)
			}
			record(t, db, run, rows...)
		}
		explain := "EXPLAIN QUERY PLAN "
		if db.path == "" {
			db.write.MustExec("ANALYZE tenant_usage")
			explain = "EXPLAIN "
		}
		for _, f := range []UsageFilter{{TenantID: "org-01234"}, {WorkspaceID: "w2", TenantID: "org-01234"}} {
			query, args := f.query()
			rows, err := db.read.Queryx(db.read.Rebind(explain+query), args...)
			must(t, err)
			for rows.Next() {
				columns, err := rows.SliceScan()
				must(t, err)
				step := fmt.Sprint(columns[len(columns)-1])
				if strings.HasPrefix(step, "SCAN u") || strings.Contains(step, "Seq Scan on tenant_usage") {
					t.Errorf("%+v reads the whole table: %s", f, step)
				}
			}
			must(t, errors.Join(rows.Err(), rows.Close()))
		}
		same(t, "its usage", usage(t, db, UsageFilter{TenantID: "org-01234"}),
			[]string{"org-01234=1/1", "org-01234=1/1", "org-01234=1/1"})
		if list, total, err := db.Usage(ctx, UsageFilter{TenantID: "none"}, 0, 10); err != nil ||
			total != 0 || len(list) != 0 {
			t.Errorf("usage of an unknown tenant: %+v, %d, %v", list, total, err)
		}
	})
}

// An export goes to any reader, as slow as it may be: no time-out that is meant
// for the worker's own statements cuts it. They are cut here to match a reader who takes half a
// second rather than a minute.
func TestEachUsageHasNoTimeout(t *testing.T) {
	address := pgtest.Need(t, postgres)
	separator := "?"
	if strings.Contains(address, "?") {
		separator = "&"
	}
	writer := openAddress(t, address)
	if _, err := writer.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	db := openAddress(t,
		address+separator+"statement_timeout=250ms&idle_in_transaction_session_timeout=250ms")
	// the server is done with the few before the reader is, and waits for him with the many
	for _, rows := range []int{3, 100_000} {
		tx := writer.write.MustBegin()
		tx.MustExec("DELETE FROM tenant_usage")
		tx.MustExec(`INSERT INTO tenant_usage (workspace_id, tenant_id, period, credits, requests, synced_at)
			SELECT 'w', 'org-' || lpad(n::text, 100, '0'), '2026-03', n, n, now()
			FROM generate_series(1, $1::int) n`, rows)
		must(t, tx.Commit())
		read := 0
		err := db.EachUsage(ctx, UsageFilter{}, func(Usage) error {
			if read++; read == 1 {
				<-time.After(500 * time.Millisecond) // the slow reader
			}
			return nil
		})
		if err != nil || read != rows {
			t.Errorf("%d of %d rows: %v", read, rows, err)
		}
		var timeout string
		if err := db.read.get(ctx, &timeout, "SHOW statement_timeout"); err != nil || timeout != "250ms" {
			t.Errorf("after it, other statements may take %q (%v)", timeout, err)
		}
	}
}
