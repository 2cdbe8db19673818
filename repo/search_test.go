package repo

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSearchFindsByPrefixAndPagesBothWays(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		insertTenants(t, db, [3]string{"a-1", "Dashboard - Zebra", "active"},
			[3]string{"a-2", "Dashboard - acme two", "held"}, [3]string{"a-3", "ACME One", "active"},
			[3]string{"b_1", "Dashboard - Acme One", "active"},
			[3]string{"b%1", "Dashboard - 100% Acme", "failed"},
			[3]string{"é", "Dashboard - Émile", "active"},
			[3]string{"long", strings.Repeat("x", 5000), "active"})
		find := func(s Search, p Cursor) []string {
			t.Helper()
			list, err := db.Search(ctx, s, p)
			must(t, err)
			ids := []string{}
			for _, m := range list {
				ids = append(ids, m.TenantID)
			}
			return ids
		}
		for _, test := range []struct {
			s    Search
			want []string
		}{
			{Search{}, []string{"a-1", "a-2", "a-3", "b%1", "b_1", "long", "é"}},
			{Search{TenantID: "a-"}, []string{"a-1", "a-2", "a-3"}},
			{Search{TenantID: "b_"}, []string{"b_1"}},
			{Search{TenantID: "b%"}, []string{"b%1"}},
			{Search{TenantID: "A-"}, []string{}},
			{Search{Status: Held}, []string{"a-2"}},
			{Search{Name: "Acme"}, []string{"a-3", "b_1", "a-2"}},
			{Search{Name: "ACME O"}, []string{"a-3", "b_1"}},
			{Search{Name: "acme", Status: Active}, []string{"a-3", "b_1"}},
			{Search{Name: "dashboard - zeb"}, []string{}},
			{Search{Name: "Dashboard - zeb"}, []string{"a-1"}},
			{Search{Name: "100%"}, []string{"b%1"}},
			{Search{Name: "É"}, []string{"é"}},
			{Search{Name: "xxx"}, []string{"long"}},
		} {
			if diff := cmp.Diff(test.want, find(test.s, Cursor{Limit: 100})); diff != "" {
				t.Errorf("%+v (-want +got):\n%s", test.s, diff)
			}
			// One by one, forwards and backwards, is the same.
			for _, back := range []bool{false, true} {
				got, p := []string{}, Cursor{Limit: 1}
				if back && len(test.want) > 0 {
					last := test.want[len(test.want)-1]
					got, p.Before = append(got, last), last
				}
				for page := find(test.s, p); len(page) > 0; page = find(test.s, p) {
					got = append(got, page[0])
					if back {
						p.Before = page[0]
					} else {
						p.After = page[0]
					}
				}
				if back {
					slices.Reverse(got)
				}
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Errorf("%+v one by one, back %t (-want +got):\n%s", test.s, back, diff)
				}
			}
		}
		if got := find(Search{Name: "a"}, Cursor{After: "none", Limit: 9}); len(got) != 0 {
			t.Errorf("after a tenant that is not there: %v", got)
		}
	})
}

func TestSearchReadsAnIndexInItsOrder(t *testing.T) {
	db := openTest(t)
	for _, s := range []Search{{}, {TenantID: "a"}, {Status: Held}, {Status: Held, TenantID: "a"},
		{Name: "a"}, {Name: "a", Status: Held}} {
		for _, p := range []Cursor{{Limit: 50}, {After: "m", Limit: 50}, {Before: "m", Limit: 50}} {
			cursor := Mapping{TenantID: p.After + p.Before, Title: "M"}
			query, args := db.searchQuery(s, p, cursor)
			text := strings.Join(plan(t, db, query, args), "; ")
			t.Logf("%+v %+v: %s", s, p, text)
			if !strings.HasPrefix(text, "SEARCH tenant_dashboards USING INDEX") ||
				strings.Contains(text, "TEMP B-TREE") {
				t.Errorf("%+v %+v: %s", s, p, text)
			}
			if s.Name != "" && !strings.Contains(text, "tenant_dashboards_name") {
				t.Errorf("%+v %+v: %s", s, p, text)
			}
		}
	}
}
