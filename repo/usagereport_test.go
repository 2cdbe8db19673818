package repo

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestUsageReports(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		run := mustRun(t, db, Run{WorkspaceID: "w", EventID: "e", FromPeriod: "2026-01",
			ToPeriod: "2026-02"})
		record := func(number int, rejected []Reject, rows ...UsageRow) {
			t.Helper()
			must(t, db.RecordPages(ctx, run, []Page{{Number: number, Rows: rows, Rejected: rejected}}, nil))
		}
		record(1, []Reject{{Place: 3, Reason: "no tenant", Raw: "{}"}}, UsageRow{"a", "2026-01", "9.5", 3},
			UsageRow{"b", "2026-01", "100", 1}, UsageRow{"a", "2026-02", "0.25", 7})
		record(2, nil, UsageRow{"b", "2026-01", "80", 1})
		months, err := db.UsageByMonth(ctx)
		if diff := cmp.Diff([]MonthlyUsage{{"2026-01", 89.5, 4, 2}, {"2026-02", 0.25, 7, 1}},
			months); err != nil || diff != "" {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
		top, err := db.TopUsage(ctx, "2026-01", 5)
		if err != nil || len(top) != 2 || top[0].TenantID != "b" || top[0].Credits != "80" ||
			top[1].Credits != "9.5" {
			t.Errorf("%+v %v", top, err)
		}
		_, rejected, changes, err := db.RunDetails(ctx, run.ID, 10)
		if err != nil || len(rejected) != 1 || rejected[0] != (RejectedRow{1, 3, "no tenant", "{}"}) ||
			len(changes) != 1 || changes[0].OldCredits != "100" || changes[0].NewCredits != "80" {
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
