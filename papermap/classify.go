package papermap

import (
	"cmp"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

const (
	maxMessage = 300 // code points of Error.Message
	maxCode    = 64  // code points of Error.Code
	maxExcerpt = 80  // code points quoted of a body that is not an error object
)

// classify returns what an answer that is not 2xx means:
//
//	402; 4xx with a quota code  Quota
//	429; 503 with Retry-After   Retryable, and Deferred
//	421, 425                    Retryable: the server did not look at the request
//	401, 403                    Credentials
//	404, 3xx                    Configuration
//	409                         Unknown for a create: the dashboard may exist
//	other 4xx, except 408       Refused
//	anything else               lost: Unknown for a create, Retryable for a read
//
// 408 is lost, too: load balancers announce the end of an idle connection with it, and it may cross
// with a request that was processed.
//
// A date in Retry-After is measured from serverTime; hide removes our secrets from what the server
// sent.
func classify(a answer, lost Class, serverTime time.Time, hide redactor) *Error {
	e := &Error{Class: lost, Status: a.status}
	wait, asked := parseRetryAfter(a.header, serverTime)
	code, message := reason(a.body)
	switch status := a.status; {
	case status == http.StatusPaymentRequired, status/100 == 4 && hasQuotaCode(a.body, code):
		e.Class = Quota
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable && asked:
		e.Class, e.RetryAfter, e.Deferred = Retryable, wait, true
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		e.Class = Credentials
	case status == http.StatusNotFound, status/100 == 3:
		e.Class = Configuration
	case status == http.StatusMisdirectedRequest, status == http.StatusTooEarly:
		e.Class = Retryable
	case status == http.StatusRequestTimeout: // stays lost
	case status == http.StatusConflict && lost == Unknown: // stays Unknown
	case status/100 == 4:
		e.Class = Refused
	}

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

// quotaCodes are the codes that mean a used-up quota. Papermap documents none, so these are common
// ones, in upper case.
var quotaCodes = []string{
	"QUOTA_EXCEEDED", "QUOTA_EXHAUSTED", "INSUFFICIENT_QUOTA", "PAYMENT_REQUIRED",
	"INSUFFICIENT_CREDITS", "CREDITS_EXHAUSTED", "CREDITS_EXCEEDED", "CREDIT_LIMIT_EXCEEDED",
	"CREDIT_LIMIT_REACHED", "NO_CREDITS", "OUT_OF_CREDITS", "USAGE_LIMIT_EXCEEDED", "USAGE_LIMIT_REACHED",
	"PLAN_LIMIT_EXCEEDED", "PLAN_LIMIT_REACHED",
}

// hasQuotaCode reports whether an error body's code, or its member error, is exactly a quota code.
// Messages do not count: they may quote a tenant's name.
func hasQuotaCode(body []byte, code string) bool {
	isQuota := func(s string) bool { return slices.Contains(quotaCodes, strings.ToUpper(s)) }
	return isQuota(code) ||
		jsontext.Value(body).IsValid(lenient) && isQuota(text(readMembers(body)["error"]))
}

// reason reads an error body: its code, and the first of message, error and detail that has text.
// Both are empty for any other body. Only one form is documented: {"error":"Token
// expired","code":"TOKEN_EXPIRED","status":401}.
func reason(body []byte) (code, message string) {
	if !jsontext.Value(body).IsValid(lenient) {
		return "", ""
	}
	outer, inner := readMembers(body), members(nil)
	if outer["error"].Kind() == '{' {
		inner = readMembers(outer["error"])
		delete(outer, "error") // replaced by its members
	}
	code = cmp.Or(text(outer["code"]), text(inner["code"]))
	message = cmp.Or(text(outer["message"]), text(outer["error"]),
		text(inner["message"]), text(inner["error"]), text(inner["detail"]), text(outer["detail"]))
	return code, message
}

// parseRetryAfter reads Retry-After, in seconds or as a date to be measured from now, and clamps it
// to 1 s … 15 min; garbage and the past become 1 s. present is false without the header.
func parseRetryAfter(header http.Header, now time.Time) (d time.Duration, present bool) {
	const shortest, longest = time.Second, 15 * time.Minute
	values := header.Values("Retry-After")
	if len(values) == 0 {
		return 0, false
	}
	seconds, err := strconv.ParseInt(strings.TrimSpace(values[0]), 10, 64)
	if err == nil || errors.Is(err, strconv.ErrRange) { // out of range, ParseInt returns the nearest int64
		seconds = min(max(seconds, int64(shortest/time.Second)), int64(longest/time.Second))
		return time.Duration(seconds) * time.Second, true
	}
	date, err := http.ParseTime(values[0])
	if err != nil {
		return shortest, true
	}
	return min(max(date.Sub(now), shortest), longest), true
}

// redactor replaces text of an answer that must not appear in the logs: keys, secrets and this
// request's signature. It also replaces parts of them, in upper or lower case, because a server may
// cut or change what it echoes.
type redactor struct {
	whole *strings.Replacer
	parts map[string]bool // all parts of hiddenPart bytes, in lower case
}

const (
	redacted   = "[redacted]"
	hiddenPart = 16 // bytes; shorter parts stay
)

func (c *Client) redactor(signature string) redactor {
	hidden := []string{c.ws.Key.ID, c.ws.Key.Secret.Reveal(), c.ws.EmbedKey.Secret.Reveal(), signature}
	// The longest first, since one may be a prefix of another.
	slices.SortFunc(hidden, func(a, b string) int { return len(b) - len(a) })
	var pairs []string
	parts := map[string]bool{}
	for _, s := range hidden {
		if s != "" {
			pairs = append(pairs, s, redacted)
		}
		s = lowerASCII(s)
		for i := 0; i+hiddenPart <= len(s); i++ {
			parts[s[i:i+hiddenPart]] = true
		}
	}
	return redactor{strings.NewReplacer(pairs...), parts}
}

func (r redactor) Replace(s string) string {
	s = r.whole.Replace(s)
	lower := lowerASCII(s)
	var out strings.Builder
	copied, hiddenTo := 0, 0 // in s
	for i := 0; i+hiddenPart <= len(s); i++ {
		if !r.parts[lower[i:i+hiddenPart]] {
			continue
		}
		if i >= hiddenTo {
			out.WriteString(s[copied:i])
			out.WriteString(redacted)
		}
		hiddenTo = i + hiddenPart
		copied = hiddenTo
	}
	out.WriteString(s[copied:])
	return out.String()
}

// lowerASCII keeps every byte's place.
func lowerASCII(s string) string {
	lower := []byte(s)
	for i, b := range lower {
		if 'A' <= b && b <= 'Z' {
			lower[i] = b + 'a' - 'A'
		}
	}
	return string(lower)
}

// maxScanned is how much of a text is searched and shown, in bytes: more than any limit lets through.
const maxScanned = 8 << 10

// beginning is the beginning of s, up to maxScanned.
func beginning(s string) string { return s[:min(len(s), maxScanned)] }

// oneLine returns s without hidden text and unprintable characters, cut to limit code points.
func oneLine(s string, hide redactor, limit int) string {
	s = hide.Replace(beginning(strings.TrimSpace(s)))
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
	return truncate(strings.TrimSpace(s), limit)
}

// truncate cuts s to limit code points. If it cuts, the last one is an ellipsis.
func truncate(s string, limit int) string {
	if utf8.RuneCountInString(s) <= limit {
		return s
	}
	for i := range s {
		if limit--; limit == 0 {
			return s[:i] + "…"
		}
	}
	return s
}
