package schematest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// CheckStream fails the test unless every event of the stream PAPERMAP, in or out, fits its schema.
// Except events in that became dead letters, or that the worker has not acknowledged yet.
func CheckStream(t testing.TB, js jetstream.JetStream) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := checkStream(ctx, js, func(err error) { t.Error(err) }); err != nil {
		t.Errorf("read events to check them against their schemas: %v", err)
	}
}

func checkStream(ctx context.Context, js jetstream.JetStream, wrong func(error)) error {
	dead := map[uint64]bool{} // sequences in PAPERMAP
	err := EachMessage(ctx, js, "PAPERMAP_DEAD", func(msg jetstream.Msg, _ *jetstream.MsgMetadata) error {
		if n, err := strconv.ParseUint(msg.Headers().Get("Papermap-Stream-Sequence"), 10, 64); err == nil {
			dead[n] = true
		}
		return nil
	})
	if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return err
	}
	acked := map[string]uint64{} // by a consumer's subject: all sequences up to this one
	for _, name := range []string{"papermap-worker", "papermap-worker-access"} {
		c, err := js.Consumer(ctx, "PAPERMAP", name)
		if errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		for _, subject := range c.CachedInfo().Config.FilterSubjects {
			acked[subject] = c.CachedInfo().AckFloor.Stream
		}
	}
	err = EachMessage(ctx, js, "PAPERMAP", func(msg jetstream.Msg, meta *jetstream.MsgMetadata) error {
		sequence := meta.Sequence.Stream
		eventType := strings.TrimPrefix(msg.Subject(), "papermap.events.")
		in := strings.HasPrefix(eventType, "tenant.") || eventType == "usage.sync"
		if dead[sequence] || in && sequence > acked[msg.Subject()] {
			return nil
		}
		if err := checkEvent(eventType, msg.Headers(), msg.Data()); err != nil {
			wrong(fmt.Errorf("event %d, %s: %w\n%s", sequence, msg.Subject(), err, msg.Data()))
		}
		return nil
	})
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil
	}
	return err
}

// checkEvent checks an event in any of its forms.
func checkEvent(eventType string, header map[string][]string, data []byte) error {
	var envelope struct {
		SpecVersion json.RawMessage `json:"specversion"`
		Data        json.RawMessage `json:"data"`
	}
	_ = json.Unmarshal(data, &envelope) // what is not an object fits no schema
	structured, binary := envelope.SpecVersion != nil, false
	for name, values := range header {
		switch strings.ToLower(name) {
		case "ce-specversion":
			binary = true
		case "content-type":
			mediaType := strings.ToLower(values[0])
			structured = structured || strings.HasPrefix(mediaType, "application/cloudevents")
		}
	}
	if !structured || binary {
		return Check(eventType, data)
	}
	if err := Check("cloudevent", data); err != nil {
		return err
	}
	return Check(eventType, envelope.Data)
}

// EachMessage calls do for each message that a stream has now, oldest first, until it returns an
// error. It waits while a cluster elects a leader.
func EachMessage(ctx context.Context, js jetstream.JetStream, name string,
	do func(jetstream.Msg, *jetstream.MsgMetadata) error) error {
	fail := func(err error) error { return fmt.Errorf("reading stream %s: %w", name, err) }
	stream, err := js.Stream(ctx, name)
	if err != nil {
		return fail(err)
	}
	if stream.CachedInfo().State.Msgs == 0 {
		return nil
	}
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return fail(err)
	}
	// After 5 s of silence the ordered consumer is recreated.
	messages, err := consumer.Messages(jetstream.PullExpiry(5 * time.Second))
	if err != nil {
		return fail(err)
	}
	defer messages.Stop()
	for {
		msg, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return fail(err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			return fail(err)
		}
		if err := do(msg, meta); err != nil {
			return fail(err)
		}
		if meta.NumPending == 0 {
			return nil
		}
	}
}
