package worker

import (
	"context"
	"log/slog"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// pruneEvery is how often old rows are deleted.
const pruneEvery = time.Minute

// prune deletes old rows until ctx ends. All replicas do so; one finds nothing left where another
// has deleted.
func prune(ctx context.Context, db *repo.DB, auditKept time.Duration, log *slog.Logger) {
	var warned logOnce
	for events.Sleep(ctx, pruneEvery) {
		err := db.Prune(ctx, auditKept)
		if ctx.Err() == nil && warned.begins(err != nil) {
			log.Warn("cannot prune the database", "error", err)
		}
	}
}
