package worker

import (
	"cmp"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"pgregory.net/rapid"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// texts draws texts as they are recorded: blank, with the prefix of titles, as long as is accepted.
func texts(limit int) *rapid.Generator[string] {
	short := rapid.StringN(0, 30, -1)
	return rapid.Custom(func(t *rapid.T) string {
		text := rapid.SampledFrom([]string{"", " ", titlePrefix, titlePrefix + " ", "\u00a0"}).
			Draw(t, "begins")
		text += short.Draw(t, "text")
		if rapid.Bool().Draw(t, "long") {
			text += strings.Repeat("é", limit)
		}
		return string([]rune(text)[:min(limit, len([]rune(text)))])
	})
}

// Whatever a tenant.created recorded can be published again, for a re-creation or another try, and
// records the same.
func TestCreatedFieldsRecordTheSameAgain(t *testing.T) {
	t.Parallel()
	recorded := func(data []byte) (m repo.Mapping, err error) {
		e, err := events.Decode(events.Raw{Type: events.TypeTenantCreated, Data: data, Time: time.Now()})
		if err != nil {
			return m, err
		}
		c := e.Data.(events.TenantCreated)
		return repo.Mapping{
			TenantID: c.TenantID, WorkspaceID: c.WorkspaceID, Title: cmp.Or(c.Title, titlePrefix+c.Name),
			Description: c.Description, CreatedBy: c.CreatedBy,
		}, nil
	}
	rapid.Check(t, func(t *rapid.T) {
		data, err := json.Marshal(map[string]string{
			"tenant_id": texts(255).Draw(t, "tenant_id"), "name": texts(1000).Draw(t, "name"),
			"title": texts(1000).Draw(t, "title"), "description": texts(10_000).Draw(t, "description"),
			"workspace_id": "ws-a", "created_by": texts(255).Draw(t, "created_by"),
		})
		if err != nil {
			t.Skip("not UTF-8")
		}
		m, err := recorded(data)
		if err != nil {
			t.Skip("not accepted")
		}
		again, err := TenantCreatedAgain(m)
		if err != nil {
			t.Fatal(err)
		}
		tried, err := NewEvent(events.TypeTenantCreated, createdFields(m), time.Now())
		if err != nil {
			t.Fatalf("another try of %+v: %v", m, err)
		}
		for name, data := range map[string][]byte{"re-creation": again.Data, "another try": tried.Data} {
			if got, err := recorded(data); err != nil || got != m {
				t.Fatalf("%s: %v\n%+v, want\n%+v", name, err, got, m)
			}
		}
	})
}
