package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/pressly/goose/v3"
)

// Search selects mappings for people. A field that is empty selects all.
type Search struct {
	Status   Status
	TenantID string // how the tenant id begins
	Name     string // how the title begins, in any case, "Dashboard - " before it left out; orders by it
}

// Part is a part of a list that is in one order: at most Limit rows that come after one of them, or before it.
type Part struct {
	After, Before string // tenant ids; at most one of them
	Limit         int
}

// lastCharacter sorts behind all that a text goes on with.
const lastCharacter = "\U0010ffff"

// name is the expression of the index tenant_dashboards_name over a title.
func (db *DB) name(title string) string {
	text := "substr(lower(replace(" + title + ", 'Dashboard - ', '')), 1, 100)"
	if db.dialect == goose.DialectPostgres {
		text += ` COLLATE "C"`
	}
	return text
}

// Search reads a part of the mappings that s selects, in the order of tenant ids, or of names when it selects by them.
func (db *DB) Search(ctx context.Context, s Search, p Part) ([]Mapping, error) {
	var cursor Mapping
	if id := p.After + p.Before; id != "" {
		cursor.TenantID = id
		if s.Name != "" {
			var err error
			if cursor, err = db.Mapping(ctx, id); errors.Is(err, ErrNotFound) {
				return nil, nil
			} else if err != nil {
				return nil, err
			}
		}
	}
	query, args := db.searchQuery(s, p, cursor)
	var list []Mapping
	if err := db.read.SelectContext(ctx, &list, db.read.Rebind(query), args...); err != nil {
		return nil, fmt.Errorf("searching for tenants: %w", err)
	}
	if p.Before != "" {
		slices.Reverse(list)
	}
	return list, nil
}

func (db *DB) searchQuery(s Search, p Part, cursor Mapping) (query string, args []any) {
	query = "SELECT " + mappingColumns + " FROM tenant_dashboards WHERE "
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
	if s.Name != "" {
		order = db.name("title") + direction + ", tenant_id"
		if p.After == "" { // else they come after one that begins so
			where(db.name("title")+" >= "+db.name("?"), s.Name)
		}
		if p.Before == "" {
			where(db.name("title")+" < "+db.name("?")+" || '"+lastCharacter+"'", s.Name)
		}
	}
	if s.TenantID != "" {
		where("tenant_id >= ? AND tenant_id < ?", s.TenantID, s.TenantID+lastCharacter)
	}
	switch {
	case s.Status == "":
	case s.Name != "":
		where("status || '' = ?", s.Status) // no other index is to be taken for it: their rows would have to be sorted
	default:
		where("status = ?", s.Status)
	}
	switch {
	case cursor.TenantID == "":
		if len(args) == 0 {
			where("tenant_id > ?", "")
		}
	case s.Name != "":
		// SQLite finds its place in the index by this, and not by a comparison of rows.
		title, cursorName := db.name("title"), db.name("?")
		where(title+" "+than+"= "+cursorName+" AND ("+title+" "+than+" "+cursorName+" OR tenant_id "+than+" ?)", cursor.Title, cursor.Title, cursor.TenantID)
	default:
		where("tenant_id "+than+" ?", cursor.TenantID)
	}
	return query + " ORDER BY " + order + direction + " LIMIT ?", append(args, p.Limit)
}
