package events

import (
	"fmt"
	"strings"
	"unicode"
)

// Invisible reports whether a character shows as nothing, or changes how others show: controls,
// directions of writing, spaces but the common one, and what is to be ignored. An id with one could
// look like another id.
func Invisible(r rune) bool {
	return !unicode.IsPrint(r) ||
		unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) ||
		r == '\u2800' // a Braille pattern without dots
}

// Visible writes a text for people, with invisible characters escaped as Go does, such as \u200b.
func Visible(text string) string {
	if !strings.ContainsFunc(text, Invisible) {
		return text
	}
	var out strings.Builder
	for _, r := range text {
		switch {
		case !Invisible(r):
			out.WriteRune(r)
		case r < 0x80:
			fmt.Fprintf(&out, `\x%02x`, r)
		case r > 0xffff:
			fmt.Fprintf(&out, `\U%08x`, r)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	return out.String()
}
