package console

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"papermap-worker/repo"
)

// tenants is a page of the list of tenants.
type tenants struct {
	Query, Status  string
	By             string // id or name: what the query was found to begin
	List           []repo.Mapping
	Statuses       []repo.Status
	Previous, Next string // addresses of those pages; empty: there is none
}

const (
	perPage  = 50
	maxTrail = 50 // pages that the links back remember; before them they lead to the first page
)

// tenants searches for tenants. A query is the beginning of a tenant id, or else of a name. A page
// begins after a tenant id; the address has a trail of those where the pages before it begin.
func (c *Console) tenants(rw http.ResponseWriter, v *visit) error {
	q := v.URL.Query()
	t := tenants{
		Query: strings.TrimSpace(q.Get("q")), Status: q.Get("status"), By: q.Get("by"),
		Statuses: repo.Statuses(),
	}
	after, trail := q.Get("after"), q["trail"]
	for _, text := range append([]string{t.Query, after}, trail...) {
		if !utf8.ValidString(text) || strings.ContainsRune(text, 0) || len(text) > 1024 {
			return refuse(http.StatusBadRequest, "That is no text to search for.")
		}
	}
	if t.Status != "" && !slices.Contains(repo.Statuses(), repo.Status(t.Status)) {
		return refuse(http.StatusBadRequest, "There is no status %q.", t.Status)
	}
	if t.By != "name" && t.By != "id" {
		t.By = ""
	}
	// One row more than is shown tells whether there is another page.
	if err := t.find(v.Context(), c.db, repo.Cursor{After: after, Limit: perPage + 1}); err != nil {
		return err
	}
	if len(t.List) > perPage {
		t.List = t.List[:perPage]
		next := append(slices.Clone(trail), after)
		t.Next = t.link(t.List[perPage-1].TenantID, next[max(0, len(next)-maxTrail):])
	}
	switch n := len(trail); {
	case n > 0:
		t.Previous = t.link(trail[n-1], trail[:n-1])
	case after != "":
		t.Previous = t.link("", nil)
	}
	return c.show(rw, v, "tenants", "Tenants", t)
}

// link is the address of another page of the same search.
func (t *tenants) link(after string, trail []string) string {
	q := url.Values{"trail": trail}
	for name, value := range map[string]string{"q": t.Query, "status": t.Status, "by": t.By, "after": after} {
		if value != "" {
			q.Set(name, value)
		}
	}
	return "/tenants?" + q.Encode()
}

// find searches by id, and by name if no id begins with the query.
func (t *tenants) find(ctx context.Context, db *repo.DB, part repo.Cursor) (err error) {
	s := repo.Search{Status: repo.Status(t.Status)}
	if t.Query != "" && t.By != "name" {
		byID := s
		byID.TenantID = t.Query
		if t.List, err = db.Search(ctx, byID, part); err != nil || len(t.List) > 0 || t.By == "id" {
			t.By = "id"
			return err
		}
		t.By = "name"
	}
	if t.Query == "" {
		t.By = ""
	} else {
		s.Name = t.Query
	}
	t.List, err = db.Search(ctx, s, part)
	return err
}
