package ops

import (
	"bytes"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// document is openapi.json, read.
func document(t *testing.T) map[string]any {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(openAPI))
	if err != nil {
		t.Fatal(err)
	}
	return doc.(map[string]any)
}

func TestOpenAPINamesEachRouteAndNoOther(t *testing.T) {
	virtual(t, secretOnly.JWT, func(t *testing.T, w *world) {
		a := w.ask("GET", "/api/v1/openapi.json", "", "")
		if a.status != 200 || a.header.Get("Content-Type") != "application/json" ||
			!bytes.Equal(a.body, openAPI) {
			t.Errorf("%d %s, want the document", a.status, a.header.Get("Content-Type"))
		}
		doc := document(t)
		if doc["openapi"] != "3.1.0" {
			t.Errorf("openapi: %v", doc["openapi"])
		}
		var want, got []string
		for _, r := range routes {
			want = append(want, r.method+" "+r.path)
		}
		for path, item := range doc["paths"].(map[string]any) {
			for method := range item.(map[string]any) {
				if method != "parameters" {
					got = append(got, strings.ToUpper(method)+" "+path)
				}
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("routes (-) and openapi.json (+):\n%s", diff)
		}
	})
}

// checkDocumented holds an answer against openapi.json: its status, content type and body.
func (w *world) checkDocumented(r route, a answer) {
	w.t.Helper()
	at := []string{"paths", r.path, strings.ToLower(r.method), "responses", fmt.Sprint(a.status)}
	doc := document(w.t)
	response, ok := within(doc, at)
	if !ok {
		w.t.Errorf("openapi.json does not know %d of %s %s: %s", a.status, r.method, r.path, a.body)
		return
	}
	if ref, is := response["$ref"].(string); is {
		at = strings.Split(strings.TrimPrefix(ref, "#/"), "/")
		response, _ = within(doc, at)
	}
	if _, hasBody := response["content"]; !hasBody && len(a.body) == 0 {
		w.seen[fmt.Sprint(r.method, " ", r.path, " ", a.status)] = true
		return
	}
	contentType := a.header.Get("Content-Type")
	if _, ok := within(response, []string{"content", contentType, "schema"}); !ok {
		w.t.Errorf("openapi.json does not know %s as answer of %s %s", contentType, r.method, r.path)
		return
	}
	pointer := ""
	for _, name := range append(at, "content", contentType, "schema") {
		pointer += "/" + url.PathEscape(strings.NewReplacer("~", "~0", "/", "~1").Replace(name))
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	w.Must(c.AddResource("rest:///openapi.json", doc))
	schema, err := c.Compile("rest:///openapi.json#" + pointer)
	w.Must(err)
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(a.body))
	if err == nil {
		err = schema.Validate(value)
	}
	if err != nil {
		w.t.Errorf("%s %s: %v\n%s", r.method, r.path, err, a.body)
	}
	w.seen[fmt.Sprint(r.method, " ", r.path, " ", a.status)] = true
}

func within(value map[string]any, at []string) (map[string]any, bool) {
	for _, name := range at {
		next, ok := value[name].(map[string]any)
		if !ok {
			return nil, false
		}
		value = next
	}
	return value, true
}
