package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// insertTenants writes mappings past the rules: id, title and status each.
func insertTenants(t testing.TB, db *DB, rows ...[3]string) {
	t.Helper()
	err := db.update(ctx, func(ctx context.Context, x *tx) error {
		for _, r := range rows {
			m := Mapping{TenantID: r[0], WorkspaceID: "w", Title: r[1], Status: Status(r[2]), Stage: Pending, Generation: 1, CreatedAt: x.now}
			if err := x.insert(ctx, &m, ""); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestSearchFindsByTheBeginningOfIdOrNameAndPagesBothWays(t *testing.T) {
	onBoth(t, func(t *testing.T) {
		db := openTest(t)
		insertTenants(t, db, [3]string{"a-1", "Dashboard - Zebra", "active"}, [3]string{"a-2", "Dashboard - acme two", "held"}, [3]string{"a-3", "ACME One", "active"},
			[3]string{"b_1", "Dashboard - Acme One", "active"}, [3]string{"b%1", "Dashboard - 100% Acme", "failed"}, [3]string{"é", "Dashboard - Émile", "active"},
			[3]string{"long", strings.Repeat("x", 5000), "active"})
		find := func(s Search, p Part) []string {
			t.Helper()
			list, err := db.Search(ctx, s, p)
			if err != nil {
				t.Fatal(err)
			}
			ids := []string{}
			for _, m := range list {
				ids = append(ids, m.TenantID)
			}
			return ids
		}
		for _, test := range []struct {
			s    Search
			want []string
		}{
			{Search{}, []string{"a-1", "a-2", "a-3", "b%1", "b_1", "long", "é"}},
			{Search{TenantID: "a-"}, []string{"a-1", "a-2", "a-3"}},
			{Search{TenantID: "b_"}, []string{"b_1"}},
			{Search{TenantID: "b%"}, []string{"b%1"}},
			{Search{TenantID: "A-"}, []string{}},
			{Search{Status: Held}, []string{"a-2"}},
			{Search{Name: "Acme"}, []string{"a-3", "b_1", "a-2"}},
			{Search{Name: "ACME O"}, []string{"a-3", "b_1"}},
			{Search{Name: "acme", Status: Active}, []string{"a-3", "b_1"}},
			{Search{Name: "dashboard - zeb"}, []string{}},
			{Search{Name: "Dashboard - zeb"}, []string{"a-1"}},
			{Search{Name: "100%"}, []string{"b%1"}},
			{Search{Name: "É"}, []string{"é"}},
			{Search{Name: "xxx"}, []string{"long"}},
		} {
			if diff := cmp.Diff(test.want, find(test.s, Part{Limit: 100})); diff != "" {
				t.Errorf("%+v (-want +got):\n%s", test.s, diff)
			}
			// One by one, forwards and backwards, is the same.
			for _, back := range []bool{false, true} {
				got, p := []string{}, Part{Limit: 1}
				if back && len(test.want) > 0 {
					last := test.want[len(test.want)-1]
					got, p.Before = append(got, last), last
				}
				for page := find(test.s, p); len(page) > 0; page = find(test.s, p) {
					got = append(got, page[0])
					if back {
						p.Before = page[0]
					} else {
						p.After = page[0]
					}
				}
				if back {
					slices.Reverse(got)
				}
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Errorf("%+v one by one, back %t (-want +got):\n%s", test.s, back, diff)
				}
			}
		}
		if got := find(Search{Name: "a"}, Part{After: "nobody", Limit: 9}); len(got) != 0 {
			t.Errorf("after a tenant that is not there: %v", got)
		}
	})
}

func TestSearchReadsAnIndexInItsOrder(t *testing.T) {
	db := openTest(t)
	for _, s := range []Search{{}, {TenantID: "a"}, {Status: Held}, {Status: Held, TenantID: "a"}, {Name: "a"}, {Name: "a", Status: Held}} {
		for _, p := range []Part{{Limit: 50}, {After: "m", Limit: 50}, {Before: "m", Limit: 50}} {
			cursor := Mapping{TenantID: p.After + p.Before, Title: "M"}
			query, args := db.searchQuery(s, p, cursor)
			var plan []string
			rows, err := db.read.QueryxContext(ctx, "EXPLAIN QUERY PLAN "+query, args...)
			if err != nil {
				t.Fatal(err)
			}
			for rows.Next() {
				step, err := rows.SliceScan()
				if err != nil {
					t.Fatal(err)
				}
				plan = append(plan, fmt.Sprint(step[3]))
			}
			if err := errors.Join(rows.Err(), rows.Close()); err != nil {
				t.Fatal(err)
			}
			text := strings.Join(plan, "; ")
			t.Logf("%+v %+v: %s", s, p, text)
			if !strings.HasPrefix(text, "SEARCH tenant_dashboards USING INDEX") || strings.Contains(text, "TEMP B-TREE") {
				t.Errorf("%+v %+v: %s", s, p, text)
			}
			if s.Name != "" && !strings.Contains(text, "tenant_dashboards_name") {
				t.Errorf("%+v %+v: %s", s, p, text)
			}
		}
	}
}

func TestSumsOfMonthsAndTheMostUsage(t *testing.T) {
	onBoth(t, func(t *testing.T) {
		db := openTest(t)
		run, err := db.StartRun(ctx, Run{WorkspaceID: "w", EventID: "e", FromPeriod: "2026-01", ToPeriod: "2026-02"}, db.now(), false)
		if err != nil {
			t.Fatal(err)
		}
		record := func(number int, rejected []Reject, rows ...UsageRow) {
			t.Helper()
			if err := db.RecordPages(ctx, &run, []Page{{Number: number, Rows: rows, Rejected: rejected}}); err != nil {
				t.Fatal(err)
			}
		}
		record(1, []Reject{{Place: 3, Reason: "no tenant", Raw: "{}"}}, UsageRow{"a", "2026-01", "9.5", 3}, UsageRow{"b", "2026-01", "100", 1}, UsageRow{"a", "2026-02", "0.25", 7})
		record(2, nil, UsageRow{"b", "2026-01", "80", 1})
		months, err := db.Months(ctx)
		if diff := cmp.Diff([]Month{{"2026-01", 89.5, 4, 2}, {"2026-02", 0.25, 7, 1}}, months); err != nil || diff != "" {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
		top, err := db.Top(ctx, "2026-01", 5)
		if err != nil || len(top) != 2 || top[0].TenantID != "b" || top[0].Credits != "80" || top[1].Credits != "9.5" {
			t.Errorf("%+v %v", top, err)
		}
		_, rejected, changes, err := db.RunDetails(ctx, run.ID, 10)
		if err != nil || len(rejected) != 1 || rejected[0] != (RejectedRow{1, 3, "no tenant", "{}"}) || len(changes) != 1 || changes[0].OldCredits != "100" || changes[0].NewCredits != "80" {
			t.Errorf("%+v %+v %v", rejected, changes, err)
		}
		if of, err := db.TenantChanges(ctx, "w", "b", 10); err != nil || len(of) != 1 || of[0] != changes[0] {
			t.Errorf("%+v %v", of, err)
		}
		if _, _, _, err := db.RunDetails(ctx, "none", 10); !errors.Is(err, ErrNotFound) {
			t.Errorf("%v", err)
		}
	})
}
