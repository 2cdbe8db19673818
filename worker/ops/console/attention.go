package console

import (
	"net/http"

	"papermap-worker/repo"
)

// attention is what waits for somebody's decision.
type attention struct {
	Held     []heldTenant
	MoreHeld bool
	Attempts []repo.UncertainAttempt
	More     int // attempts that are not shown
}

// heldTenant is a held tenant with the attempt that holds it.
type heldTenant struct {
	without
	Attempt repo.Attempt
}

const mostOpen = 200

func (k *Console) attention(rw http.ResponseWriter, v *visit) error {
	ctx := v.Context()
	a := attention{}
	held, err := k.withoutDashboard(ctx, repo.Held, "", perPage+1)
	if err != nil {
		return err
	}
	if a.MoreHeld = len(held) > perPage; a.MoreHeld {
		held = held[:perPage]
	}
	for _, t := range held {
		attempts, err := k.db.Attempts(ctx, t.TenantID)
		if err != nil {
			return err
		}
		h := heldTenant{without: t}
		for _, try := range attempts { // the newest that is open counts
			if try.Generation == t.Generation && (try.Outcome == repo.Uncertain || try.Outcome == repo.Orphaned) {
				h.Attempt = try
			}
		}
		a.Held = append(a.Held, h)
	}
	uncertain, err := k.db.UncertainAttempts(ctx)
	if err != nil {
		return err
	}
	for _, u := range uncertain {
		if u.Status == repo.Held {
			continue // above, with what to do
		}
		if len(a.Attempts) == mostOpen {
			a.More++
			continue
		}
		a.Attempts = append(a.Attempts, u)
	}
	return k.show(rw, v, "attention", "Attention", a)
}
