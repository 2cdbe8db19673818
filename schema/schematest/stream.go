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

// CheckStream fails the test unless every event of the stream PAPERMAP, in or out, fits its schema. It
// skips events in that became dead letters, that the worker has not acknowledged yet, or that are older
// than the stream of dead letters: theirs may have been in one that was deleted.
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
	err := EachMessage(ctx, js, "PAPERMAP_DEAD", func(msg *jetstream.RawStreamMsg) error {
		if n, err := strconv.ParseUint(msg.Header.Get("Papermap-Stream-Sequence"), 10, 64); err == nil {
			dead[n] = true
		}
		return nil
	})
	if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return err
	}
	var since time.Time // when the stream of dead letters was created; zero if there is none
	if stream, err := js.Stream(ctx, "PAPERMAP_DEAD"); err == nil {
		since = stream.CachedInfo().Created
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
	err = EachMessage(ctx, js, "PAPERMAP", func(msg *jetstream.RawStreamMsg) error {
		eventType := strings.TrimPrefix(msg.Subject, "papermap.events.")
		in := strings.HasPrefix(eventType, "tenant.") || eventType == "usage.sync"
		if dead[msg.Sequence] || in && (msg.Sequence > acked[msg.Subject] || msg.Time.Before(since)) {
			return nil
		}
		if err := checkEvent(eventType, msg.Header, msg.Data); err != nil {
			wrong(fmt.Errorf("event %d, %s: %w\n%s", msg.Sequence, msg.Subject, err, msg.Data))
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
// error. It waits up to a minute while a cluster elects a leader. It reads message by message, because
// nats.go's consumers mistake one that has no data and a "Status" header for a status message from the
// server.
func EachMessage(
	ctx context.Context, js jetstream.JetStream, name string, do func(*jetstream.RawStreamMsg) error,
) error {
	fail := func(err error) error { return fmt.Errorf("reading stream %s: %w", name, err) }
	stream, err := js.Stream(ctx, name)
	if err != nil {
		return fail(err)
	}
	state, failures := stream.CachedInfo().State, 0
	for next := state.FirstSeq; next <= state.LastSeq; {
		msg, err := stream.GetMsg(ctx, next, jetstream.WithGetMsgSubject(">"))
		switch {
		case err == nil:
			next, failures = msg.Sequence+1, 0
		case errors.Is(err, jetstream.ErrMsgNotFound):
			return nil
		case ctx.Err() != nil || failures == 600:
			return fail(err)
		default:
			failures++
			time.Sleep(100 * time.Millisecond)
			continue
		}
		if err := do(msg); err != nil {
			return fail(err)
		}
	}
	return nil
}
