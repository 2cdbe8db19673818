package console

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"papermap-worker/repo"
)

// tenants is a page of the list of tenants.
type tenants struct {
	Query, Status, Sort string
	Dashboard           string // its origin
	Page                int    // from 1
	List                []repo.Mapping
	Statuses            []repo.Status
	Origins             []repo.Origin
	Total, First, Last  int // how many match, and which of those are shown
	Previous, Next      string
	Read                time.Time // what Total counts; zero: it is not known yet
	Whole               bool      // all tenants were searched
}

const perPage = 50

// tenants searches ids and names for a part of them, in any case. The index says which tenants
// match; the database has what is shown of them.
func (c *Console) tenants(rw http.ResponseWriter, v *visit) error {
	ctx, q := v.Context(), v.URL.Query()
	t := tenants{
		Query: strings.TrimSpace(q.Get("q")), Status: q.Get("status"), Sort: q.Get("sort"), Page: 1,
		Dashboard: q.Get("dashboard"), Statuses: repo.Statuses(), Origins: repo.Origins(),
	}
	if !utf8.ValidString(t.Query) || strings.ContainsRune(t.Query, 0) || len(t.Query) > 1024 {
		return refuse(http.StatusBadRequest, "That is no text to search for.")
	}
	if t.Status != "" && !slices.Contains(t.Statuses, repo.Status(t.Status)) {
		return refuse(http.StatusBadRequest, "There is no status %q.", t.Status)
	}
	if t.Dashboard != "" && !slices.Contains(t.Origins, repo.Origin(t.Dashboard)) {
		return refuse(http.StatusBadRequest, "No dashboard is %q.", t.Dashboard)
	}
	if n, err := strconv.Atoi(q.Get("page")); err == nil {
		t.Page = min(max(1, n), indexRows/perPage)
	}
	if !slices.Contains(sorts, t.Sort) {
		t.Sort = "id"
	}
	x := c.indexes.get(ctx, c)
	var err error
	switch {
	case x != nil:
		err = t.find(v, c.db, x)
	case t.Dashboard == "": // until the index is read, the database finds how ids begin
		search := repo.Search{Status: repo.Status(t.Status), TenantID: t.Query}
		t.List, err = c.db.Search(ctx, search, repo.Cursor{Limit: perPage})
	}
	if err != nil {
		return err
	}
	return c.show(rw, v, "tenants", "Tenants", &t)
}

// find reads the page that the index says. A tenant whose whole id is the query is found at once,
// though the index may be older than it.
func (t *tenants) find(v *visit, db *repo.DB, x *index) (err error) {
	t.Read, t.Whole = x.read, x.whole
	skip := (t.Page - 1) * perPage
	var ids []string
	selected := wanted{t.Query, repo.Status(t.Status), repo.Origin(t.Dashboard)}
	ids, t.Total = x.find(selected, t.Sort, skip, perPage)
	first := t.Page == 1 && t.Status == "" && t.Dashboard == "" && t.Query != ""
	if first && len(ids) < perPage && !slices.Contains(ids, t.Query) {
		ids = append([]string{t.Query}, ids...)
	}
	if !x.whole && t.Page == 1 && t.Query != "" && t.Dashboard == "" {
		if ids, err = t.beyond(v, db, ids); err != nil {
			return err
		}
	}
	if t.List, err = db.MappingsOf(v.Context(), ids); err != nil {
		return err
	}
	t.Total = max(t.Total, len(t.List))
	t.First, t.Last = skip+min(1, len(t.List)), skip+len(t.List)
	if t.Page > 1 {
		t.Previous = t.link(t.Page-1, t.Sort)
	}
	if skip+perPage < t.Total {
		t.Next = t.link(t.Page+1, t.Sort)
	}
	return nil
}

// beyond adds tenants that the index has no room for, if their id or name begins with the query.
func (t *tenants) beyond(v *visit, db *repo.DB, ids []string) ([]string, error) {
	status := repo.Status(t.Status)
	for _, search := range []repo.Search{
		{Status: status, TenantID: t.Query}, {Status: status, Name: t.Query},
	} {
		list, err := db.Search(v.Context(), search, repo.Cursor{Limit: perPage})
		if err != nil {
			return nil, err
		}
		for _, m := range list {
			if len(ids) < perPage && !slices.Contains(ids, m.TenantID) {
				ids = append(ids, m.TenantID)
			}
		}
	}
	return ids, nil
}

// link is the address of another page of the same search.
func (t *tenants) link(page int, sort string) string {
	q := url.Values{}
	for name, value := range map[string]string{"q": t.Query, "status": t.Status, "dashboard": t.Dashboard} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if sort != "id" {
		q.Set("sort", sort)
	}
	if page > 1 {
		q.Set("page", strconv.Itoa(page))
	}
	return "/tenants?" + q.Encode()
}

// By is the address of the same search in another order, or in this one turned round.
func (t *tenants) By(sort string) string {
	if t.Sort == sort {
		sort = "-" + sort
	}
	return t.link(1, sort)
}

// Order is the order of a column that is sorted by one of some keys: aria-sort.
func (t *tenants) Order(sorts ...string) string {
	key, backwards := strings.CutPrefix(t.Sort, "-")
	switch {
	case !slices.Contains(sorts, key):
		return "none"
	case backwards:
		return "descending"
	}
	return "ascending"
}

// Arrow shows the order by a key.
func (t *tenants) Arrow(sort string) string {
	return map[string]string{sort: " ↓", "-" + sort: " ↑"}[t.Sort]
}
