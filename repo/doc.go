// Package repo keeps in SQL what the worker knows: which dashboard belongs to which tenant, every
// create request that was sent to Papermap, synced usage, and the events that wait to be published.
//
// # Use
//
//	db, err := repo.Open(ctx, "sqlite:papermap.db") // or postgres://user:password@host:5432/database
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
//   - A method that writes is one transaction: when it returns nil everything is committed and on
//     disk, when it returns an error nothing is. (Only if PostgreSQL stays away for longer than
//     commitTimeout after a COMMIT may the outcome be unknown; the error says so.)
//   - A tenant is provisioned by the holder of a lease with an epoch. The lease keeps other workers
//     out while the holder works; the epoch, which grows with every claim, keeps a holder that
//     slept through its lease from finishing. See [DB.Begin], [DB.Finish] and [DB.Fail].
//   - An attempt is committed as "sent" before the first byte of its request leaves, so that no
//     create is forgotten.
//   - What a tenant is follows from the times of its events and not from their order or their
//     number: deriveStatus and applyCreated in mapping.go are pure functions.
//   - A state change and its event are committed together. See [Announce] for how the event is
//     made, and [DB.Unsent] for how it leaves.
//   - A usage row holds a value that the API reported, and a run's checkpoint moves only together
//     with the rows before it. See [DB.RecordPages].
//
// What it does not promise: exactly one dashboard at Papermap (its create is not idempotent; see
// [DB.PossibleOrphans]), and that a reader sees a write of another process at once.
//
// # Two databases, one behaviour
//
// Every method does the same on both; what differs is in dialect.go, sqlite.go and postgres.go.
//
// # Sets
//
// Writes about tenants (Begin, Finish, Fail, Change, Resolve, Recreate and Adopt), and MarkSent, that
// wait at the same time share one transaction, a batch (batch.go):
//
//	lock    one SELECT of all their mappings, FOR UPDATE, in the order of tenant ids
//	clock   read once the rows are locked: a lease never counts from before a wait
//	decide  by pure functions, job by job (decide.go); each sees what was decided before it
//	read    what decisions have asked for, with one SELECT for each kind, and decide again
//	write   at most one INSERT and one UPDATE for each table (sets.go), and COMMIT
//
// So a batch of 64 tenants takes as many statements as one. On SQLite, which has one writer, there
// is one batch at a time, and other writes are part of it, each within a savepoint; reads have pools
// of their own. On PostgreSQL a batch begins while the one before it is committed; suspensions and
// what people do have batches of their own; other writes are a transaction each.
//
// Batches of several replicas cannot deadlock: rows that are locked are skipped, and each of those
// jobs waits for its row in a transaction of its own; what a batch inserts is in the order of keys.
// A row that appears meanwhile is no error: the batch begins again, and reads it.
//
// Times are kept in UTC to the millisecond. Leases go by one clock: the process's on SQLite, which
// has one worker, the server's on PostgreSQL. Times of events are Unix nanoseconds, because two
// events a microsecond apart must stay apart.
package repo
