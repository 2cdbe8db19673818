package simulator

import (
	"math/big"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"papermap-worker/papermap"
)

func totals(t *testing.T, s *Simulator, from, to string) []papermap.UsageRow {
	t.Helper()
	rows, err := s.UsageTotals("ws-a", from, to)
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

func TestUsageHasEveryKindOfBadRow(t *testing.T) {
	s, address := start(t, Options{})
	s.SetUsage("ws-a", Usage{Tenants: 100, BadEvery: 10})
	_, rejected, _ := readAll(t, address, papermap.UsageQuery{FromPeriod: "2025-01", ToPeriod: "2025-01",
		PerPage: 100})
	reasons := map[string]int{}
	for _, r := range rejected {
		reasons[r.Reason]++
	}
	want := map[string]int{"no tenant": 2, "no credits": 2, "no period": 2, "credits are negative": 2,
		"credits are not a number": 2}
	if diff := cmp.Diff(want, reasons); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestUsageTotalsDependOnSeedTenantMonthAndCorrectionsAlone(t *testing.T) {
	s, _ := start(t, Options{})
	s.SetUsage("ws-a", Usage{Tenants: 500, Seed: 1})
	first := totals(t, s, "2025-01", "2025-01")
	s.SetUsage("ws-a", Usage{Tenants: 600, Seed: 1, Style: "meta"})
	if diff := cmp.Diff(first, totals(t, s, "2025-01", "2025-01")[:500]); diff != "" {
		t.Errorf("with more tenants: %s", diff)
	}
	for what, other := range map[string][]papermap.UsageRow{
		"month": totals(t, s, "2025-02", "2025-02"),
		"seed": func() []papermap.UsageRow {
			s.SetUsage("ws-a", Usage{Tenants: 500, Seed: 2})
			return totals(t, s, "2025-01", "2025-01")
		}(),
	} {
		same := 0
		for i := range first {
			if first[i].Credits == other[i].Credits {
				same++
			}
		}
		if same > 25 {
			t.Errorf("another %s changes but %d of 500 rows", what, 500-same)
		}
	}
	zeros, fractions := 0, map[int]int{}
	for _, r := range first {
		_, fraction, _ := strings.Cut(r.Credits, ".")
		fractions[len(fraction)]++
		if r.Credits == "0" {
			zeros++
		}
	}
	if zeros == 0 || zeros > 30 || len(fractions) != 7 {
		t.Errorf("%d rows of nothing, lengths of fractions %v, want some of each from 0 to 6", zeros,
			fractions)
	}

	s.SetUsage("ws-a", Usage{Tenants: 500, Seed: 1})
	for revision := 1; revision <= 3; revision++ {
		before := totals(t, s, "2025-01", "2025-01")
		s.ChangeUsage("ws-a", func(u *Usage) {
			u.Corrections = map[string]int{"org-0000001": revision,
				"org-0000002": revision}
		})
		for i, after := range totals(t, s, "2025-01", "2025-01") {
			was, _ := new(big.Rat).SetString(before[i].Credits)
			is, _ := new(big.Rat).SetString(after.Credits)
			if corrected := i == 1 || i == 2; corrected && was.Sign() > 0 && is.Cmp(was) >= 0 ||
				!corrected && after != before[i] {
				t.Errorf("correction %d: %+v became %+v", revision, before[i], after)
			}
		}
	}
}

func TestSetUsagePanicsForUsageThatMakesNoSense(t *testing.T) {
	s, _ := start(t, Options{})
	for _, u := range []Usage{{Style: "xml"}, {Tenants: -1}, {BadEvery: -1}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%+v is accepted", u)
				}
			}()
			s.SetUsage("ws-a", u)
		}()
	}
}
