package console

import (
	"context"
	"fmt"
	"math/rand/v2"
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
			}
			all = append(all, row)
			_, err := w.SQL.Exec(`INSERT INTO tenant_dashboards
				(tenant_id, workspace_id, dashboard_id, title, status, stage, created_at, updated_at)
				VALUES (?, 'ws-a', ?, ?, ?, 'active', '2026-03-01T12:00:00.000Z', ?)`,
				row.TenantID, fmt.Sprint("d-", i), row.Title, row.Status,
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
			want := map[string]bool{}
			for _, r := range all {
				has := func(text string) bool {
					return strings.Contains(strings.ToLower(text), strings.ToLower(part))
				}
				if (has(r.TenantID) || has(shortName(r.Title))) && (status == "" || r.Status == status) {
					want[r.TenantID] = true
				}
			}
			for _, sort := range sorts {
				var got []string
				for skip := 0; ; skip += 64 {
					ids, total := x.find(part, status, sort, skip, 64)
					if total != len(want) {
						t.Fatalf("%q, %s: %d in all, want %d", part, status, total, len(want))
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
		ids, _ := x.find("", "", "changed", 0, 2)
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
	})
}
