// Package schematest checks events, requests and replies against the JSON Schemas of the contract,
// in tests.
//
//	schematest.Validate(t, "embed-token.reply", reply.Data)
//	schematest.CheckStream(t, js) // all events of a test's stream
package schematest

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"papermap-worker/schema"
)

// Validate fails the test unless data matches the schema of that name: an event type such as
// dashboard.created, a request or reply such as embed-token.reply, error, or cloudevent.
func Validate(t testing.TB, name string, data []byte) {
	t.Helper()
	if err := Check(name, data); err != nil {
		t.Errorf("%v\n%s", err, data)
	}
}

// Check returns why data does not match the schema of that name.
func Check(name string, data []byte) error {
	s, err := compiled(name)
	if err != nil {
		return err
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("read JSON for the schema of %s: %w", name, err)
	}
	if err := s.Validate(value); err != nil {
		return fmt.Errorf("check against the schema of %s: %w", name, err)
	}
	return nil
}

// kept are the schemas that Check has compiled: a test may have thousands of events.
var kept struct {
	sync.Mutex
	schemas map[string]*jsonschema.Schema
}

func compiled(name string) (*jsonschema.Schema, error) {
	kept.Lock()
	defer kept.Unlock()
	if s := kept.schemas[name]; s != nil {
		return s, nil
	}
	s, err := Compile(name + ".json")
	if err != nil {
		return nil, err
	}
	if kept.schemas == nil {
		kept.schemas = map[string]*jsonschema.Schema{}
	}
	kept.schemas[name] = s
	return s, nil
}

// Compile compiles a schema, or a part of one: tenant.created.json,
// tenant.created.json#/properties/name.
func Compile(ref string) (*jsonschema.Schema, error) {
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	c.UseLoader(embedded{})
	s, err := c.Compile(base + ref)
	if err != nil {
		return nil, fmt.Errorf("compile the schema %s: %w", ref, err)
	}
	return s, nil
}

const base = "contract:///"

// embedded loads the schemas that refer to each other.
type embedded struct{}

func (embedded) Load(url string) (any, error) {
	file, err := schema.Contract.Open("events/" + strings.TrimPrefix(url, base))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return jsonschema.UnmarshalJSON(file)
}
