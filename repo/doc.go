// Package repo stores the worker's state in SQL: which dashboard belongs to which tenant, every
// create request to Papermap, synced usage, and the events that wait to be published.
//
// # Use
//
//	db, err := repo.Open(ctx, "sqlite:papermap.db") // or postgres://…
//	if err != nil {
//		return err
//	}
//	defer db.Close()
//	if _, err := db.Migrate(ctx); err != nil {
//		return err
//	}
//	claim, err := db.Begin(ctx, created, false) // a tenant.created has arrived
//	if err != nil || claim.Step != repo.StepCreate {
//		return err
//	}
//	dashboard, err := client.CreateDashboard(ctx, …) // the one call that cannot be undone
//	if err != nil {
//		_, err = db.Fail(ctx, claim, failure, announce)
//		return err
//	}
//	_, err = db.Finish(ctx, claim, dashboard.ID, dashboard.Status, announce)
//	return err
//
// # What it promises
//
//   - A method that writes is one transaction. If it returns nil, everything is committed and on
//     disk. If it returns an error, nothing is. There is one exception: if PostgreSQL stays
//     unreachable for commitTimeout after a COMMIT, the outcome is unknown, and the error says so.
//   - The holder of a lease with an epoch provisions a tenant. The lease keeps other workers out
//     while the holder works. The epoch grows with every claim, and keeps a holder that was
//     suspended past its lease from finishing. See [DB.Begin], [DB.Finish] and [DB.Fail].
//   - An attempt is committed as "sent" before the first byte of its request is sent, so that no
//     create is forgotten.
//   - A tenant's status depends on the times of its events and not on their order or number:
//     deriveStatus and applyCreated in mapping.go are pure functions.
//   - A state change and its event are committed together. See [Announce] for how the event is
//     made, and [DB.NextUnsent] for how it is published.
//   - A usage row has a value that the API reported, and a run's checkpoint advances only together
//     with the rows before it. See [DB.RecordPages].
//
// What it does not promise: exactly one dashboard at Papermap (its create is not idempotent; see
// [DB.PossibleOrphans]), and that a reader sees a write of another process at once.
//
// # Two databases, one behaviour
//
// Every method does the same on both. The differences are in dialect.go, sqlite.go and postgres.go.
//
// # Sets
//
// Writes about tenants (Begin, Finish, Fail, Change, Resolve, Recreate and Adopt) and MarkSent
// share one transaction, a batch, if they wait at the same time (batch.go):
//
//	lock    one SELECT of all their mappings, FOR UPDATE, in the order of tenant ids
//	clock   read once the rows are locked: a lease never counts from before a wait
//	decide  by pure functions, job by job (decide.go); each sees what was decided before it
//	read    what decisions have asked for, with one SELECT for each kind, and decide again
//	write   at most one INSERT and one UPDATE for each table (sets.go), and COMMIT
//
// So a batch of 64 tenants takes as many statements as one tenant. On SQLite, which has one writer,
// there is one batch at a time. Other writes are part of it, each within a savepoint; reads have
// separate pools. On PostgreSQL a batch begins while the previous one is committed. Suspensions and
// operators' actions have separate batches; other writes are a transaction each.
//
// Batches of several replicas cannot deadlock. Locked rows are skipped, and each of those jobs
// waits for its row in its own transaction. A batch inserts rows in key order. If another
// transaction inserts a row first, the batch starts over and reads it.
//
// Times are stored in UTC to the millisecond. Leases use one clock: the process's on SQLite, which
// has one worker, and the server's on PostgreSQL. Times of events are Unix nanoseconds, because two
// events a microsecond apart must stay apart.
package repo
