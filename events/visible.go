package events

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"

	"github.com/go-json-experiment/json/jsontext"
)

// Invisible reports whether a character is invisible or changes how others are shown: controls,
// text direction, white space other than a plain space, and default-ignorable characters. An id
// with one could look like another id.
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

// ShownBytes is how much of a payload a page or a terminal shows.
const ShownBytes = 256 << 10

// layoutDepth is the depth to which JSON is indented. Deeper levels stay as they are: indenting
// them would take time and space that grow with the square of the depth.
const layoutDepth = 8

// Layout returns data for people: JSON indented, anything else as it is. It is at most [ShownBytes]
// long; whole is false if there is more.
func Layout(data []byte) (text string, whole bool) {
	l := layout{dec: jsontext.NewDecoder(bytes.NewBuffer(data),
		jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))}
	err := l.value(0)
	if err == nil {
		if _, end := l.dec.ReadToken(); errors.Is(end, io.EOF) {
			err = errLaidOut
		}
	}
	out := data
	if errors.Is(err, errLaidOut) {
		out = l.out.Bytes()
	}
	whole = len(out) <= ShownBytes
	return strings.ToValidUTF8(string(out[:min(len(out), ShownBytes)]), "�"), whole
}

var errLaidOut = errors.New("laid out as far as it is shown")

type layout struct {
	dec *jsontext.Decoder
	out bytes.Buffer
}

// value writes the next value. Its error is errLaidOut once enough is written, or else that of the
// JSON.
func (l *layout) value(depth int) error {
	open := l.dec.PeekKind()
	if open != '{' && open != '[' || depth == layoutDepth {
		return l.raw()
	}
	if _, err := l.dec.ReadToken(); err != nil {
		return err
	}
	l.out.WriteByte(byte(open))
	for n := 0; ; n++ {
		if l.out.Len() > ShownBytes {
			return errLaidOut
		}
		next := l.dec.PeekKind()
		if next == '}' || next == ']' {
			if n > 0 {
				l.line(depth)
			}
			l.out.WriteByte(byte(next))
			_, err := l.dec.ReadToken()
			return err
		}
		if n > 0 {
			l.out.WriteByte(',')
		}
		l.line(depth + 1)
		if open == '{' {
			if err := l.raw(); err != nil {
				return err
			}
			l.out.WriteString(": ")
		}
		if err := l.value(depth + 1); err != nil {
			return err
		}
	}
}

func (l *layout) line(depth int) { l.out.WriteString("\n" + strings.Repeat("  ", depth)) }

// raw writes the next value, or name, as it is.
func (l *layout) raw() error {
	v, err := l.dec.ReadValue()
	l.out.Write(v)
	return err
}
