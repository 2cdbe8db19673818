package schema_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"

	"papermap-worker/events"
	"papermap-worker/schema"
	"papermap-worker/schema/schematest"
)

// subjects returns the contract's subjects, under the default prefix.
func subjects() []string {
	s := events.Subjects{Prefix: "papermap"}
	list := []string{s.RPC("embed-token"), s.RPC("embed-token.{tenant}"), s.RPC("dashboard"), s.RPC("usage")}
	for _, t := range events.Types {
		list = append(list, s.Event(t.Name))
		if t.Consumer != "" {
			list = append(list, s.Dead(t.Name))
		}
	}
	return list
}

func TestSchemasAcceptTheirExamples(t *testing.T) {
	files, err := fs.Glob(schema.Contract, "events/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		name := path.Base(file)
		t.Run(name, func(t *testing.T) {
			if _, err := schematest.Compile(name); err != nil {
				t.Fatal(err)
			}
			text, err := schema.Contract.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var doc map[string]any
			if err := json.Unmarshal(text, &doc); err != nil {
				t.Fatal(err)
			}
			if doc["description"] == nil || doc["examples"] == nil && name != "common.json" {
				t.Error("no description, or no examples")
			}
			checkExamples(t, name+"#", doc)
		})
	}
}

// checkExamples checks the examples of a schema and of all within it.
func checkExamples(t *testing.T, ref string, s map[string]any) {
	if list, ok := s["examples"].([]any); ok {
		compiled, err := schematest.Compile(ref)
		if err != nil {
			t.Fatal(err)
		}
		for i, example := range list {
			if err := compiled.Validate(example); err != nil {
				t.Errorf("%s, example %d: %v", ref, i+1, err)
			}
		}
	}
	for name, value := range s {
		if within, ok := value.(map[string]any); ok {
			checkExamples(t, ref+"/"+name, within)
		}
	}
}

// asyncAPI is the AsyncAPI document.
func asyncAPI(t *testing.T) map[string]any {
	t.Helper()
	text, err := schema.Contract.ReadFile("asyncapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := yaml.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

func TestAsyncAPINamesEverySubjectOnce(t *testing.T) {
	doc := asyncAPI(t)
	if doc["asyncapi"] != "3.0.0" {
		t.Errorf("asyncapi: %v", doc["asyncapi"])
	}
	var named []string
	for name, value := range doc["channels"].(map[string]any) {
		channel := value.(map[string]any)
		address, ok := channel["address"].(string)
		if !ok { // the callers' inboxes
			continue
		}
		if len(channel["messages"].(map[string]any)) == 0 {
			t.Errorf("channel %s has no messages", name)
		}
		named = append(named, addresses(address, channel["parameters"])...)
	}
	slices.Sort(named)
	if d := cmp.Diff(slices.Sorted(slices.Values(subjects())), named); d != "" {
		t.Errorf("subjects (-contract +asyncapi.yaml):\n%s", d)
	}
}

// addresses are the subjects that a channel's address stands for, where its parameter lists its
// values.
func addresses(address string, parameters any) []string {
	known, _ := parameters.(map[string]any)
	for name, value := range known {
		if values, ok := value.(map[string]any)["enum"].([]any); ok {
			var list []string
			for _, v := range values {
				list = append(list, strings.ReplaceAll(address, "{"+name+"}", v.(string)))
			}
			return list
		}
	}
	return []string{address}
}

func TestEveryChannelHasAnOperation(t *testing.T) {
	doc := asyncAPI(t)
	used := map[string]bool{}
	for _, value := range doc["operations"].(map[string]any) {
		operation := value.(map[string]any)
		used[operation["channel"].(map[string]any)["$ref"].(string)] = true
		if reply, ok := operation["reply"].(map[string]any); ok {
			used[reply["channel"].(map[string]any)["$ref"].(string)] = true
		}
	}
	for name := range doc["channels"].(map[string]any) {
		if !used["#/channels/"+name] {
			t.Errorf("no operation uses channel %s", name)
		}
	}
}

func TestAsyncAPIDescribesEachTypeOfEvent(t *testing.T) {
	doc := asyncAPI(t)
	operations := map[string]map[string]any{} // by the address of their channel
	for _, value := range doc["operations"].(map[string]any) {
		operation := value.(map[string]any)
		address, _ := resolve(doc, operation["channel"]).(map[string]any)["address"].(string)
		operations[address] = operation
	}
	for _, eventType := range events.Types {
		operation, ok := operations["papermap.events."+eventType.Name]
		if !ok {
			t.Errorf("%s: no operation", eventType.Name)
			continue
		}
		action := "send"
		if eventType.Consumer != "" {
			action = "receive"
		}
		if operation["action"] != action {
			t.Errorf("%s: action %v, want %s", eventType.Name, operation["action"], action)
		}
		bindings := resolve(doc, operation["bindings"]).(map[string]any)["nats"].(map[string]any)
		if consumer, _ := bindings["x-consumer"].(string); consumer != eventType.Consumer {
			t.Errorf("%s: x-consumer %q, want %q", eventType.Name, consumer, eventType.Consumer)
		}
		described := false
		channel := resolve(doc, operation["channel"]).(map[string]any)
		for _, message := range channel["messages"].(map[string]any) {
			payload := fmt.Sprint(resolve(doc, message).(map[string]any)["payload"])
			described = described || strings.Contains(payload, "./events/"+eventType.Name+".json")
		}
		if !described {
			t.Errorf("%s: no message of its channel has the schema events/%[1]s.json", eventType.Name)
		}
	}
}

func TestAsyncAPIReferencesResolve(t *testing.T) {
	doc := asyncAPI(t)
	referred := map[string]bool{}
	var walk func(at string, value any)
	walk = func(at string, value any) {
		switch value := value.(type) {
		case map[string]any:
			if ref, ok := value["$ref"].(string); ok {
				if file, local := strings.CutPrefix(ref, "./events/"); local {
					referred[file] = true
					if _, err := schematest.Compile(file); err != nil {
						t.Errorf("%s: %v", at, err)
					}
				} else if resolve(doc, value) == nil {
					t.Errorf("%s: %s is not there", at, ref)
				}
			}
			for name, within := range value {
				walk(at+"/"+name, within)
			}
		case nil:
			if at != "#/channels/inbox/address" { // often a comma that needs quotes
				t.Errorf("%s has no value", at)
			}
		case []any:
			for i, within := range value {
				walk(at+"/"+strconv.Itoa(i), within)
			}
		}
	}
	walk("#", doc)

	files, err := fs.Glob(schema.Contract, "events/*.json")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	for _, f := range files {
		if name := path.Base(f); name != "common.json" { // the others refer to it
			want[name] = true
		}
	}
	if d := cmp.Diff(slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(referred))); d != "" {
		t.Errorf("schemas (-files +referred to by asyncapi.yaml):\n%s", d)
	}
}

// resolve returns what a reference such as {$ref: "#/components/messages/error"} leads to, or nil.
func resolve(doc map[string]any, reference any) any {
	r, _ := reference.(map[string]any)
	ref, _ := r["$ref"].(string)
	path, local := strings.CutPrefix(ref, "#/")
	if !local {
		return nil
	}
	var value any = doc
	for _, name := range strings.Split(path, "/") {
		within, _ := value.(map[string]any)
		value = within[name]
	}
	return value
}
