package console

import (
	"fmt"
	"html/template"
	"math"
	"net/url"
	"strconv"
	"strings"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// functions are what templates write with.
var functions = template.FuncMap{
	"when": when, "prose": prose,
	"count": count[int], "count64": count[int64], "decimal": decimal, "credits": credits,
	"rate": perSecond, "iso": iso, "name": shortName, "plural": plural, "query": query,
	"duration": duration, "stamp": stamp, "month": monthName,
	"visible": events.Visible,
}

// ago says how long ago something was, as people do.
func ago(t, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	d := now.Sub(t)
	if d < 0 && d > -5*time.Second {
		d = 0
	}
	if d < 0 {
		return "in " + duration(-d)
	}
	if d < 5*time.Second {
		return "just now"
	}
	return duration(d) + " ago"
}

// when is a time as its age. The script keeps the age current, and shows the time itself, local and in
// UTC, to whoever points at it.
func when(t, now time.Time) template.HTML {
	if t.IsZero() {
		return "never"
	}
	return template.HTML(fmt.Sprintf(`<time class="age" datetime="%s" title="%s">%s</time>`,
		iso(t), stamp(t), ago(t, now)))
}

// prose is text in which commands stand between backticks, with those to be copied.
func prose(text string) template.HTML {
	var out strings.Builder
	for i, part := range strings.Split(text, "`") {
		part = template.HTMLEscapeString(part)
		if i%2 == 1 {
			part = "<code data-copy>" + part + "</code>"
		}
		out.WriteString(part)
	}
	return template.HTML(out.String())
}

func duration(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

func iso(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

func monthName(period string) string {
	t, err := time.Parse("2006-01", period)
	if err != nil {
		return period
	}
	return t.Format("Jan 2006")
}

// count writes a whole number in groups of three digits.
func count[N int | int64](n N) string { return grouped(strconv.FormatInt(int64(n), 10)) }

// decimal writes a sum for the eye.
func decimal(f float64) string {
	text := strconv.FormatFloat(math.Abs(f), 'f', 2, 64)
	whole, fraction, _ := strings.Cut(text, ".")
	return grouped(whole) + "." + fraction
}

// credits writes an exact decimal in groups of three digits.
func credits(text string) string {
	whole, fraction, ok := strings.Cut(text, ".")
	if ok {
		fraction = "." + fraction
	}
	return grouped(whole) + fraction
}

func grouped(digits string) string {
	var out strings.Builder
	for i, c := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 && digits[i-1] != '-' {
			out.WriteRune(',')
		}
		out.WriteRune(c)
	}
	return out.String()
}

func perSecond(f float64) string {
	switch {
	case f == 0:
		return "0"
	case f < 10:
		return strconv.FormatFloat(f, 'f', 1, 64)
	}
	return grouped(strconv.FormatFloat(f, 'f', 0, 64))
}

// shortName is a title as people call the tenant.
func shortName(title string) string { return strings.TrimPrefix(title, "Dashboard - ") }

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return count(n) + " " + many
}

// query is the query of an address from pairs, without those that are empty.
func query(pairs ...string) template.URL {
	q := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	return template.URL("?" + q.Encode()) // all that is not a letter or a digit is encoded
}

// shown is whether a character of a page's text stays as it is.
func shown(r rune) bool { return r == '\n' || r == '\r' || r == '\t' || !events.Invisible(r) }

// visiblePage escapes the invisible characters in the text of a page, so that no id looks like another
// one. In tags they stay: an action needs the id itself. Templates escape < and > in texts and in
// attributes, so these are always of tags.
func visiblePage(page string) string {
	if !strings.ContainsFunc(page, func(r rune) bool { return !shown(r) }) {
		return page
	}
	var out strings.Builder
	tag := false
	for _, r := range page {
		switch {
		case r == '<':
			tag = true
		case r == '>':
			tag = false
		}
		if tag || shown(r) {
			out.WriteRune(r)
		} else {
			out.WriteString(events.Visible(string(r)))
		}
	}
	return out.String()
}

// meaning of each status, in a few words.
var meaning = map[repo.Status]string{
	repo.Pending: "waits for its dashboard", repo.Creating: "is being created",
	repo.Active: "has its dashboard", repo.Held: "waits for you", repo.Failed: "was given up",
	repo.Suspended: "gets no tokens", repo.Deleted: "is gone",
}
