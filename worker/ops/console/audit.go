package console

import (
	"net/http"
	"strconv"

	"papermap-worker/repo"
)

// auditLog is a page of the audit log, newest first.
type auditLog struct {
	Tenant string
	List   []repo.AuditEntry
	Next   int64 // the page after this one has what is older than the entry; 0: there is none
	First  bool
}

func (c *Console) auditLog(rw http.ResponseWriter, v *visit) error {
	q := v.URL.Query()
	before, _ := strconv.ParseInt(q.Get("before"), 10, 64) // what is no number is the first page
	l := auditLog{Tenant: q.Get("tenant"), First: before == 0}
	var err error
	l.List, err = c.db.AuditLog(v.Context(), repo.AuditFilter{TenantID: l.Tenant, Before: before}, perPage+1)
	if err != nil {
		return err
	}
	if len(l.List) > perPage {
		l.List = l.List[:perPage]
		l.Next = l.List[perPage-1].ID
	}
	return c.show(rw, v, "audit", "Audit log", l)
}
