// Package failpoint ends or stops the process at named places, for the tests that prove that nothing is lost then.
//
// Only a build with -tags failpoints has them: in any other Hit is empty, and the compiler leaves nothing of it. There
// PAPERMAP_FAILPOINT names a place, what happens at it, and at which hit of it:
//
//	PAPERMAP_FAILPOINT=recorded=kill@3    SIGKILL to ourselves, the third time that a result was committed
//	PAPERMAP_FAILPOINT=send=stop@1        SIGSTOP, the first time that a request is about to be sent
//
// Every room may import this package; it imports none.
package failpoint

// The places. Each is between two steps of which a dying process may have done the first and not the second.
const (
	Begin         = "begin"          // a tenant.created was read, nothing is committed
	Claimed       = "claimed"        // intent, claim and attempt are committed
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
	OutboxRead    = "outbox-read"    // events out were read
	OutboxSent    = "outbox-sent"    // they are published, not marked
	UsagePage     = "usage-page"     // a page was read
	UsageRecord   = "usage-record"   // pages are about to be committed
	UsageRecorded = "usage-recorded" // they are committed, with the checkpoint
	Migrated      = "migrated"       // one migration is applied, the next is not
	Draining      = "draining"       // the worker was asked to stop, or has then done one of the events in hand
)

// All lists the places.
func All() []string {
	return []string{
		Begin, Claimed, Send, Sent, Answered, Commit, Committed, Recorded, Acked, DeadStored, ChangeBegin, ChangeDone,
		OutboxRead, OutboxSent, UsagePage, UsageRecord, UsageRecorded, Migrated, Draining,
	}
}
