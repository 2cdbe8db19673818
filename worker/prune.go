package worker

import (
	"context"
	"log/slog"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// pruneEvery is how often rows are deleted whose time is over.
const pruneEvery = time.Minute

// prune deletes what need not be kept, until ctx ends. Replicas do so side by side: one finds
// nothing left where another was.
func prune(ctx context.Context, db *repo.DB, auditKept time.Duration, log *slog.Logger) {
	var warned logOnce
	for events.Sleep(ctx, pruneEvery) {
		err := db.Prune(ctx, auditKept)
		if ctx.Err() == nil && warned.begins(err != nil) {
			log.Warn("cannot prune the database", "error", err)
		}
	}
}
