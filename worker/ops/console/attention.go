package console

import (
	"net/http"

	"papermap-worker/repo"
	"papermap-worker/worker"
)

// attention is what waits for an operator's decision.
type attention struct {
	Held     []heldTenant
	MoreHeld bool
	Attempts []repo.PossibleOrphan
	More     int // attempts that are not shown
}

// heldTenant is a held tenant with the attempt that holds it.
type heldTenant struct {
	without
	Attempt repo.Attempt
}

// Pages stay small, however much is in trouble.
const (
	maxHeld = 12
	maxOpen = 30
)

func (c *Console) attention(rw http.ResponseWriter, v *visit) error {
	ctx := v.Context()
	a := attention{}
	held, err := c.withoutDashboard(ctx, repo.Held, maxHeld+1)
	if err != nil {
		return err
	}
	if a.MoreHeld = len(held) > maxHeld; a.MoreHeld {
		held = held[:maxHeld]
	}
	for _, t := range held {
		h := heldTenant{without: t}
		for _, attempt := range (worker.Facts{Attempts: t.Attempts}).PossibleOrphans() { // the newest counts
			if attempt.Generation == t.Generation {
				h.Attempt = attempt
			}
		}
		a.Held = append(a.Held, h)
	}
	orphans, err := c.db.PossibleOrphans(ctx)
	if err != nil {
		return err
	}
	for _, u := range orphans {
		if u.Status == repo.Held {
			continue // above, with what to do
		}
		if len(a.Attempts) == maxOpen {
			a.More++
			continue
		}
		a.Attempts = append(a.Attempts, u)
	}
	return c.show(rw, v, "attention", "Attention", a)
}
