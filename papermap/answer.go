package papermap

import (
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const (
	maxMessage = 300 // code points
	maxExcerpt = 80  // of a body that is no error object
	maxCode    = 64
)

// lenient reads what other JSON decoders would: how strictly the API writes is not documented.
var lenient = json.JoinOptions(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))

// failure says what an answer that is not 2xx means. lost is the request's class for an answer that leaves its outcome
// open; serverTime is what a date in Retry-After is measured from; hide takes our secrets out of texts.
func failure(a answer, lost Class, serverTime time.Time, hide *strings.Replacer) *Error {
	e := &Error{Class: lost, Status: a.status}
	wait, asked := parseRetryAfter(a.header, serverTime)
	switch status := a.status; {
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable && asked:
		e.Class, e.RetryAfter, e.Deferred = Retryable, wait, true
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		e.Class = Credentials
	case status == http.StatusNotFound, status/100 == 3:
		e.Class = Configuration
	case status == http.StatusConflict && lost == Unknown:
		// It may mean that the dashboard exists, and no look-up could tell.
	case status/100 == 4:
		e.Class = Refused
	}

	code, message := reason(a.body)
	if message == "" {
		message = strings.TrimSpace(strings.TrimPrefix(a.statusLine, strconv.Itoa(a.status)))
		if to := a.header.Get("Location"); to != "" {
			message += ": redirected to " + to
		} else if excerpt := oneLine(string(a.body), hide, maxExcerpt); excerpt != "" {
			message += ": " + excerpt
		}
	}
	e.Code, e.Message = oneLine(code, hide, maxCode), oneLine(message, hide, maxMessage)
	return e
}

// reason reads an error body: a code, and the first of message, error and detail that says something. Both are empty for
// what is no such object. Only {"error":"Token expired","code":"TOKEN_EXPIRED","status":401} is documented.
func reason(body []byte) (code, message string) {
	type problem struct {
		Code    jsontext.Value `json:"code"`
		Message jsontext.Value `json:"message"`
		Error   jsontext.Value `json:"error"`
		Detail  jsontext.Value `json:"detail"`
	}
	var outer, inner problem
	if json.Unmarshal(body, &outer, lenient) != nil {
		return "", ""
	}
	if outer.Error.Kind() == '{' && json.Unmarshal(outer.Error, &inner, lenient) == nil {
		outer.Error = nil // its parts speak for it
	}
	for _, v := range []jsontext.Value{outer.Code, inner.Code} {
		if code == "" {
			code = text(v)
		}
	}
	for _, v := range []jsontext.Value{outer.Message, outer.Error, inner.Message, inner.Error, inner.Detail, outer.Detail} {
		if message == "" {
			message = text(v)
		}
	}
	return code, message
}

// text is a JSON string's content, and any other value as it is written.
func text(v jsontext.Value) string {
	var s string
	if json.Unmarshal(v, &s, lenient) == nil {
		return s
	}
	return string(v)
}

// parseRetryAfter reads Retry-After, in seconds or as a date to be measured from now. What it asks for is clamped to
// 1 s … 15 min, garbage and the past to 1 s. present is false without the header.
func parseRetryAfter(header http.Header, now time.Time) (d time.Duration, present bool) {
	const shortest, longest = time.Second, 15 * time.Minute
	values := header.Values("Retry-After")
	if len(values) == 0 {
		return 0, false
	}
	seconds, err := strconv.ParseInt(strings.TrimSpace(values[0]), 10, 64)
	if err == nil || errors.Is(err, strconv.ErrRange) { // out of range, ParseInt returns the nearest it can
		seconds = min(max(seconds, int64(shortest/time.Second)), int64(longest/time.Second))
		return time.Duration(seconds) * time.Second, true
	}
	date, err := http.ParseTime(values[0])
	if err != nil {
		return shortest, true
	}
	return min(max(date.Sub(now), shortest), longest), true
}

// redactor replaces what an answer must not echo into our logs.
func (c *Client) redactor(signature string) *strings.Replacer {
	hidden := []string{c.ws.Key.ID, c.ws.Key.Secret.Reveal(), c.ws.EmbedKey.Secret.Reveal(), signature}
	slices.SortFunc(hidden, func(a, b string) int { return len(b) - len(a) }) // one may begin with another
	var pairs []string
	for _, s := range hidden {
		if s != "" {
			pairs = append(pairs, s, "[redacted]")
		}
	}
	return strings.NewReplacer(pairs...)
}

// oneLine takes hidden texts and unprintable characters out of s and then cuts it to limit code points.
func oneLine(s string, hide *strings.Replacer, limit int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, hide.Replace(s))
	s = strings.TrimSpace(s)
	if utf8.RuneCountInString(s) > limit {
		s = string([]rune(s)[:limit-1]) + "…"
	}
	return s
}
