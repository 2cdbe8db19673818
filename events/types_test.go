package events_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats-server/v2/server"

	"papermap-worker/events"
)

// published returns the names of the types that a user of docs/nats may publish, sorted.
func published(user string) []string {
	var names []string
	for _, t := range events.Types {
		if slices.Contains(t.Publishers, user) {
			names = append(names, t.Name)
		}
	}
	return slices.Sorted(slices.Values(names))
}

func TestTypesInAreThoseThatConsumersHandle(t *testing.T) {
	both := slices.Concat(events.TypesOf(events.MainConsumer), events.TypesOf(events.AccessConsumer))
	if d := cmp.Diff(both, events.TypesIn()); d != "" {
		t.Errorf("(-handled +in)\n%s", d)
	}
	for _, eventType := range events.Types {
		out := eventType.Consumer == ""
		if workerOnly := slices.Equal(eventType.Publishers, []string{"worker", "worker-headless"}); workerOnly != out {
			t.Errorf("%s is published by %v", eventType.Name, eventType.Publishers)
		}
	}
}

func TestTypesInAreDecodedAndTypesOutAreNot(t *testing.T) {
	for _, eventType := range events.Types {
		e, err := events.Decode(events.Raw{Type: eventType.Name,
			Data: []byte(`{"tenant_id":"org-1","name":"x"}`)})
		if in := eventType.Consumer != ""; in != (err == nil) || in && e.TenantID() != "org-1" || !in &&
			e.Data != nil {
			t.Errorf("%s: %+v, %v", eventType.Name, e, err)
		}
		_, err = events.Decode(events.Raw{Type: eventType.Name, Data: []byte(`{}`)})
		if (err == nil) != (eventType.Consumer != "" && !eventType.Tenant) {
			t.Errorf("%s without a tenant: %v", eventType.Name, err)
		}
	}
}

func TestPermissionFilesNameEachType(t *testing.T) {
	users := map[string][]string{
		"server.conf":   {"worker", "worker-headless", "publisher", "operator", "leaf"},
		"accounts.conf": {"worker", "worker-headless", "publisher", "operator"},
		"leaf.conf":     {"publisher"},
	}
	for file, want := range users {
		path := filepath.Join("..", "docs", "nats", file)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, variable := range regexp.MustCompile(`\$([A-Z0-9_]+_PASSWORD)`).FindAllStringSubmatch(string(text), -1) {
			t.Setenv(variable[1], `"x"`)
		}
		t.Setenv("LEAF_URL", `"nats-leaf://leaf:x@127.0.0.1:7422"`)
		options, err := server.ProcessConfigFile(path)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		var seen []string
		for _, u := range options.Users {
			allowed := map[string][]string{} // by the subject's first two tokens
			if u.Permissions != nil && u.Permissions.Publish != nil {
				for _, subject := range u.Permissions.Publish.Allow {
					for _, prefix := range []string{"papermap.events.", "papermap.dead."} {
						if pattern, ok := strings.CutPrefix(subject, prefix); ok {
							allowed[prefix] = append(allowed[prefix], typesLike(pattern)...)
						}
					}
				}
			}
			if slices.Sort(allowed["papermap.events."]); len(allowed["papermap.events."]) > 0 {
				seen = append(seen, u.Username)
			}
			if d := cmp.Diff(published(u.Username), allowed["papermap.events."]); d != "" {
				t.Errorf("%s, user %s may publish (-table +file)\n%s", file, u.Username, d)
			}
			if u.Username == "worker" {
				checkSame(t, file+", dead letters", events.TypesIn(), allowed["papermap.dead."])
			}
		}
		checkSame(t, file+", users who publish", want, seen)
		if file == "accounts.conf" { // what one account exports and the other imports
			for what, form := range map[string]string{
				"exports": `\{service: "papermap\.events\.([a-z.]+)"`,
				"imports": `subject: "papermap\.events\.([a-z.]+)"`,
			} {
				var names []string
				for _, match := range regexp.MustCompile(form).FindAllStringSubmatch(string(text), -1) {
					names = append(names, match[1])
				}
				checkSame(t, file+", "+what, published("publisher"), names)
			}
		}
	}
}

// typesLike returns the event types that a subject's part allows: the one of that name, or every one
// of a family, such as tenant.*
func typesLike(pattern string) []string {
	family, ok := strings.CutSuffix(pattern, "*")
	if !ok {
		return []string{pattern}
	}
	var names []string
	for _, eventType := range events.Types {
		if strings.HasPrefix(eventType.Name, family) {
			names = append(names, eventType.Name)
		}
	}
	return names
}

func checkSame(t *testing.T, what string, want, got []string) {
	t.Helper()
	if d := cmp.Diff(slices.Sorted(slices.Values(want)), slices.Sorted(slices.Values(got))); d != "" {
		t.Errorf("%s (-want +got)\n%s", what, d)
	}
}
