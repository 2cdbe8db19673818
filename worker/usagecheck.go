package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"papermap-worker/papermap"
)

// CheckUsage reads one page of usage, of the months that a usage.sync reads, and says which field
// names it understands. It changes nothing.
func CheckUsage(ctx context.Context, workspaceID string, client *papermap.Client) []Finding {
	check := "usage, workspace " + workspaceID
	q := papermap.UsageQuery{Page: 1, PerPage: papermap.MaxUsagePage}
	q.FromPeriod, q.ToPeriod = periods(time.Now(), "", "")
	sample, err := client.SampleUsage(ctx, q)
	if err == nil {
		return judgeSample(check, sample, q)
	}
	if api, ok := errors.AsType[*papermap.Error](err); ok && api.Unreadable {
		fix := "no usage can be recorded; is PAPERMAP_API_URL right? docs/usage.md says what is read"
		return []Finding{{Check: check, Found: err.Error(), Fix: fix, Fatal: true}}
	}
	return []Finding{papermapFinding(check, err)}
}

// judgeSample fails a page without a usable row. A run leaves out single rows that are unusable, and
// counts missing requests as 0, so those are warnings.
func judgeSample(check string, s papermap.UsageSample, q papermap.UsageQuery) (list []Finding) {
	rows := len(s.Rows) + len(s.Rejected)
	if rows == 0 {
		return []Finding{{Check: check, Found: fmt.Sprintf(
			"there is none from %s to %s, so the names of its fields could not be checked",
			q.FromPeriod, q.ToPeriod)}}
	}
	fatal := len(s.Rows) == 0
	var found, missing []string
	for _, f := range s.Fields {
		if f.Rows > 0 {
			found = append(found, f.Name+" in "+strings.Join(f.Found, ", "))
		} else {
			missing = append(missing, f.Name+" (accepted: "+strings.Join(f.Accepted, ", ")+")")
		}
	}
	if !fatal {
		list = append(list, Finding{Check: check, Found: fmt.Sprintf("%d of %d rows understood: %s",
			len(s.Rows), rows, strings.Join(found, "; "))})
	}
	nameFix, rowFix := "requests count as 0; ", "a run leaves such rows out; "
	if fatal {
		nameFix, rowFix = "no usage can be recorded; ", "no usage can be recorded; "
	}
	if len(missing) > 0 {
		list = append(list, Finding{Check: check, Fatal: fatal,
			Found: fmt.Sprintf("no row has %s; other names in the rows: %s",
				strings.Join(missing, ", or "), cmp.Or(strings.Join(s.Other, ", "), "none")),
			Fix: nameFix + "add the right name to papermap/usagefields.go and build again"})
	}
	if len(s.Rejected) > 0 && (!fatal || len(missing) == 0) {
		list = append(list, Finding{Check: check, Fatal: fatal,
			Found: fmt.Sprintf("%d of %d rows are unusable: %s", len(s.Rejected), rows, reasons(s.Rejected)),
			Fix:   rowFix + "docs/usage.md says which rows are accepted"})
	}
	return list
}

// reasons lists the reasons of rejected rows, each once, the first five.
func reasons(rejected []papermap.RejectedRow) string {
	var list []string
	seen := map[string]bool{}
	for _, r := range rejected {
		if !seen[r.Reason] && len(list) < 5 {
			list = append(list, r.Reason)
		}
		seen[r.Reason] = true
	}
	return strings.Join(list, "; ")
}
