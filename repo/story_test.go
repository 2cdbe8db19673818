package repo

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"testing"
)

func TestATenantsNewestEventsOutAreReadOldestFirstSentOrNot(t *testing.T) {
	onBoth(t, func(t *testing.T) {
		db := openTest(t)
		err := db.update(ctx, func(ctx context.Context, x *tx) error {
			for i := range 6 {
				n := Notice{EventID: fmt.Sprint("event-", i), Type: "dashboard.created", Data: []byte(`{}`)}
				if err := x.notify(ctx, fmt.Sprint("tenant-", i%2), n); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		first, err := db.Unsent(ctx, 2)
		if err != nil {
			t.Fatal(err)
		}
		if err := db.MarkSent(ctx, []int64{first[1].ID}); err != nil {
			t.Fatal(err)
		}
		for limit, want := range map[int][]string{10: {"event-1 sent", "event-3", "event-5"}, 2: {"event-3", "event-5"}} {
			list, err := db.EventsOut(ctx, "tenant-1", limit)
			var got []string
			for _, e := range list {
				if got = append(got, e.EventID); !e.SentAt.IsZero() {
					got[len(got)-1] += " sent"
				}
			}
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("at most %d: %v, %v, want %v", limit, got, err, want)
			}
		}
	})
}

func TestTheEngineIsNamedWithItsVersion(t *testing.T) {
	onBoth(t, func(t *testing.T) {
		if name, err := openTest(t).Engine(ctx); err != nil || !regexp.MustCompile(`^(SQLite 3\.|PostgreSQL 1)\d`).MatchString(name) {
			t.Errorf("%q, %v", name, err)
		}
	})
}
