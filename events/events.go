// Package events is everything that is NATS: which events there are and how they are read, the streams and
// consumers, dead letters, and the request-reply service.
//
// What it promises about events in:
//
//   - Decode is strict: whatever could be read in two ways is refused (duplicate names, names that differ by case,
//     invalid UTF-8, trailing data, null).
//   - A [Consumer] fetches only what it has free slots for, tells the server that an event is in hand as long as its
//     handler runs, and settles each event in one place: acknowledged after the handler's commit, offered again
//     after a delay, or kept as a dead letter and then terminated.
//   - Streams and consumers that are deleted or changed are built again.
//
// What it cannot promise: JetStream delivers at least once, and an acknowledgement is no fence (one from an expired
// delivery is accepted). Handlers must be safe to repeat, also at the same time on two workers.
//
// About request-reply: answers go only to reply subjects that are inboxes. A service that answers anywhere could be
// made to publish into streams or to the JetStream API.
package events
