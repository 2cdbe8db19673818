package repo

import (
	"context"
	"errors"
	"slices"
)

// Search selects mappings for people. An empty field selects everything.
type Search struct {
	Status   Status
	TenantID string // how the tenant id begins
	Name     string // how the title begins, in any case, "Dashboard - " before it left out; orders by it
}

// Cursor is a part of an ordered list: at most Limit rows after, or before, a tenant.
type Cursor struct {
	After, Before string // tenant ids; at most one of them
	Limit         int
}

// maxCharacter sorts after any other character, so that text+maxCharacter ends the range of texts
// that begin with text.
const maxCharacter = "\U0010ffff"

// name is the expression of the index tenant_dashboards_name over a title. The index requires
// exactly the same text.
func (db *DB) name(title string) string {
	return "substr(lower(replace(" + title + ", 'Dashboard - ', '')), 1, 100)" + db.dialect.collate
}

// Search reads a part of the mappings that s selects, in the order of tenant ids, or of names if it
// selects by name. It reads only the rows that it returns and those that a filter by status leaves
// out, however many tenants there are.
func (db *DB) Search(ctx context.Context, s Search, p Cursor) ([]Mapping, error) {
	cursor := Mapping{TenantID: p.After + p.Before}
	if cursor.TenantID != "" && s.Name != "" {
		var err error
		if cursor, err = db.Mapping(ctx, cursor.TenantID); errors.Is(err, ErrNotFound) {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
	}
	query, args := db.searchQuery(s, p, cursor)
	rows, err := list[Mapping](ctx, db.read, "search for tenants", query, args...)
	if p.Before != "" {
		slices.Reverse(rows)
	}
	return rows, err
}

// searchQuery makes a query that reads an index in order, from where the page begins. cursor is the
// mapping of p.After or p.Before; its title is used only if s selects by name.
func (db *DB) searchQuery(s Search, p Cursor, cursor Mapping) (query string, args []any) {
	query = mappingTable.selects + " WHERE "
	where := func(text string, values ...any) {
		if len(args) > 0 {
			query += " AND "
		}
		query, args = query+text, append(args, values...)
	}
	order, than, direction := "tenant_id", ">", ""
	if p.Before != "" {
		than, direction = "<", " DESC"
	}
	title, value := db.name("title"), db.name("?")
	if s.Name != "" {
		order = title + direction + ", tenant_id"
		if p.After == "" { // else they come after one that begins so
			where(title+" >= "+value, s.Name)
		}
		if p.Before == "" {
			where(title+" < "+value+" || '"+maxCharacter+"'", s.Name)
		}
	}
	if s.TenantID != "" {
		where("tenant_id >= ? AND tenant_id < ?", s.TenantID, s.TenantID+maxCharacter)
	}
	switch {
	case s.Status == "":
	case s.Name != "":
		// An expression, so that the index by status is not used: its rows would have to be sorted.
		where("status || '' = ?", s.Status)
	default:
		where("status = ?", s.Status)
	}
	switch {
	case cursor.TenantID == "" && len(args) == 0:
		where("tenant_id > ?", "")
	case cursor.TenantID == "":
	case s.Name != "": // SQLite finds its place in the index by this, and not by a comparison of rows
		where(title+" "+than+"= "+value+" AND ("+title+" "+than+" "+value+" OR tenant_id "+than+" ?)",
			cursor.Title, cursor.Title, cursor.TenantID)
	default:
		where("tenant_id "+than+" ?", cursor.TenantID)
	}
	return query + " ORDER BY " + order + direction + " LIMIT ?", append(args, p.Limit)
}
