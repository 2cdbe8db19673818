package worker

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// UsageRequest asks for synced usage. Empty fields select everything.
type UsageRequest struct {
	TenantID, WorkspaceID string
	FromPeriod, ToPeriod  string // YYYY-MM, both included
	Page, PerPage         *int64 // nil: 1 and 100 rows
}

// UsagePage is the answer to a UsageRequest.
type UsagePage struct {
	Usage []UsageRow `json:"usage"`
	Page  int        `json:"page"`
	Total int        `json:"total"` // rows on all pages
}

// UsageRow is a tenant's total of one month.
type UsageRow struct {
	TenantID    string    `json:"tenant_id"`
	WorkspaceID string    `json:"workspace_id"`
	Period      string    `json:"period"`
	Credits     string    `json:"credits"` // a decimal number, exact
	Requests    int64     `json:"requests"`
	SyncedAt    repo.Time `json:"synced_at"`
}

const (
	defaultPerPage = 100
	maxPerPage     = 400 // rows; with the longest ids they fit into a NATS message of 1 MiB
)

func decodeUsageRequest(r events.Request) (q UsageRequest, err error) {
	if err := events.DecodeObject(r.Data, map[string]any{
		"tenant_id": &q.TenantID, "workspace_id": &q.WorkspaceID, "from_period": &q.FromPeriod,
		"to_period": &q.ToPeriod, "page": &q.Page, "per_page": &q.PerPage,
	}); err != nil {
		return q, invalid(err)
	}
	return q, nil
}

// Usage returns a page of synced usage, in the order of workspaces, tenants and months. It calls no
// API, so it is as old as the last run.
func (a *API) Usage(ctx context.Context, r UsageRequest) (UsagePage, error) {
	if err := r.validate(); err != nil {
		return UsagePage{}, invalid(err)
	}
	if r.TenantID != "" && r.WorkspaceID != "" {
		m, err := a.db.Mapping(ctx, r.TenantID)
		if err == nil && m.WorkspaceID != r.WorkspaceID {
			return UsagePage{}, errOtherWorkspace
		}
		if err != nil && !errors.Is(err, repo.ErrNotFound) {
			return UsagePage{}, err
		}
	}
	page, perPage := valueOr(r.Page, 1), valueOr(r.PerPage, defaultPerPage)
	list, total, err := a.db.Usage(ctx, repo.UsageFilter{
		TenantID: r.TenantID, WorkspaceID: r.WorkspaceID, FromPeriod: r.FromPeriod, ToPeriod: r.ToPeriod,
	}, int((page-1)*perPage), int(perPage))
	if err != nil {
		return UsagePage{}, err
	}
	answer := UsagePage{Usage: make([]UsageRow, len(list)), Page: int(page), Total: total}
	for i, u := range list {
		answer.Usage[i] = UsageRow{u.TenantID, u.WorkspaceID, u.Period, u.Credits, u.Requests, u.SyncedAt}
	}
	return answer, nil
}

func (r UsageRequest) validate() error {
	if r.TenantID != "" {
		if err := events.ValidateTenantID(r.TenantID); err != nil {
			return err
		}
	}
	switch { // PostgreSQL refuses both
	case strings.ContainsRune(r.WorkspaceID, 0):
		return errors.New(`"workspace_id" has a NUL character`)
	case !utf8.ValidString(r.WorkspaceID):
		return errors.New(`"workspace_id" is not valid UTF-8`)
	}
	for _, period := range []string{r.FromPeriod, r.ToPeriod} {
		if period == "" {
			continue
		}
		if err := events.ValidatePeriod(period); err != nil {
			return err
		}
	}
	page, perPage := valueOr(r.Page, 1), valueOr(r.PerPage, defaultPerPage)
	if page < 1 || page > 1<<31 || perPage < 1 || perPage > maxPerPage {
		return fmt.Errorf(`"page" must be at least 1, and "per_page" 1 to %d`, maxPerPage)
	}
	return nil
}

func valueOr(p *int64, value int64) int64 {
	if p != nil {
		return *p
	}
	return value
}

// WriteUsageCSV writes a header line and the rows that each passes to its argument. It streams
// them, so that memory does not grow with their number.
func WriteUsageCSV(w io.Writer, each func(func(repo.Usage) error) error) error {
	out := csv.NewWriter(w)
	if err := out.Write([]string{
		"tenant_id", "workspace_id", "period", "credits", "requests", "synced_at",
		"unknown_tenant", "unattributed",
	}); err != nil {
		return fmt.Errorf("write CSV: %w", err)
	}
	err := each(func(u repo.Usage) error {
		return out.Write([]string{
			spreadsheetText(u.TenantID), spreadsheetText(u.WorkspaceID), u.Period, u.Credits,
			strconv.FormatInt(u.Requests, 10), u.SyncedAt.UTC().Format(time.RFC3339),
			strconv.FormatBool(u.Unknown), strconv.FormatBool(u.Unattributed),
		})
	})
	out.Flush()
	return errors.Join(err, out.Error())
}

// spreadsheetText quotes an id that a spreadsheet would run as a formula. A program that reads the
// ids removes the quote, or reads JSON.
func spreadsheetText(id string) string {
	if strings.ContainsAny(id[:min(1, len(id))], "=+-@'\t\r") {
		return "'" + id
	}
	return id
}
