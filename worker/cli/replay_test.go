package cli

import (
	"bytes"
	"strings"
	"testing"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker/workertest"
)

// An event that NATS just accepted is too large with the headers that a replay adds.
func TestReplayGoesOnAfterAnEventThatIsTooLarge(t *testing.T) {
	w := workertest.Start(t, workertest.Options{})
	w.Publish(events.TypeTenantCreated,
		workertest.Object("tenant_id", "large", "name", "Large", "more", strings.Repeat("x", 1<<20-200)))
	w.Create("small")
	w.Eventually(w.Are(repo.Active, "large", "small"))
	setEnvironment(t, map[string]string{"NATS_URL": w.Bus.URL, "DATABASE_URL": w.Address})
	var out, errs bytes.Buffer
	if code := Run(Build{}, []string{"replay", "--since", "1h"}, &out, &errs); code != 1 {
		t.Errorf("it exits with %d", code)
	}
	for text, in := range map[string]string{
		"not published: tenant.created":   out.String(),
		"published 1 event again":         out.String(),
		"too large to be published again": errs.String(),
	} {
		if !strings.Contains(in, text) {
			t.Errorf("%q is not in %q", text, in)
		}
	}
}
