package worker

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// done is what happened, in this order: what was recorded, and "do" when it was done.
func done(ctx context.Context, recording, doing error) (list []string, err error) {
	record := func(ctx context.Context, entries ...repo.AuditEntry) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		e := entries[0]
		list = append(list, e.Via+" "+e.Actor+" "+e.Action+" "+e.EventID+" "+e.Detail)
		return recording
	}
	e := repo.AuditEntry{Action: ActionSuspend, EventID: "e1", Detail: "reason: unpaid"}
	err = Audit(ctx, e, record, func() error {
		list = append(list, "do")
		return doing
	})
	return list, err
}

func TestAuditRecordsBeforeItIsDoneAndAgainIfItFails(t *testing.T) {
	failed := errors.New("no response from the stream")
	ann := WithActor(t.Context(), Actor{ViaConsole, "console:ann"})
	const first, second = "console console:ann suspend e1 reason: unpaid",
		"console console:ann suspend.failed e1 no response from the stream"
	for name, test := range map[string]struct {
		ctx              context.Context
		recording, doing error
		want             []string
	}{
		"done":           {ann, nil, nil, []string{first, "do"}},
		"failed":         {ann, nil, failed, []string{first, "do", second}},
		"not recorded":   {ann, failed, nil, []string{first}},
		"nobody":         {t.Context(), nil, nil, []string{"do"}},
		"nobody, failed": {t.Context(), nil, failed, []string{"do"}},
		"a caller, no claims": {WithActor(t.Context(), Actor{Via: ViaREST}), nil, nil,
			[]string{"rest unknown suspend e1 reason: unpaid", "do"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := done(test.ctx, test.recording, test.doing)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if want := errors.Join(test.recording, test.doing) != nil; (err != nil) != want {
				t.Error(err)
			}
		})
	}
}

// A caller that has gone is the usual reason for a failure.
func TestAuditRecordsAFailureAfterItsCallerHasGone(t *testing.T) {
	ctx, cancel := context.WithCancel(WithActor(t.Context(), Actor{ViaCLI, "cli:me"}))
	var list []string
	record := func(ctx context.Context, entries ...repo.AuditEntry) error {
		list = append(list, entries[0].Action)
		return ctx.Err()
	}
	err := Audit(ctx, repo.AuditEntry{Action: ActionSync}, record, func() error {
		cancel()
		return ctx.Err()
	})
	if diff := cmp.Diff([]string{"sync", "sync.failed"}, list); diff != "" ||
		err.Error() != "context canceled" {
		t.Error(diff, err)
	}
}

func TestEventEntrySaysWhatTheEventDoes(t *testing.T) {
	for eventType, want := range map[string]repo.AuditEntry{
		events.TypeTenantCreated: {Action: "create", TenantID: "t", EventID: "e",
			Detail: "name: Acme, title: A, b"},
		events.TypeUsageSync: {Action: "sync", TenantID: "t", EventID: "e",
			Detail: "name: Acme, title: A, b"},
	} {
		got := EventEntry(events.Outgoing{
			ID: "e", Type: eventType, Data: []byte(`{"title":"A, b","tenant_id":"t","name":"Acme"}`),
		})
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", eventType, diff)
		}
	}
}
