package console

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"papermap-worker/repo"
)

// The index must agree with looking at each tenant in turn.
func TestIndexFindsWhatALookAtEachTenantFinds(t *testing.T) {
	virtual(t, Config{Dev: true}, nil, func(t *testing.T, w *world) {
		random := rand.New(rand.NewPCG(1, 2))
		var all []repo.TenantName
		letters := []rune("aAbBéÉ ÿ-")
		origins := append(repo.Origins(), repo.OriginCreated)
		for i := range 700 {
			var id, name strings.Builder
			for range 1 + random.IntN(4) {
				id.WriteRune(letters[random.IntN(len(letters))])
				name.WriteRune(letters[random.IntN(len(letters))])
			}
			row := repo.TenantName{
				TenantID: fmt.Sprintf("%s%03d", id.String(), i),
				Title:    "Dashboard - " + name.String(),
				Status:   repo.Statuses()[random.IntN(len(repo.Statuses()))],
				Origin:   origins[random.IntN(len(origins))],
			}
			all = append(all, row)
			_, err := w.SQL.Exec(`INSERT INTO tenant_dashboards
				(tenant_id, workspace_id, dashboard_id, title, status, dashboard_origin, stage, created_at,
					updated_at)
				VALUES (?, 'ws-a', ?, ?, ?, ?, 'active', '2026-03-01T12:00:00.000Z', ?)`,
				row.TenantID, fmt.Sprint("d-", i), row.Title, row.Status, row.Origin,
				fmt.Sprintf("2026-03-01T12:00:00.%03dZ", i))
			w.Must(err)
		}
		t.Cleanup(func() {
			_, err := w.SQL.Exec("DELETE FROM tenant_dashboards")
			w.Must(err)
		})
		x, err := readIndex(t.Context(), w.DB, time.Now())
		w.Must(err)
		for range 300 {
			part := string(letters[random.IntN(len(letters))]) + string(letters[random.IntN(len(letters))])
			part = part[:random.IntN(len(part)+1)]
			part = strings.ToValidUTF8(part, "")
			status := append(repo.Statuses(), "")[random.IntN(len(repo.Statuses())+1)]
			origin := origins[random.IntN(len(origins))]
			want := map[string]bool{}
			for _, r := range all {
				has := func(text string) bool {
					return strings.Contains(strings.ToLower(text), strings.ToLower(part))
				}
				if (has(r.TenantID) || has(shortName(r.Title))) && (status == "" || r.Status == status) &&
					(origin == "" || r.Origin == origin) {
					want[r.TenantID] = true
				}
			}
			for _, sort := range sorts {
				var got []string
				for skip := 0; ; skip += 64 {
					ids, total := x.find(wanted{part, status, origin}, sort, skip, 64)
					if total != len(want) {
						t.Fatalf("%q, %s, %s: %d in all, want %d", part, status, origin, total, len(want))
					}
					if got = append(got, ids...); len(ids) < 64 {
						break
					}
				}
				for _, id := range got {
					if !want[id] {
						t.Errorf("%q, %s, %s: finds %q", part, status, sort, id)
					}
				}
				if unique := slices.Compact(slices.Sorted(slices.Values(got))); len(unique) != len(want) {
					t.Errorf("%q, %s, %s: finds %d, want %d", part, status, sort, len(unique), len(want))
				}
			}
		}
		ids, _ := x.find(wanted{}, "changed", 0, 2)
		if !strings.HasSuffix(ids[0], "699") || !strings.HasSuffix(ids[1], "698") {
			t.Errorf("changed last: %q", ids)
		}
	})
}

func TestSearchSeesTenantsThatAreNewerThanTheIndex(t *testing.T) {
	virtual(t, Config{Dev: true}, nil, func(t *testing.T, w *world) {
		w.get("/tenants")
		w.console.indexes.mu.Lock()
		w.console.indexes.took = time.Hour // it is not read again
		w.console.indexes.mu.Unlock()
		fillTenants(t, w, 3)
		if got := text(w.get("/tenants?q=t-0000002").body); !strings.Contains(got, "Company 2") {
			t.Errorf("the id itself: %s", got)
		}
		w.console.indexes.mu.Lock()
		w.console.indexes.took = 0
		w.console.indexes.mu.Unlock()
		w.Eventually(func() error {
			if got := text(w.get("/tenants?q=company+2").body); !strings.Contains(got, "1–1 of 1 tenant ") {
				return fmt.Errorf("%s", got)
			}
			return nil
		})
	})
}

func TestSearchBeginsWithIdsWhileTheIndexIsNotRead(t *testing.T) {
	virtual(t, Config{Dev: true}, nil, func(t *testing.T, w *world) {
		fillTenants(t, w, 3)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		w.console.life = ctx
		if got := text(w.get("/tenants?q=t-0000002").body); !strings.Contains(got, "Company 2") ||
			strings.Contains(got, "Company 1") ||
			!strings.Contains(got, "The worker is reading the tenants.") {
			t.Errorf("%s", got)
		}
		got := text(w.get("/tenants?dashboard=adopted").body)
		if strings.Contains(got, "Company") || strings.Contains(got, "No tenants match") ||
			!strings.Contains(got, "reading the tenants. Then those whose dashboard was adopted are listed") {
			t.Errorf("by dashboard: %s", got)
		}
	})
}

func TestTenantsAreFoundByHowTheyGotTheirDashboard(t *testing.T) {
	virtual(t, Config{Dev: true}, nil, func(t *testing.T, w *world) {
		for _, tenant := range []string{"made", "corrected"} {
			w.Create(tenant)
			w.becomes(tenant, repo.Active)
		}
		w.Existing("named", "d-named")
		w.Existing("left", "d-left")
		w.Existing("corrected", "d-right")
		w.Publish("tenant.created", `{"tenant_id":"named","name":"Named","dashboard_id":"d-named"}`)
		w.becomes("named", repo.Active)
		w.Publish("tenant.created", `{"tenant_id":"left","name":"Left","dashboard_id":"d-left"}`)
		w.becomes("left", repo.Active)
		w.Publish("tenant.suspended", `{"tenant_id":"left"}`)
		w.becomes("left", repo.Suspended)
		old := w.becomes("corrected", repo.Active).DashboardID
		w.act("/tenant/resolve",
			url.Values{"tenant": {"corrected"}, "dashboard": {"d-right"}, "replaces": {old}})

		time.Sleep(time.Minute) // the index is older than it may be
		w.get("/tenants")
		for query, want := range map[string]string{
			"dashboard=adopted": "1–2 of 2 tenants whose dashboard was adopted, as of",
			"dashboard=adopted&status=suspended": "1–1 of 1 tenant that is suspended " +
				"whose dashboard was adopted,",
			"dashboard=adopted&q=name": "1–1 of 1 tenant with “name” in id or name " +
				"whose dashboard was adopted,",
			"dashboard=replaced": "1–1 of 1 tenant whose dashboard was replaced, as of",
			"dashboard=replaced&q=made": "0 tenants with “made” in id or name " +
				"whose dashboard was replaced,",
		} {
			if got := text(w.get("/tenants?" + query).body); !strings.Contains(got, want) {
				t.Errorf("%s: no %q in %s", query, want, got)
			}
		}
		got := text(w.get("/tenants?dashboard=replaced").body)
		if !strings.Contains(got, "corrected") || !strings.Contains(got, "d-right replaced") {
			t.Errorf("replaced: %s", got)
		}
		if got := text(w.get("/tenant?id=named").body); !strings.Contains(got, "d-named (adopted)") {
			t.Errorf("the tenant's page: %s", got)
		}
		if got := w.ask("GET", "/tenants?dashboard=made", nil); got.status != http.StatusBadRequest {
			t.Errorf("an unknown origin: %d", got.status)
		}
	})
}

func TestPartsOfAListByDashboardAreLinked(t *testing.T) {
	l := (&tenants{Dashboard: "adopted", Query: "a b", Sort: "id"}).link(2, "name")
	if l != "/tenants?dashboard=adopted&page=2&q=a+b&sort=name" {
		t.Error(l)
	}
}

func TestSearchFindsTenantsBeyondTheIndexByTheBeginning(t *testing.T) {
	virtual(t, Config{Dev: true}, nil, func(t *testing.T, w *world) {
		x, err := readIndex(t.Context(), w.DB, time.Now())
		w.Must(err)
		x.whole = false // as if others had filled it
		for i, title := range []string{"Dashboard - Zeta Foods", "Dashboard - Acme"} {
			_, err := w.SQL.Exec(`INSERT INTO tenant_dashboards
				(tenant_id, workspace_id, title, status, stage, created_at, updated_at)
				VALUES (?, 'ws-a', ?, 'pending', 'pending', '2026-03-01T12:00:00.000Z',
					'2026-03-01T12:00:00.000Z')`, fmt.Sprint("beyond-", i), title)
			w.Must(err)
		}
		t.Cleanup(func() {
			_, err := w.SQL.Exec("DELETE FROM tenant_dashboards")
			w.Must(err)
		})
		for query, want := range map[string][]string{
			"zeta": {"beyond-0"}, "BEYOND-1": nil, "beyond-1": {"beyond-1"},
			"beyond": {"beyond-0", "beyond-1"}, "foods": nil,
		} {
			page := tenants{Query: query, Sort: "id", Page: 1}
			w.Must(page.find(&visit{Request: httptest.NewRequest(http.MethodGet, "/tenants", nil)}, w.DB, x))
			var got []string
			for _, m := range page.List {
				got = append(got, m.TenantID)
			}
			if !slices.Equal(got, want) || page.Total != len(want) {
				t.Errorf("%q finds %q, total %d; want %q", query, got, page.Total, want)
			}
		}
	})
}
