package console

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

// tenant is all that is known of one.
type tenant struct {
	worker.TenantReport
	Meaning   string
	Live      bool // about to change, so that the page refreshes itself
	Open      []repo.Attempt
	Letters   []events.DeadLetter
	Moments   []moment // the newest first
	Older     int      // moments that are not shown
	Months    []repo.Usage
	Frame     string // address of the preview; empty: not asked for
	FrameLife time.Duration
}

// moment is something that happened to a tenant, as the page shows it.
type moment struct {
	Time         time.Time
	Kind         string // good, bad, warn or plain
	What, Detail string
	Link         string
}

const (
	maxMonths   = 24
	maxMoments  = 100
	maxLetters  = 20
	previewLife = time.Minute
)

func (c *Console) tenant(rw http.ResponseWriter, v *visit) error {
	t, err := c.readTenant(v.Context(), v.URL.Query().Get("id"))
	if err != nil {
		return err
	}
	return c.show(rw, v, "tenant", t.TenantID, &t)
}

func (c *Console) readTenant(ctx context.Context, id string) (t tenant, err error) {
	if events.ValidateTenantID(id) != nil {
		return t, refuse(http.StatusNotFound, "That is no tenant id.")
	}
	facts, report, err := c.w.Report(ctx, id)
	if errors.Is(err, repo.ErrNotFound) {
		return t, refuse(http.StatusNotFound,
			"There is no tenant %q. Was tenant.created published for it?", id)
	}
	if err != nil {
		return t, err
	}
	t.TenantReport, t.Meaning, t.Open = report, meaning[report.Status], facts.PossibleOrphans()
	t.Live = !report.Known || report.Status == repo.Pending || report.Status == repo.Creating
	t.Letters = facts.DeadLetters[:min(len(facts.DeadLetters), maxLetters)]
	changes, err := c.db.TenantChanges(ctx, t.WorkspaceID, id, maxMonths)
	if err != nil {
		return t, err
	}
	t.Moments = moments(t.TenantReport, facts.DeadLetters, changes)
	t.Older = max(0, len(t.Moments)-maxMoments)
	t.Moments = t.Moments[:len(t.Moments)-t.Older]
	from := c.now().UTC().AddDate(0, -maxMonths, 0).Format("2006-01")
	filter := repo.UsageFilter{WorkspaceID: t.WorkspaceID, TenantID: id, FromPeriod: from}
	t.Months, _, err = c.db.Usage(ctx, filter, 0, maxMonths+2)
	return t, err
}

// moments is the history as the page shows it, newest first, with the usage totals that went down.
func moments(s worker.TenantReport, letters []events.DeadLetter, changes []repo.UsageChange) []moment {
	var list []moment
	marks := map[string]string{}
	for _, a := range s.Attempts {
		marks[a.ID] = a.Mark
	}
	for _, h := range slices.Backward(s.History) {
		m := moment{Time: h.Time, Kind: "plain", What: h.What, Detail: h.Detail}
		switch h.Kind {
		case "event", "event again":
			if h.What == events.TypeTenantSuspended || h.What == events.TypeTenantDeleted {
				m.Kind = "warn"
			}
			if h.Kind == "event again" {
				m.What += ", again"
			}
		case "event out":
			m.What = "Published " + h.What
		case "action":
			m.What = "Action: " + h.What
		case "attempt":
			m.Kind, m.What = attemptWords(repo.Outcome(h.What))
			if h.What != string(repo.OutcomeCreated) {
				m.Detail = strings.TrimPrefix(m.Detail+", mark "+marks[h.ID], ", ")
			}
		case "dashboard":
			m.Kind, m.What, m.Detail = "warn", "Dashboard "+h.ID+" was replaced", h.Detail
		case "dead letter":
			m.Kind, m.What = "bad", h.What+" became a dead letter"
			for _, d := range letters {
				if d.EventID == h.ID {
					m.Link = fmt.Sprintf("/dead/%d", d.Sequence)
				}
			}
		}
		list = append(list, m)
	}
	for _, c := range changes {
		list = append(list, moment{
			Time: c.ChangedAt.Time, Kind: "warn", What: "Usage of " + monthName(c.Period) + " went down",
			Detail: fmt.Sprintf("%s to %s credits, %d to %d requests",
				c.OldCredits, c.NewCredits, c.OldRequests, c.NewRequests),
		})
	}
	slices.SortStableFunc(list, func(a, b moment) int { return b.Time.Compare(a.Time) })
	return list
}

func attemptWords(o repo.Outcome) (kind, what string) {
	switch o {
	case repo.OutcomeCreated:
		return "good", "Papermap made the dashboard"
	case repo.OutcomeRefused:
		return "bad", "Papermap did not take the create"
	case repo.OutcomeUnknown:
		return "bad", "A create with an unknown outcome"
	case repo.OutcomeOrphaned:
		return "warn", "A dashboard was made that is not the tenant’s"
	}
	return "plain", "Asked Papermap for a dashboard; no answer yet"
}

// preview shows the tenant's page with its dashboard in it. It is a POST because a token is minted:
// the usual way, for a minute, and counted as any other. The address with the token is in this one
// answer and nowhere else.
func (c *Console) preview(rw http.ResponseWriter, v *visit) error {
	t, err := c.readTenant(v.Context(), v.PostFormValue("tenant"))
	if err != nil {
		return err
	}
	ttl := int64(previewLife / time.Second)
	token, err := c.w.EmbedToken(v.Context(), worker.TokenRequest{TenantID: t.TenantID, TTLSeconds: &ttl})
	c.audit(v, "preview", err, "tenant_id", t.TenantID)
	if err != nil {
		return visible(err)
	}
	t.Frame, t.FrameLife = token.EmbedURL, previewLife
	return c.show(rw, v, "tenant", t.TenantID, &t)
}
