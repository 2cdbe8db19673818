// Package events is the worker's NATS: the table of event types, their decoding, the streams and
// consumers, dead letters, replay, and the request-reply service.
//
// # Example
//
//	bus, err := events.Connect(events.Options{
//		URL: "nats://127.0.0.1:4222", Stream: "PAPERMAP", ManageStreams: true, Replicas: 1,
//		Subjects: events.Subjects{Prefix: "papermap"}, MaxAge: 720 * time.Hour,
//	}, slog.Default())
//	if err != nil {
//		return err
//	}
//	defer bus.Close(context.Background())
//	c := bus.MainConsumer(64, 25*time.Second) // slots, grace
//	c.Handle = func(ctx context.Context, e events.Event) error {
//		switch data := e.Data.(type) {
//		case events.TenantCreated:
//			return provision(ctx, data) // nil: acknowledged
//		default:
//			return &events.Permanent{Code: "UNKNOWN_TYPE", Err: errors.New("no handler")} // a dead letter
//		}
//	}
//	c.Run(ctx) // until ctx ends, then drains
//
// # Events
//
// [Types] is the table of event types: who publishes a type, which consumer handles it, how its
// data is decoded. [Decode] is strict: it refuses anything ambiguous (duplicate names, names that
// differ by case, invalid UTF-8, trailing data, null).
//
// # Consuming
//
// A [Consumer] fetches only as many events as it has free slots, extends the acknowledgement
// deadline of an event while its handler runs, and acknowledges in one place. The handler's error
// decides: nil acknowledges, after the handler's commit; [*Retry] redelivers the event after a
// delay; [*Permanent] stores a dead letter, and then terminates the event; any other error
// redelivers the event after [Delay]. Streams and consumers that are deleted or changed are created
// again or repaired. After a stream was recreated, events fetched before are not acknowledged,
// because its sequences start over.
//
// It cannot promise exactly-once: JetStream delivers at least once, and an acknowledgement is not a
// fence (the server accepts one from an expired delivery). Handlers must be idempotent, even if two
// workers run them concurrently.
//
// # Topology
//
// topology.go defines what the streams and consumers must look like. The supervisor, which creates
// and repairs them, [Bus.CheckTopology], which readiness uses, and [Bus.Check], which doctor uses,
// share its functions.
//
// # Dead letters and replay
//
// A dead letter keeps the event's data and headers, its identity, and the reason. [Bus.Replay]
// publishes the event again with its original identity and time. [Bus.Republish] does the same for
// an event of the stream, after a database was restored.
//
// # Request-reply
//
// [Bus.Serve] runs a NATS micro service with a bounded pool of workers. It replies only to inboxes:
// a service that replies to any subject could be tricked into publishing into streams or to the
// JetStream API.
package events
