// Package failpoint kills or stops the process at named places, for the tests of crash safety.
//
// Only a build with -tags failpoints has them. In any other build Hit is empty and the compiler
// removes the call. PAPERMAP_FAILPOINT names a place, the action, and which hit of the place
// triggers it:
//
//	PAPERMAP_FAILPOINT=recorded=kill@3    SIGKILL, the third time that a result was committed
//	PAPERMAP_FAILPOINT=send=stop@1        SIGSTOP, the first time that a request is about to be sent
//
// A new place is a constant here, an entry in All, and a call between the two steps:
//
//	err := db.Finish(ctx, claim, dashboardID, status, event)
//	failpoint.Hit(failpoint.Recorded)
//
// Every package may import this one; it imports none of the project.
package failpoint

// The places. Each is between two steps, so that a process that dies there has done the first but
// not the second.
const (
	Begin         = "begin"          // a tenant.created was read, nothing is committed
	Claimed       = "claimed"        // mapping, claim and attempt are committed
	Send          = "send"           // the lease was checked, no byte is sent
	Sent          = "sent"           // the request is written, no answer is read
	Answered      = "answered"       // the answer is read, nothing of it is committed
	Commit        = "commit"         // the statements of a transaction have run, it is not committed
	Committed     = "committed"      // any transaction was committed
	Recorded      = "recorded"       // the result is committed, the event is not acknowledged
	Acked         = "acked"          // the event is acknowledged
	DeadStored    = "dead-stored"    // the dead letter is stored, the event is not terminated
	ChangeBegin   = "change-begin"   // a suspension, resumption or deletion was read, nothing is committed
	ChangeDone    = "change-done"    // it is committed, the event is not acknowledged
	OutboxRead    = "outbox-read"    // unsent events were read from the outbox
	OutboxSent    = "outbox-sent"    // they are published, not marked as sent
	UsagePage     = "usage-page"     // a page of usage was read
	UsageRecord   = "usage-record"   // pages are about to be committed
	UsageRecorded = "usage-recorded" // they are committed, with the checkpoint
	Migrated      = "migrated"       // one migration is applied, the next is not
	Draining      = "draining"       // the worker was asked to stop, or has then finished one event in flight
)

// All lists the places.
func All() []string {
	return []string{
		Begin, Claimed, Send, Sent, Answered, Commit, Committed, Recorded, Acked, DeadStored, ChangeBegin,
		ChangeDone,
		OutboxRead, OutboxSent, UsagePage, UsageRecord, UsageRecorded, Migrated, Draining,
	}
}
