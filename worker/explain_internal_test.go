package worker

import (
	"strings"
	"testing"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
)

func TestExplainAdvisesToFixCredentialsWhilePausedByThem(t *testing.T) {
	t.Parallel()
	now := time.Now()
	pending := repo.Mapping{
		TenantID: "acme", Stage: repo.Pending, Status: repo.Pending, CreatedEvent: now.UnixNano(),
		Generation: 1,
	}
	address := &Pause{Kind: PauseConfiguration}
	failed := pending
	failed.FailedError = "papermap (credentials): 401"
	refused := []repo.Attempt{{Generation: 1, Outcome: repo.OutcomeRefused, HTTPStatus: 401}}
	quota := []repo.Attempt{{Generation: 1, Outcome: repo.OutcomeRefused, HTTPStatus: 402}}
	paused := &Pause{Kind: PauseCredentials, Reason: "Papermap refuses the credentials"}
	for _, c := range []struct {
		name  string
		facts Facts
		want  string // begin of the advice
	}{
		{"paused, never tried", Facts{Mapping: pending, Pause: paused}, "Fix the credentials"},
		{"paused, tried", Facts{Mapping: failed, Attempts: refused, Pause: paused}, "Fix the credentials"},
		{"breaker unknown, tried", Facts{Mapping: failed, Attempts: refused}, "Fix the credentials"},
		{"breaker unknown, quota", Facts{Mapping: failed, Attempts: quota}, "Raise the workspace's quota"},
		{"not paused any more", Facts{Mapping: failed, Attempts: refused, Pause: &Pause{}},
			"Nothing for now"},
		{"wrong address", Facts{Mapping: pending, Pause: address}, "Fix PAPERMAP_API_URL"},
		{"breaker unknown, failing", Facts{Mapping: failed}, "Is the worker paused"},
	} {
		c.facts.Known = true
		summary, advice := Explain(c.facts, now)
		if len(advice) != 1 || !strings.HasPrefix(advice[0], c.want) ||
			!strings.HasPrefix(summary, "It has no dashboard yet") {
			t.Errorf("%s: %q, %q", c.name, summary, advice)
		}
	}
}

// Whatever is recorded can be published again.
func TestCreatedFieldsAreAcceptedByTheDecoder(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 1000)
	for _, title := range []string{
		"Dashboard - Acme", "Acme", "", "   ", "Dashboard - ", "Dashboard -   ", "Dashboard - " + long, long,
	} {
		m := repo.Mapping{
			TenantID: "acme", WorkspaceID: "ws-a", Title: title, Description: "d", CreatedBy: "me",
		}
		e, err := NewEvent(events.TypeTenantCreated, createdFields(m), time.Now())
		if err != nil {
			t.Errorf("title %q: %v", title, err)
			continue
		}
		decoded, err := events.Decode(events.Raw{Type: e.Type, Data: e.Data, Time: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		data := decoded.Data.(events.TenantCreated)
		got := data.Title
		if got == "" {
			got = titlePrefix + data.Name
		}
		if got != title && title != "" {
			t.Errorf("title %q comes back as %q", title, got)
		}
	}
}
