package console

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"unicode/utf8"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

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

func tenantPage(id string) string { return "/tenant?id=" + url.QueryEscape(id) }

func (c *Console) suspend(rw http.ResponseWriter, v *visit) error {
	return c.change(rw, v, events.TypeTenantSuspended)
}

func (c *Console) resume(rw http.ResponseWriter, v *visit) error {
	return c.change(rw, v, events.TypeTenantResumed)
}

// change publishes an event, and shows the tenant with what was seen of the change.
func (c *Console) change(rw http.ResponseWriter, v *visit, eventType string) error {
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
		return c.after(rw, v, tenantPage(id), "warn", eventType+
			" is stored in the stream, but no worker has handled it yet. The change is not in force.")
	}
	return c.after(rw, v, tenantPage(id), "good",
		fmt.Sprintf("%s is in force: the tenant is now %s.", eventType, change.After.Status))
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
	return c.after(rw, v, tenantPage(id), "good",
		"The request is stored: a worker creates another dashboard.")
}

func (c *Console) resolveAttempt(rw http.ResponseWriter, v *visit) error {
	id := v.PostFormValue("attempt")
	err := worker.ResolveAttempt(v.Context(), c.db, id)
	c.audit(v, "resolve attempt", err, "attempt", id)
	if err != nil {
		return visible(err)
	}
	return c.after(rw, v, "/attention", "good", "The create request is off the list.")
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
	chosen, err := c.chosen(v)
	if err != nil {
		return err
	}
	var failed []error
	for _, sequence := range chosen {
		err := do(v.Context(), sequence)
		c.audit(v, action, err, "sequence", sequence)
		failed = append(failed, err)
	}
	failed = slices.DeleteFunc(failed, func(err error) bool { return err == nil })
	if len(failed) > 1 {
		return visible(fmt.Errorf("%d of %d failed, the first: %w", len(failed), len(chosen), failed[0]))
	} else if len(failed) == 1 {
		return visible(failed[0])
	}
	what := plural(len(chosen), "dead letter is", "dead letters are")
	if action == "replay" {
		return c.after(rw, v, "/dead", "good", what+" in the stream again.")
	}
	return c.after(rw, v, "/dead", "good", what+" deleted.")
}

// chosen lists the dead letters that a form names: each, or all that match its filter and were there
// when the visitor saw their number.
func (c *Console) chosen(v *visit) (list []uint64, err error) {
	for _, text := range v.PostForm["sequence"] {
		sequence, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return nil, refuse(http.StatusBadRequest, "%q is not the number of a dead letter.", text)
		}
		list = append(list, sequence)
	}
	if form := v.PostForm; form.Get("all") != "" {
		last, err := strconv.ParseUint(form.Get("last"), 10, 64)
		if err != nil {
			return nil, refuse(http.StatusBadRequest, "The form does not say up to which dead letter.")
		}
		filter := events.DeadFilter{
			Code: form.Get("code"), Type: form.Get("type"), TenantID: form.Get("tenant"),
		}
		if list, err = c.matching(v.Context(), filter, maxChosen); err != nil {
			return nil, err
		}
		list = slices.DeleteFunc(list, func(sequence uint64) bool { return sequence > last })
	}
	if len(list) == 0 {
		return nil, refuse(http.StatusBadRequest, "No dead letter is chosen.")
	}
	return list, nil
}

// syncUsage publishes a usage.sync, as the schedule does.
func (c *Console) syncUsage(rw http.ResponseWriter, v *visit) error {
	id, err := c.w.Publish(v.Context(), events.TypeUsageSync, map[string]string{})
	c.audit(v, "sync usage", err, "event_id", id)
	if err != nil {
		return visible(fmt.Errorf("request a usage run: %w", err))
	}
	return c.after(rw, v, "/usage", "good",
		"usage.sync is published. Its run appears below when a worker begins it.")
}
