package events

import (
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

func TestDecodeObjectReadsOnlyWhatItWasAskedFor(t *testing.T) {
	text, absent := "before", "kept"
	var number, none *int64
	var value, null, missing jsontext.Value
	err := DecodeObject([]byte(`{"text":"a\u00e9","number":-60,"value":{"x":[1]},"null":null,"other":null,`+
		`"absent":null,"none":null}`), map[string]any{
		"text": &text, "absent": &absent, "number": &number, "none": &none, "value": &value, "null": &null,
		"missing": &missing,
	})
	if err != nil {
		t.Fatal(err)
	}
	if text != "aé" || absent != "kept" || number == nil || *number != -60 || none != nil ||
		string(value) != `{"x":[1]}` || string(null) != "null" || missing != nil {
		t.Errorf("text %q, absent %q, number %v, none %v, value %s, null %s, missing %s", text, absent,
			number, none, value, null, missing)
	}
}

func TestDecodeObjectTakesWholeNumbersOnly(t *testing.T) {
	for _, c := range []struct {
		number string
		ok     bool
	}{
		// as the range ends
		{"0", true}, {"60", true}, {"-1", true}, {"9223372036854775807", true}, {"9223372036854775808",
			true}, {"-99999999999999999999", true},
		{"1.5", false}, {"1.0", false}, {"1e3", false}, {`"60"`, false}, {"true",
			false}, {"[60]", false},
		{"+1", false}, {"060", false},
	} {
		var ttl *int64
		err := DecodeObject([]byte(`{"ttl_seconds":`+c.number+`}`), map[string]any{"ttl_seconds": &ttl})
		if (err == nil) != c.ok || c.ok && ttl == nil {
			t.Errorf("%s: %v, %v", c.number, ttl, err)
		}
	}
}
