package worker

import (
	"context"
	"log/slog"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// The time between checks for old rows: pruneEvery while there are some, growing to pruneIdle.
const (
	pruneEvery = time.Minute
	pruneIdle  = 16 * time.Minute
)

// prune deletes old rows until ctx ends. All replicas do so; one finds nothing left where another
// has deleted.
func prune(ctx context.Context, db *repo.DB, auditKept time.Duration, log *slog.Logger) {
	var warned logOnce
	for wait := pruneEvery; events.Sleep(ctx, wait); {
		deleted, err := db.Prune(ctx, auditKept)
		if ctx.Err() == nil && warned.begins(err != nil) {
			log.Warn("cannot prune the database", "error", err)
		}
		if wait = min(2*wait, pruneIdle); deleted > 0 || err != nil {
			wait = pruneEvery
		}
	}
}
