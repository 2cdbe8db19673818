package console

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

// done are the messages that an address may name after an action; others are not shown.
var done = map[string]string{
	"suspended": "The tenant is suspended: it gets no more tokens.",
	"resumed":   "The tenant is suspended no longer.",
	"stored":    "The event is stored, and no worker was seen to handle it yet. The change is not in force.",
	"resolved":  "Resolved: the tenant has its dashboard.",
	"replaced":  "Replaced: the tenant has the other dashboard.",
	"recreated": "Another dashboard is being created.",
	"checked":   "The create is off the list.",
	"replayed":  "Replayed: the events are in the stream again.",
	"discarded": "Discarded for good.",
	"syncing":   "A usage run was asked for; it shows below once it begins.",
}

// audit logs who did what, and whether it succeeded.
func (c *Console) audit(v *visit, action string, err error, what ...any) {
	who := []any{"action", action, "who", v.who(), "actor", v.actor(), "remote", v.RemoteAddr}
	line := append(who, what...)
	if err != nil {
		c.log.Warn("a console action failed", append(line, "error", err)...)
		return
	}
	c.log.Info("console action", line...)
}

// visible makes the error of an action one that its visitor sees.
func visible(err error) error {
	status := http.StatusConflict
	var known *events.ServiceError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, repo.ErrNotFound), errors.Is(err, events.ErrNoDeadLetter):
		status = http.StatusNotFound
	case errors.Is(err, worker.ErrDashboardID):
		status = http.StatusBadRequest
	case errors.As(err, &known):
		status = known.Status
	}
	return &refusal{status, "That could not be done: " + err.Error() + "."}
}

// after redirects the visitor to the page that shows the action.
func after(rw http.ResponseWriter, v *visit, target, what string) error {
	separator := "?"
	if strings.Contains(target, "?") {
		separator = "&"
	}
	http.Redirect(rw, v.Request, target+separator+"done="+what, http.StatusSeeOther)
	return nil
}

func tenantPage(id string) string { return "/tenant?id=" + url.QueryEscape(id) }

func (c *Console) suspend(rw http.ResponseWriter, v *visit) error {
	return c.change(rw, v, events.TypeTenantSuspended, "suspended")
}

func (c *Console) resume(rw http.ResponseWriter, v *visit) error {
	return c.change(rw, v, events.TypeTenantResumed, "resumed")
}

// change publishes an event, and shows the tenant with what was seen of the change.
func (c *Console) change(rw http.ResponseWriter, v *visit, eventType, what string) error {
	id, reason := v.PostFormValue("tenant"), v.PostFormValue("reason")
	if utf8.RuneCountInString(reason) > 500 {
		return refuse(http.StatusBadRequest, "The reason is longer than 500 characters.")
	}
	_, err := c.db.Mapping(v.Context(), id)
	var change worker.AccessChange
	if err == nil {
		change, err = c.w.ChangeAccess(v.Context(), eventType, id, reason)
	}
	c.audit(v, eventType, err, "tenant_id", id, "reason", reason)
	if err != nil {
		return visible(err)
	}
	if !change.InForce {
		what = "stored"
	}
	return after(rw, v, tenantPage(id), what)
}

// recreate has the dashboard of a held or failed tenant created once more.
func (c *Console) recreate(rw http.ResponseWriter, v *visit) error {
	id := v.PostFormValue("tenant")
	_, err := c.w.Recreate(v.Context(), id)
	if errors.Is(err, repo.ErrNotHeld) {
		err = c.w.RetryFailed(v.Context(), id)
	}
	c.audit(v, "recreate", err, "tenant_id", id)
	if err != nil {
		return visible(err)
	}
	return after(rw, v, tenantPage(id), "recreated")
}

func (c *Console) resolveAttempt(rw http.ResponseWriter, v *visit) error {
	id := v.PostFormValue("attempt")
	err := worker.ResolveAttempt(v.Context(), c.db, id)
	c.audit(v, "resolve attempt", err, "attempt", id)
	if err != nil {
		return visible(err)
	}
	return after(rw, v, "/attention", "checked")
}

func (c *Console) replay(rw http.ResponseWriter, v *visit) error {
	return c.eachLetter(rw, v, "replay", c.w.ReplayDeadLetter)
}

func (c *Console) discard(rw http.ResponseWriter, v *visit) error {
	return c.eachLetter(rw, v, "discard", c.w.DiscardDeadLetter)
}

// eachLetter acts on the dead letters that were chosen. One that fails does not keep the others
// from their turn.
func (c *Console) eachLetter(
	rw http.ResponseWriter, v *visit, action string, do func(ctx context.Context, sequence uint64) error,
) error {
	if err := v.ParseForm(); err != nil {
		return refuse(http.StatusBadRequest, "The form cannot be read.")
	}
	chosen := v.PostForm["sequence"]
	if len(chosen) == 0 {
		return refuse(http.StatusBadRequest, "No dead letter is chosen.")
	}
	var failed []error
	for _, text := range chosen {
		sequence, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return refuse(http.StatusBadRequest, "%q is no dead letter’s number.", text)
		}
		err = do(v.Context(), sequence)
		c.audit(v, action, err, "sequence", sequence)
		failed = append(failed, err)
	}
	if err := errors.Join(failed...); err != nil {
		return visible(err)
	}
	return after(rw, v, "/dead", map[string]string{"replay": "replayed", "discard": "discarded"}[action])
}

// syncUsage publishes a usage.sync, as the schedule does.
func (c *Console) syncUsage(rw http.ResponseWriter, v *visit) error {
	id, err := c.w.Publish(v.Context(), events.TypeUsageSync, map[string]string{})
	c.audit(v, "sync usage", err, "event_id", id)
	if err != nil {
		return visible(fmt.Errorf("request a usage run: %w", err))
	}
	return after(rw, v, "/usage", "syncing")
}
