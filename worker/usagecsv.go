package worker

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"papermap-worker/repo"
)

// WriteUsageCSV writes the rows that each hands out, one by one, with a heading.
func WriteUsageCSV(w io.Writer, each func(func(repo.Usage) error) error) error {
	out := csv.NewWriter(w)
	if err := out.Write([]string{"tenant_id", "workspace_id", "period", "credits", "requests", "synced_at", "unknown_tenant", "unattributed"}); err != nil {
		return fmt.Errorf("writing CSV: %w", err)
	}
	err := each(func(u repo.Usage) error {
		return out.Write([]string{
			spreadsheetText(u.TenantID), spreadsheetText(u.WorkspaceID), u.Period, u.Credits, strconv.FormatInt(u.Requests, 10),
			u.SyncedAt.UTC().Format(time.RFC3339), strconv.FormatBool(u.Unknown), strconv.FormatBool(u.Unattributed),
		})
	})
	out.Flush()
	return errors.Join(err, out.Error())
}

// spreadsheetText keeps a spreadsheet from running a stranger's name as a formula. A program that reads the ids takes the
// quote off again, or reads JSON.
func spreadsheetText(id string) string {
	if strings.ContainsAny(id[:min(1, len(id))], "=+-@'\t\r") {
		return "'" + id
	}
	return id
}
