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
// [Types] is the table of event types: who publishes a type, which consumer handles it, how its data
// is decoded. [Decode] is strict: it refuses whatever could be read in two ways (duplicate names,
// names that differ by case, invalid UTF-8, trailing data, null).
//
// # Consuming
//
// A [Consumer] fetches only what it has free slots for, extends the acknowledgement deadline of an
// event for as long as its handler runs, and acknowledges in one place. The handler's error decides:
// nil acknowledges, after the handler's commit; [*Retry] delivers the event again after a delay;
// [*Permanent] stores a dead letter, and terminates the event only when the stream has that; any
// other error delivers the event again after [Delay]. Streams and consumers that are deleted or
// changed are made again. Nothing is acknowledged in a stream that is another than the one that the
// event was fetched from: sequences begin again there.
//
// It cannot promise exactly-once: JetStream delivers at least once, and an acknowledgement is no
// fence (the server accepts one from an expired delivery). Handlers must be safe to repeat, also
// concurrently on two workers.
//
// # Topology
//
// topology.go has what the streams and consumers must look like. The supervisor, which makes and
// repairs them, [Bus.CheckTopology], from which readiness reports, and [Bus.Check], from which doctor
// does, use the same functions.
//
// # Dead letters and replay
//
// A dead letter keeps the event's data and headers, its identity, and why it could not be handled.
// [Bus.Replay] publishes the event again with the identity and the time that it had; so does
// [Bus.Republish] for an event of the stream, after a database was restored.
//
// # Request-reply
//
// [Bus.Serve] runs a NATS micro service with a bounded pool of workers. It replies only to subjects
// that are inboxes: a service that replies anywhere can be made to publish into streams or to the
// JetStream API.
package events
