package console

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"papermap-worker/repo"
)

// tenants is a page of the list of tenants.
type tenants struct {
	Query, Status string
	By            string // id or name: what the query was found to begin
	List          []repo.Mapping
	Statuses      []repo.Status
	First         bool   // this is the first page
	Previous      string // tenant id before which the page before ends; empty: there is none
	Next          string
}

const perPage = 50

// tenants looks for tenants. A query is how a tenant id begins, or else how a name begins.
func (k *Console) tenants(rw http.ResponseWriter, v *visit) error {
	q := v.URL.Query()
	t := tenants{Query: strings.TrimSpace(q.Get("q")), Status: q.Get("status"), By: q.Get("by"), Statuses: repo.Statuses()}
	for _, text := range []string{t.Query, q.Get("after"), q.Get("before")} {
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
	part := repo.Part{After: q.Get("after"), Before: q.Get("before"), Limit: perPage + 1} // one more tells whether there is another page
	if part.After != "" {
		part.Before = ""
	}
	err := t.find(v.Context(), k.db, part)
	if err != nil {
		return err
	}
	more := len(t.List) > perPage
	back := part.Before != ""
	if more && back {
		t.List = t.List[1:]
	} else if more {
		t.List = t.List[:perPage]
	}
	if n := len(t.List); n > 0 {
		if more || back {
			t.Next = t.List[n-1].TenantID
		}
		if part.After != "" || back && more {
			t.Previous = t.List[0].TenantID
		}
	}
	t.First = t.Previous == ""
	return k.show(rw, v, "tenants", "Tenants", t)
}

// find tries ids, and names when no id begins so.
func (t *tenants) find(ctx context.Context, db *repo.DB, part repo.Part) (err error) {
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
