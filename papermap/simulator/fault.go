package simulator

import (
	"errors"
	"flag"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Fault is a rule: which API requests it hits, and what happens to them. The rules are tried in
// order, and the first that hits is the only one applied; one that misses by chance (Rate) or is
// used up (Count) leaves the request to the next. The zero value means "all" in a field that
// selects, and "do not" in one that acts.
type Fault struct {
	On     string  // "create", "usage", or "" for every API request
	Tenant string  // only requests with this X-Tenant-ID
	Title  string  // only creates whose title contains this
	Rate   float64 // share of those requests, above 0 to 1; 0: all
	Count  int     // maximum number of hits; 0: no limit

	// Delay waits before the answer, or the drop. The request's effect happens, and is logged,
	// before the wait.
	Delay time.Duration
	// close the connection without an answer, "before" the request has its effect, or "after"
	Drop string
	// send half of the usual answer under the full Content-Length, then close the connection
	Truncate    bool
	Endless     bool          // after the answer's body send spaces for as long as the client reads
	Bomb        bool          // after the answer's body send 1 GiB of spaces, all compressed to about 1 MiB
	HeaderDelay time.Duration // wait before each further line of the answer's header
	HeaderBytes int           // add about this many bytes of headers
	Status      int           // answer this status instead; a redirect points back to the same address
	// answer this instead; if empty, statuses from 400 have an error body, others none
	Body        string
	ContentType string // of the replaced answer; "" means application/json
	RetryAfter  string // header of the replaced answer, sent as it is
	BOM         bool   // begin the answer's body with a byte order mark
	Interim     bool   // send a 103 before the answer
	// IdleClose closes the connection when it has been idle for so long after the answer. Idle408 does
	// so, too, and announces it by a 408, as some balancers do.
	IdleClose, Idle408 time.Duration
	// Status or Body only replaces the answer: the request is processed all the same
	Effect bool
}

const (
	onCreate = "create"
	onUsage  = "usage"
	onAny    = "any" // in texts only
)

// flags maps the keys of a rule's text to f's fields; a flag's usage describes its values.
func (f *Fault) flags() *flag.FlagSet {
	s := flag.NewFlagSet("fault", flag.ContinueOnError)
	s.StringVar(&f.On, "on", "", "create, usage or any")
	s.StringVar(&f.Tenant, "tenant", "", "a tenant id")
	s.StringVar(&f.Title, "title", "", "a part of a title")
	s.Float64Var(&f.Rate, "rate", 0, "a number above 0 and at most 1")
	s.IntVar(&f.Count, "count", 0, "a whole number from 0")
	s.DurationVar(&f.Delay, "delay", 0, "a duration above 0 such as 1.5s")
	s.StringVar(&f.Drop, "drop", "", "before or after")
	s.BoolVar(&f.Truncate, "truncate", false, "true or false")
	s.BoolVar(&f.Endless, "endless", false, "true or false")
	s.BoolVar(&f.Bomb, "bomb", false, "true or false")
	s.DurationVar(&f.HeaderDelay, "header-delay", 0, "a duration above 0 such as 1.5s")
	s.IntVar(&f.HeaderBytes, "header-bytes", 0, "a whole number from 1 to 16777216")
	s.IntVar(&f.Status, "status", 0, "an HTTP status from 200 to 599")
	s.StringVar(&f.Body, "body", "", "a text")
	s.StringVar(&f.ContentType, "content-type", "", "a media type")
	s.StringVar(&f.RetryAfter, "retry-after", "", "a text")
	s.BoolVar(&f.BOM, "bom", false, "true or false")
	s.BoolVar(&f.Interim, "interim", false, "true or false")
	s.DurationVar(&f.IdleClose, "idle-close", 0, "a duration above 0 such as 1.5s")
	s.DurationVar(&f.Idle408, "idle-408", 0, "a duration above 0 such as 1.5s")
	s.BoolVar(&f.Effect, "effect", false, "true or false")
	return s
}

// ParseFault reads the text of a rule: key=value pairs separated by spaces, where a value with a
// space in it, an empty one, or one that begins with a quote is written as a Go string ("…" or
// `…`). The keys are Fault's fields:
//
//	status=503 retry-after=1 rate=0.1           a tenth of all requests
//	drop=after rate=0.05                        processed, but the connection closes
//	on=create drop=before count=3               the next three creates are lost on the way
//	on=usage truncate=true                      half an answer
//	on=usage endless=true                       an answer that does not end
//	bomb=true                                   1 MiB that unpacks to 1 GiB
//	header-delay=2s                             headers that come one by one
//	header-bytes=1048576                        1 MiB of headers
//	bom=true                                    a byte order mark before the JSON
//	interim=true                                a 103 before the answer
//	idle-close=1s                               the idle connection is closed after a second
//	idle-408=1s                                 the same, announced by a 408
//	tenant=org-7 delay=30s                      one tenant's answers come late
//	status=500 effect=true                      "failed", yet the dashboard is there
//	status=200 effect=true                      processed, with an empty body
//	title=Acme status=502 body="<h1>Bad gateway</h1>" content-type=text/html
//	status=401 body=`{"error":"Token expired","code":"TOKEN_EXPIRED","status":401}`
//
// on is create, usage or any; drop is before or after; truncate, endless, bomb, bom, interim and effect
// are true or false; delay, header-delay, idle-close and idle-408 are Go durations.
func ParseFault(text string) (Fault, error) {
	fail := func(format string, args ...any) (Fault, error) {
		return Fault{}, fmt.Errorf("fault %q: %w", text, fmt.Errorf(format, args...))
	}
	var f Fault
	flags := f.flags()
	seen := map[string]bool{}
	for rest := strings.TrimSpace(text); rest != ""; {
		var key, value string
		var err error
		if key, value, rest, err = cutPair(rest); err != nil {
			return fail("%w", err)
		}
		known := flags.Lookup(key)
		switch {
		case known == nil:
			var keys []string
			flags.VisitAll(func(k *flag.Flag) { keys = append(keys, k.Name) })
			return fail("unknown key %q; known keys: %s", key, strings.Join(keys, ", "))
		case seen[key]:
			return fail("key %q is given twice", key)
		case known.Value.Set(value) != nil || !f.allows(key):
			return fail("%s=%s: must be %s", key, value, known.Usage)
		}
		seen[key] = true
	}
	if f.On == onAny {
		f.On = ""
	}
	if err := f.check(); err != nil {
		return fail("%w", err)
	}
	return f, nil
}

// check returns what is invalid in a rule, parsed or made by hand.
func (f Fault) check() error {
	replaces, ways := f.replacesAnswer(), 0
	for _, way := range []bool{f.Drop != "", f.Truncate, f.Endless, f.Bomb, f.HeaderDelay != 0,
		f.HeaderBytes != 0} {
		if way {
			ways++
		}
	}
	adds := f.Delay != 0 || f.BOM || f.Interim || f.IdleClose != 0 || f.Idle408 != 0
	switch {
	case !replaces && ways == 0 && !adds:
		return errors.New("does nothing: give status, body, drop, truncate, endless, bomb, " +
			"header-delay, header-bytes, bom, interim, idle-close, idle-408 or delay")
	case f.IdleClose != 0 && f.Idle408 != 0:
		return errors.New("only one of idle-close and idle-408 can happen")
	case !replaces && (f.ContentType != "" || f.RetryAfter != "" || f.Effect):
		return errors.New("content-type, retry-after and effect belong to status or body")
	case (f.Drop != "" || f.Truncate) && replaces:
		return errors.New("only one of drop, truncate and status or body can happen")
	case ways > 1:
		return errors.New("only one of drop, truncate, endless, bomb, header-delay and header-bytes " +
			"can happen")
	case (f.Status == http.StatusNoContent || f.Status == http.StatusNotModified) &&
		(f.Body != "" || f.Endless || f.Bomb):
		return fmt.Errorf("an answer with status %d has no body", f.Status)
	case f.Title != "" && f.On == onUsage:
		return errors.New("title belongs to creates")
	}
	var err error
	f.visit(func(k *flag.Flag) {
		if err == nil && !f.allows(k.Name) {
			err = fmt.Errorf("%s=%s: must be %s", k.Name, k.Value, k.Usage)
		}
	})
	return err
}

// visit calls each with the keys that f sets, in alphabetical order.
func (f Fault) visit(each func(*flag.Flag)) {
	var filled Fault
	flags := filled.flags() // while it is empty, so that DefValue is the zero value's text
	filled = f
	flags.VisitAll(func(k *flag.Flag) {
		if k.Value.String() != k.DefValue {
			each(k)
		}
	})
}

// cutPair cuts the first pair off text, which is not empty and does not begin with a space.
func cutPair(text string) (key, value, rest string, err error) {
	end := strings.IndexFunc(text, func(r rune) bool { return r == '=' || unicode.IsSpace(r) })
	if end < 1 || text[end] != '=' {
		return "", "", "", fmt.Errorf("%q is not key=value", firstWord(text))
	}
	key, text = text[:end], text[end+1:]
	raw := firstWord(text)
	value = raw
	if startsQuoted(text) {
		if raw, err = strconv.QuotedPrefix(text); err == nil {
			value, err = strconv.Unquote(raw)
		}
		if after := text[len(raw):]; err != nil || firstWord(after) != "" {
			return "", "", "", fmt.Errorf("value of %q is not a Go string", key)
		}
	}
	return key, value, strings.TrimLeftFunc(text[len(raw):], unicode.IsSpace), nil
}

// firstWord returns text up to its first space.
func firstWord(text string) string {
	if i := strings.IndexFunc(text, unicode.IsSpace); i >= 0 {
		return text[:i]
	}
	return text
}

func startsQuoted(text string) bool {
	return strings.HasPrefix(text, `"`) || strings.HasPrefix(text, "`")
}

// allows reports whether the value of key is one that it may have.
func (f *Fault) allows(key string) bool {
	valid, limited := map[string]bool{
		"on":           f.On == onCreate || f.On == onUsage || f.On == onAny,
		"rate":         f.Rate > 0 && f.Rate <= 1,
		"count":        f.Count >= 0,
		"delay":        f.Delay > 0,
		"header-delay": f.HeaderDelay > 0,
		"idle-close":   f.IdleClose > 0,
		"idle-408":     f.Idle408 > 0,
		"header-bytes": f.HeaderBytes >= 1 && f.HeaderBytes <= 1<<24,
		"drop":         f.Drop == "before" || f.Drop == "after",
		"status":       f.Status >= 200 && f.Status <= 599,
	}[key]
	return valid || !limited
}

// String returns the text that ParseFault reads back as the same rule, its keys in alphabetical
// order.
func (f Fault) String() string {
	var pairs []string
	f.visit(func(k *flag.Flag) {
		pairs = append(pairs, k.Name+"="+quoteIfNeeded(k.Value.String()))
	})
	return strings.Join(pairs, " ")
}

func quoteIfNeeded(v string) string {
	needs := func(r rune) bool { return r == ' ' || !unicode.IsPrint(r) }
	if !utf8.ValidString(v) || startsQuoted(v) || strings.ContainsFunc(v, needs) {
		return strconv.Quote(v)
	}
	return v
}

// rule is an active fault.
type rule struct {
	Fault
	text string
	hits int
}

// SetFaults replaces the rules; their counts begin at 0. It panics if a rule is invalid, which a
// rule from ParseFault never is.
func (s *Simulator) SetFaults(faults ...Fault) {
	rules := make([]*rule, len(faults))
	for i, f := range faults {
		if err := f.check(); err != nil {
			panic(fmt.Sprintf("simulator: fault %q: %v", f, err))
		}
		if f.On == onAny {
			f.On = ""
		}
		rules[i] = &rule{Fault: f, text: f.String()}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rules = rules
}

// pickFault returns the rule for a request and its text, or the zero rule. s.mu is held.
func (s *Simulator) pickFault(on string, q Request) (Fault, string) {
	for _, r := range s.rules {
		switch {
		case r.On != "" && r.On != on,
			r.Tenant != "" && r.Tenant != q.TenantID,
			r.Title != "" && !strings.Contains(q.Title, r.Title),
			r.Count > 0 && r.hits >= r.Count,
			r.Rate > 0 && r.Rate < 1 && s.random.Float64() >= r.Rate:
			continue
		}
		r.hits++
		return r.Fault, r.text
	}
	return Fault{}, ""
}

// parseFaults parses a list of texts; its error names every wrong one.
func parseFaults(texts []string) ([]Fault, error) {
	faults := make([]Fault, len(texts))
	var errs []error
	for i, text := range texts {
		f, err := ParseFault(text)
		faults[i], errs = f, append(errs, err)
	}
	return faults, errors.Join(errs...)
}
