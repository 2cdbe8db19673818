package papermap

import (
	"bytes"
	"fmt"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

const (
	maxIntegerDigits  = 20 // of credits
	maxFractionDigits = 12
)

// appendTenant appends the tenant id that v holds, or says why it holds none. Two ids never become one.
func appendTenant(dst, v []byte) (text []byte, why string) {
	if v[0] != '"' {
		return dst, "tenant is not a string"
	}
	start := len(dst)
	dst, err := jsontext.AppendUnquote(dst, v)
	id := dst[start:]
	switch {
	case err != nil:
		return dst, "tenant is not valid UTF-8"
	case len(id) == 0:
		return dst, "tenant is empty"
	case len(id) > MaxTenantID && utf8.RuneCount(id) > MaxTenantID:
		return dst, fmt.Sprintf("tenant is longer than %d characters", MaxTenantID)
	case bytes.ContainsFunc(id, unicode.IsControl):
		return dst, "tenant has control characters"
	}
	return dst, ""
}

// appendDecimal appends the number that v holds, a JSON number or the same in a string, in plain decimal notation. It
// never makes more digits than it may keep, whatever the exponent.
func appendDecimal(dst, v []byte) (text []byte, why string) {
	const notNumber = "not a number"
	s := v
	switch v[0] {
	case '"':
		s = unquoted(v)
	case '{', '[', 't', 'f':
		return dst, notNumber
	}
	negative := false
	if len(s) > 0 && (s[0] == '-' || s[0] == '+') {
		negative, s = s[0] == '-', s[1:]
	}

	// The value is 0.d₁d₂d₃… × 10^point, where d₁ and the last digit are not 0.
	var digits [maxIntegerDigits + maxFractionDigits]byte
	n, zeros, point := 0, 0, 0 // zeros: read, and to be kept if another digit follows
	tooLong, inFraction, anyDigit := false, false, false
	i := 0
scan:
	for ; i < len(s); i++ {
		d := s[i]
		switch {
		case d == '.' && !inFraction:
			inFraction = true
			continue
		case d < '0' || d > '9':
			break scan
		case d == '0' && n == 0:
			if inFraction {
				point--
			}
		case d == '0':
			zeros++
		case n+zeros >= len(digits):
			tooLong = true // and so it stays: integer and fraction together have more digits than allowed
		default:
			for ; zeros > 0; zeros-- {
				digits[n] = '0'
				n++
			}
			digits[n] = d
			n++
		}
		anyDigit = true
		if !inFraction && n > 0 {
			point++
		}
	}
	if !anyDigit {
		return dst, notNumber
	}
	if i < len(s) {
		exponent, ok := parseExponent(s[i:])
		if !ok {
			return dst, notNumber
		}
		point += exponent
	}
	switch {
	case n == 0:
		return append(dst, '0'), ""
	case negative:
		return dst, "negative"
	case tooLong, point > maxIntegerDigits, n-point > maxFractionDigits:
		return dst, fmt.Sprintf("of more than %d digits or %d after the point", maxIntegerDigits, maxFractionDigits)
	case point <= 0:
		dst = append(dst, "0."...)
		for ; point < 0; point++ {
			dst = append(dst, '0')
		}
		return append(dst, digits[:n]...), ""
	case point >= n:
		dst = append(dst, digits[:n]...)
		for ; point > n; point-- {
			dst = append(dst, '0')
		}
		return dst, ""
	}
	dst = append(dst, digits[:point]...)
	dst = append(dst, '.')
	return append(dst, digits[point:n]...), ""
}

// parseExponent reads e5, E+5 or e-5. One too large to matter is cut to what still is.
func parseExponent(s []byte) (int, bool) {
	const enough = 1 << 30 // no answer has so many digits that an exponent beyond could be made up for
	if s[0] != 'e' && s[0] != 'E' {
		return 0, false
	}
	s = s[1:]
	negative := false
	if len(s) > 0 && (s[0] == '-' || s[0] == '+') {
		negative, s = s[0] == '-', s[1:]
	}
	exponent := 0
	for _, d := range s {
		if d < '0' || d > '9' {
			return 0, false
		}
		exponent = min(exponent*10+int(d-'0'), enough)
	}
	if negative {
		exponent = -exponent
	}
	return exponent, len(s) > 0
}

// wholeNumber reads a number from 0, which may also be written as 3.0, 3e2 or in a string.
func wholeNumber(v []byte) (int64, bool) {
	var buffer [maxIntegerDigits + maxFractionDigits + 2]byte
	text, why := appendDecimal(buffer[:0], v)
	if why != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(string(text), 10, 64)
	return n, err == nil
}

// parsePeriod is the month that s names or lies in, or empty if it is none from 2000-01 to 2999-12: 2025-01, a date, or
// a date and time, in UTC if it has a zone and as written if it has none.
func parsePeriod(s string) string {
	for _, layout := range []string{
		"2006-01", "2006-01-02 15:04:05", time.DateOnly, time.RFC3339, "2006-01-02T15:04:05", "2006-01-02 15:04:05Z07:00",
	} {
		if t, err := time.Parse(layout, s); err == nil {
			if t = t.UTC(); t.Year() < 2000 || t.Year() > 2999 {
				return ""
			}
			return t.Format("2006-01")
		}
	}
	return ""
}
