package events

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestEncodeTenantIsOneToken(t *testing.T) {
	for id, token := range map[string]string{
		"org-123":                   "org-123",
		"Org_123~!@#$&()+,/:;=?[]|": "Org_123~!@#$&()+,/:;=?[]|",
		"%":                         "%25",
		".":                         "%2E",
		"*":                         "%2A",
		">":                         "%3E",
		"%2E":                       "%252E",
		"%.*>":                      "%25%2E%2A%3E",
		"a.b":                       "a%2Eb",
		"Acme Corp":                 "Acme%20Corp",
		// which no tenant id may have, but the encoding is whole
		"a\tb\nc\rd\ve\ff":       "a%09b%0Ac%0Dd%0Be%0Cf",
		"a\x00b\x1fc\x7fd":       "a%00b%1Fc%7Fd",
		"a\u0085b\u009fc":        "a%C2%85b%C2%9Fc", // control characters of Latin-1
		"a\u00a0b":               "a%C2%A0b",
		"a\u1680b\u2003c\u2028d": "a%E1%9A%80b%E2%80%83c%E2%80%A8d",
		"a\u202fb\u205fc\u3000d": "a%E2%80%AFb%E2%81%9Fc%E3%80%80d",
		// invisible, but no white space and no control characters
		"a\u200bb\u00adc\ufeffd":      "a\u200bb\u00adc\ufeffd",
		"müller":                      "müller",       // NFC
		"mu\u0308ller":                "mu\u0308ller", // NFD: another tenant, and another subject
		"🙂 👩‍👩‍👧":                     "🙂%20👩‍👩‍👧",
		"東京":                          "東京",
		strings.Repeat("\u3000", 253): strings.Repeat("%E3%80%80", 253),
	} {
		if got := EncodeTenant(id); got != token {
			t.Errorf("tenant %q is %q, want %q", id, got, token)
		}
		if got, err := DecodeTenant(token); err != nil || got != id {
			t.Errorf("token %q is read as %q, %v, want %q", token, got, err, id)
		}
		if strings.ContainsAny(EncodeTenant(id), ".*> \t\r\n") {
			t.Errorf("tenant %q is more than one token: %q", id, EncodeTenant(id))
		}
	}
}

func TestDecodeTenantRefusesOtherEncodings(t *testing.T) {
	for what, token := range map[string]string{
		"lower-case hex":                "a%2eb",
		"mixed hex":                     "a%c2%A0b",
		"a letter encoded":              "%61bc",
		"a hyphen encoded":              "org%2D123",
		"a letter beyond ASCII encoded": "m%C3%BCller",
		"an emoji encoded":              "%F0%9F%99%82",
		"a dot as it is":                "a.b",
		"a star as it is":               "*",
		"an angle bracket as it is":     ">",
		"a space as it is":              "a b",
		"a wide space as it is":         "a\u00a0b",
		"a control character as it is":  "a\x01b",
		"a percent sign at the end":     "a%",
		"cut after one digit":           "a%2",
		"no hex":                        "a%zzb",
		"a sign for a digit":            "a%+2b",
		"an underscore for a digit":     "a%2_b",
		"twice encoded, wrongly":        "a%25%2e",
		"half a character":              "a%C2",
		"a wrong continuation":          "a%C2%20",
		"an over-long dot":              "a%C0%AE",
		"a surrogate":                   "a%ED%A0%80",
		"invalid UTF-8":                 "a\xff",
		"a space, half encoded":         "a\xc2%A0",
	} {
		if id, err := DecodeTenant(token); err == nil {
			t.Errorf("%s: token %q is read as %q", what, token, id)
		}
	}
}

// One tenant has one subject: what can be read is written in the same way, and what is a tenant id
// can be written and read.
func FuzzTenantToken(f *testing.F) {
	for _, seed := range []string{
		"org-123", "a%2Eb", "a%2eb", "%", "%2", "%25", "%2525", "a.b", "a *>b", "m%C3%BCller",
		"mu\u0308ller", "🙂", "a\u00a0b", "a%C2%A0b", "a%E2%80%83b",
		"\xff", "%FF", "%C0%AE", "%ED%A0%80", "", "%00", "a\u2028b", "a\ufeff", strings.Repeat("\u3000", 255),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if id, err := DecodeTenant(text); err == nil {
			if again := EncodeTenant(id); again != text {
				t.Fatalf("token %q is read as %q, which is written %q", text, id, again)
			}
		}
		if !utf8.ValidString(text) {
			return
		}
		token := EncodeTenant(text)
		if id, err := DecodeTenant(token); err != nil || id != text {
			t.Fatalf("tenant %q is written %q, which is read as %q, %v", text, token, id, err)
		}
		if strings.ContainsAny(token, ".*>") || strings.ContainsFunc(token,
			func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
			t.Fatalf("tenant %q is no single token of a subject: %q", text, token)
		}
	})
}

func TestCoversSubject(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		pattern, subject string
		want             bool
	}{
		{"a.b", "a.b", true}, {"a.b", "a.c", false}, {"a.b", "a", false}, {"a", "a.b", false}, {"a.*",
			"a.b", true}, {"a.*", "a.b.c", false},
		{"a.>", "a.b.c", true}, {"a.>", "a", false}, {">", "a.b", true}, {"a.>", "a.>", true}, {"a.*",
			"a.>", false}, {"a.b.>", "a.>", false},
	} {
		if got := coversSubject([]string{test.pattern}, test.subject); got != test.want {
			t.Errorf("coversSubject(%q, %q) = %v", test.pattern, test.subject, got)
		}
	}
}
