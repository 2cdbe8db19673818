package events

import "testing"

func TestInvisibleCharactersAreEscaped(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"": "", "org-1": "org-1", "Müller & Söhne, 東京 🏢": "Müller & Söhne, 東京 🏢",
		"mu\u0308ller": "mu\u0308ller", `a\b`: `a\b`, "org\u200b-1": `org\u200b-1`,
		"\u202eorg": `\u202eorg`, "\u2066a\u2069": `\u2066a\u2069`, "\x1b[2J\x07": `\x1b[2J\x07`,
		"a\u009bb": `a\u009bb`, "a\tb\nc": `a\x09b\x0ac`, "a\u00a0b": `a\u00a0b`,
		"a\u3000b": `a\u3000b`, "a\u00adb": `a\u00adb`, "\uFEFFa": `\ufeffa`, "a\u3164": `a\u3164`,
		"a\u2800": `a\u2800`, "a\ufe0f": `a\ufe0f`, "a\U000E0061": `a\U000e0061`, "a\u200d": `a\u200d`,
		"a\u2028b": `a\u2028b`,
	} {
		if got := Visible(text); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}
