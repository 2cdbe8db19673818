package console

import (
	"context"
	"encoding/json"
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
	worker.Story
	Meaning   string
	Do        string // when it has no dashboard
	Open      []repo.Attempt
	Letters   []events.DeadLetter
	Moments   []moment // the newest first
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
	mostMonths  = 24
	mostLetters = 20
	storyTime   = 3 * time.Second // then the page is shown with what there is
	previewLife = time.Minute
)

func (k *Console) tenant(rw http.ResponseWriter, v *visit) error {
	t, err := k.readTenant(v.Context(), v.URL.Query().Get("id"))
	if err != nil {
		return err
	}
	return k.show(rw, v, "tenant", t.TenantID, &t)
}

func (k *Console) readTenant(ctx context.Context, id string) (t tenant, err error) {
	if events.ValidateTenantID(id) != nil {
		return t, refuse(http.StatusNotFound, "That is no tenant id.")
	}
	looking, cancel := context.WithTimeout(ctx, storyTime)
	defer cancel()
	t.Story, err = k.w.Story(looking, id)
	if errors.Is(err, repo.ErrNotFound) {
		return t, refuse(http.StatusNotFound, "There is no tenant %q. Was tenant.created published for it?", id)
	}
	if err != nil {
		return t, err
	}
	t.Meaning = meaning[t.Status]
	if t.Known && t.Wanted() && t.Stage != repo.Active {
		_, t.Do = reason(t.Mapping, t.Attempts)
	}
	for _, a := range t.Attempts {
		if (a.Outcome == repo.Uncertain || a.Outcome == repo.Orphaned) && a.SettledAt.IsZero() {
			t.Open = append(t.Open, a)
		}
	}
	if err = k.bus.Connected(); err == nil {
		t.Letters, err = k.bus.DeadLetters(looking, events.DeadFilter{TenantID: id}, mostLetters)
	}
	if err != nil {
		k.log.Debug("cannot read a tenant's dead letters", "tenant_id", id, "error", err) // the story says that they are left out
	}
	changes, err := k.db.TenantChanges(ctx, t.WorkspaceID, id, mostMonths)
	if err != nil {
		return t, err
	}
	t.Moments = moments(t.Story, t.Letters, changes)
	from := k.now().UTC().AddDate(0, -mostMonths, 0).Format("2006-01")
	t.Months, _, err = k.db.Usage(ctx, repo.UsageFilter{WorkspaceID: t.WorkspaceID, TenantID: id, FromPeriod: from}, 0, mostMonths+2)
	return t, err
}

// moments is the story as the page shows it, with the totals that went down.
func moments(s worker.Story, letters []events.DeadLetter, changes []repo.UsageChange) []moment {
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
			m.What = "Told others: " + h.What
		case "attempt":
			m.Kind, m.What = attemptWords(repo.Outcome(h.What))
			if h.What != string(repo.Made) {
				m.Detail = strings.TrimPrefix(m.Detail+", mark "+marks[h.ID], ", ")
			}
		case "dead letter":
			m.Kind, m.What = "bad", h.What+" became a dead letter"
			if i := slices.IndexFunc(letters, func(d events.DeadLetter) bool { return d.EventID == h.ID }); i >= 0 {
				m.Link = fmt.Sprintf("/dead/%d", letters[i].Sequence)
			}
		}
		list = append(list, m)
	}
	for _, c := range changes {
		list = append(list, moment{
			Time: c.ChangedAt.Time, Kind: "warn", What: "Usage of " + monthName(c.Period) + " went down",
			Detail: fmt.Sprintf("%s to %s credits, %d to %d requests", c.OldCredits, c.NewCredits, c.OldRequests, c.NewRequests),
		})
	}
	slices.SortStableFunc(list, func(a, b moment) int { return b.Time.Compare(a.Time) })
	return list
}

func attemptWords(o repo.Outcome) (kind, what string) {
	switch o {
	case repo.Made:
		return "good", "Papermap made the dashboard"
	case repo.NotAccepted:
		return "bad", "Papermap did not take the create"
	case repo.Uncertain:
		return "bad", "A create with an unknown outcome"
	case repo.Orphaned:
		return "warn", "A dashboard was made that is not the tenant’s"
	}
	return "plain", "Asked Papermap for a dashboard; no answer yet"
}

// preview shows the tenant's page with its dashboard in it. It is a POST because a token is minted: the usual way, for a
// minute, and counted as any other. The address with the token is in this one answer and nowhere else.
func (k *Console) preview(rw http.ResponseWriter, v *visit) error {
	t, err := k.readTenant(v.Context(), v.PostFormValue("tenant"))
	if err != nil {
		return err
	}
	request, err := json.Marshal(map[string]any{"tenant_id": t.TenantID, "ttl_seconds": int(previewLife / time.Second)})
	if err != nil {
		return err
	}
	answer, err := k.w.Answer(v.Context(), "embed-token", request)
	k.audit(v, "preview", err, "tenant_id", t.TenantID)
	if err != nil {
		return told(err)
	}
	var token worker.EmbedToken
	if err := json.Unmarshal(answer, &token); err != nil {
		return err
	}
	t.Frame, t.FrameLife = token.EmbedURL, previewLife
	return k.show(rw, v, "tenant", t.TenantID, &t)
}
