package console

import (
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

// done are what an address may say of the action that led to it; anything else is said by nobody.
var done = map[string]string{
	"suspended": "The tenant is suspended: it gets no more tokens.",
	"resumed":   "The tenant gets tokens again.",
	"resolved":  "Settled: the tenant has its dashboard.",
	"recreated": "Another dashboard is being created.",
	"settled":   "The create is off the list.",
	"replayed":  "Replayed: the events are in the stream again.",
	"discarded": "Discarded for good.",
	"syncing":   "A usage run was asked for; it shows below once it begins.",
}

// audit writes down who did what, and whether it was done.
func (k *Console) audit(v *visit, action string, err error, what ...any) {
	line := append([]any{"action", action, "who", v.who(), "remote", v.RemoteAddr}, what...)
	if err != nil {
		k.log.Warn("a console action failed", append(line, "error", err)...)
		return
	}
	k.log.Info("console action", line...)
}

// told is an error of an action, which its visitor is to see.
func told(err error) error {
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

// after sends the visitor on to where the action shows.
func after(rw http.ResponseWriter, v *visit, target, what string) error {
	separator := "?"
	if strings.Contains(target, "?") {
		separator = "&"
	}
	http.Redirect(rw, v.Request, target+separator+"done="+what, http.StatusSeeOther)
	return nil
}

func tenantPage(id string) string { return "/tenant?id=" + url.QueryEscape(id) }

func (k *Console) suspend(rw http.ResponseWriter, v *visit) error {
	return k.change(rw, v, events.TypeTenantSuspended, "suspended")
}

func (k *Console) resume(rw http.ResponseWriter, v *visit) error {
	return k.change(rw, v, events.TypeTenantResumed, "resumed")
}

// change publishes an event as an upstream service would.
func (k *Console) change(rw http.ResponseWriter, v *visit, eventType, what string) error {
	id, reason := v.PostFormValue("tenant"), v.PostFormValue("reason")
	if utf8.RuneCountInString(reason) > 500 {
		return refuse(http.StatusBadRequest, "The reason is longer than 500 characters.")
	}
	err := k.w.Change(v.Context(), eventType, id, reason)
	k.audit(v, eventType, err, "tenant_id", id, "reason", reason)
	if err != nil {
		return told(err)
	}
	return after(rw, v, tenantPage(id), what)
}

func (k *Console) resolve(rw http.ResponseWriter, v *visit) error {
	id, dashboardID := v.PostFormValue("tenant"), strings.TrimSpace(v.PostFormValue("dashboard"))
	_, err := k.w.Resolve(v.Context(), id, dashboardID)
	k.audit(v, "resolve", err, "tenant_id", id, "dashboard_id", dashboardID)
	if err != nil {
		return told(err)
	}
	return after(rw, v, tenantPage(id), "resolved")
}

// recreate has a held tenant's dashboard created once more, or a failed one's.
func (k *Console) recreate(rw http.ResponseWriter, v *visit) error {
	id := v.PostFormValue("tenant")
	_, err := k.w.Recreate(v.Context(), id)
	if errors.Is(err, repo.ErrNotHeld) {
		err = k.w.TryAgain(v.Context(), id)
	}
	k.audit(v, "recreate", err, "tenant_id", id)
	if err != nil {
		return told(err)
	}
	return after(rw, v, tenantPage(id), "recreated")
}

func (k *Console) settleAttempt(rw http.ResponseWriter, v *visit) error {
	id := v.PostFormValue("attempt")
	err := k.db.SettleAttempt(v.Context(), id)
	k.audit(v, "settle attempt", err, "attempt", id)
	if err != nil {
		return told(err)
	}
	return after(rw, v, "/attention", "settled")
}

func (k *Console) replay(rw http.ResponseWriter, v *visit) error {
	return k.eachLetter(rw, v, "replay", func(sequence uint64) error {
		d, err := k.bus.DeadLetter(v.Context(), sequence)
		if err != nil {
			return err
		}
		return k.bus.Replay(v.Context(), d)
	})
}

func (k *Console) discard(rw http.ResponseWriter, v *visit) error {
	return k.eachLetter(rw, v, "discard", func(sequence uint64) error {
		if _, err := k.bus.DeadLetter(v.Context(), sequence); err != nil {
			return err
		}
		return k.bus.Discard(v.Context(), sequence)
	})
}

// eachLetter acts on the dead letters that were chosen. One that fails does not keep the others from their turn.
func (k *Console) eachLetter(rw http.ResponseWriter, v *visit, action string, do func(sequence uint64) error) error {
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
		err = do(sequence)
		k.audit(v, action, err, "sequence", sequence)
		failed = append(failed, err)
	}
	if err := errors.Join(failed...); err != nil {
		return told(err)
	}
	return after(rw, v, "/dead", map[string]string{"replay": "replayed", "discard": "discarded"}[action])
}

// syncUsage asks for a usage run, as the schedule does.
func (k *Console) syncUsage(rw http.ResponseWriter, v *visit) error {
	id, err := k.w.Publish(v.Context(), events.TypeUsageSync, map[string]string{})
	k.audit(v, "sync usage", err, "event_id", id)
	if err != nil {
		return told(fmt.Errorf("asking for a usage run: %w", err))
	}
	return after(rw, v, "/usage", "syncing")
}
