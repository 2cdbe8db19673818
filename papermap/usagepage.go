package papermap

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// maxUsageRows limits the rows of one answer, so that an answer of 8 MiB takes only a few times
// that in memory.
const maxUsageRows = 100_000

// readUsage reads a page from a 2xx. An error means that the whole page is unusable.
func readUsage(a answer, q UsageQuery) (UsagePage, error) {
	if a.status != http.StatusOK {
		return UsagePage{}, errors.New("not 200")
	}
	top, err := a.readSuccess()
	if err != nil {
		return UsagePage{}, err
	}
	list, data, inner := findUsage(top)
	if list == nil {
		return UsagePage{}, errors.New("no list of usage in it")
	}
	p := UsagePage{Rows: make([]UsageRow, 0, q.PerPage)}
	err = readList(list, func(i int, element jsontext.Value) error {
		if i == maxUsageRows {
			return fmt.Errorf("more than %d rows where %d were asked for", maxUsageRows, q.PerPage)
		}
		if row, problem := readRow(element, q); problem != "" {
			p.Rejected = append(p.Rejected, RejectedRow{Index: i, Reason: problem, Raw: string(element)})
		} else {
			p.Rows = append(p.Rows, row)
		}
		return nil
	})
	if err != nil {
		return UsagePage{}, err
	}
	findPagination(data, inner, top).complete(&p, q)
	return p, nil
}

// findUsage returns the list in an answer, nil if there is none, with the answer's data and data.data.
func findUsage(top members) (list jsontext.Value, data, inner members) {
	data = readMembers(top["data"])
	inner = readMembers(data["data"])
	return findList(level{top["data"], data}, level{data["data"], inner}), data, inner
}

// level is a place in the answer where the list may be.
type level struct {
	value   jsontext.Value
	members members
}

// findList returns the list at the best of its places: by name first, then by level. It is nil if
// there is none.
func findList(levels ...level) jsontext.Value {
	for _, name := range listNames {
		for _, l := range levels {
			v := l.members[name]
			if name == itself {
				v = l.value
			}
			if v.Kind() == '[' {
				return v
			}
		}
	}
	return nil
}

// pagination holds the objects that may have its numbers, best first.
type pagination []members

func findPagination(levels ...members) (p pagination) {
	for _, name := range paginationNames {
		for _, m := range levels {
			if name != itself {
				m = readMembers(m[name])
			}
			p = append(p, m)
		}
	}
	return p
}

// number returns the first member of these names that holds a whole number, or -1.
func (p pagination) number(names []string) int {
	for _, m := range p {
		for _, name := range names {
			if n, ok := parseWhole(m[name]); ok && n <= 1<<40 {
				return int(n)
			}
		}
	}
	return -1
}

// more reports whether the API announces a next page; known is false if it does not say.
func (p pagination) more() (more, known bool) {
	for _, m := range p {
		for _, name := range moreNames {
			if b, err := strconv.ParseBool(strings.Trim(string(m[name]), `"`)); err == nil {
				return b, true
			}
		}
	}
	return false, false
}

// complete sets page's Total, Pages and More. Numbers that contradict each other or the rows are
// ignored. Pages may be 0 or 1 when there are no rows, and a page may be shorter than requested
// when the API does not say how long its pages are.
func (p pagination) complete(page *UsagePage, q UsageQuery) {
	total, pages := p.number(totalNames), p.number(pagesNames)
	number, perPage := p.number(pageNames), p.number(perPageNames)
	more, known := p.more()
	rows := len(page.Rows) + len(page.Rejected)

	longest := perPage
	if longest < 1 {
		longest = q.PerPage
	}
	if total >= 0 && (q.Page-1)*min(longest, rows)+rows > total {
		total = -1
	}
	if total >= 0 && q.Page == 1 && more && rows >= total {
		pages, total = -1, -1 // perhaps it counts the rows of the page
	}
	switch {
	case total < 0:
	case perPage > 0 && pages < 0:
		pages = (total + perPage - 1) / perPage
	case perPage > 0 && max(pages, 1) != max((total+perPage-1)/perPage, 1),
		perPage < 1 && pages >= 0 && (pages < (total+longest-1)/longest || pages > max(total, 1)):
		pages, total = -1, -1
	}
	if number >= 0 && number != q.Page || rows > 0 && pages >= 0 && q.Page > pages {
		pages = -1
	}
	page.Total = total
	switch {
	case known:
		if pages >= 0 && more != (q.Page < pages) {
			pages = -1
		}
	case pages >= 0:
		more = q.Page < pages
	case q.TenantID != "":
		more = rows >= q.PerPage // one row per month, at a path that may not have pages
	default:
		more = rows > 0 // a page may be shorter than requested and not be the last
	}
	page.Pages, page.More = pages, more
}
