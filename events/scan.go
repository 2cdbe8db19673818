package events

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// scan calls each for the messages of a stream that config selects, oldest first, until each returns
// false or the message that was the last one when the scan started.
func (b *Bus) scan(
	ctx context.Context, name string, config jetstream.ConsumerConfig, each func(Raw) bool,
) error {
	fail := func(err error) error { return fmt.Errorf("read stream %s: %w", name, b.withHint(err)) }
	js, release, err := b.readerInTurn(ctx)
	if err != nil {
		return fail(err)
	}
	defer release()
	stream, err := js.Stream(ctx, name)
	if err != nil {
		return fail(err)
	}
	s := scanner{b: b, nc: js.Conn(), last: stream.CachedInfo().State.LastSeq, each: each}
	config.AckPolicy, config.InactiveThreshold = jetstream.AckNonePolicy, time.Minute
	config.MemoryStorage, config.Replicas = true, 1
	for tries := 1; ; tries++ {
		before := s.reached
		err := s.read(ctx, stream, config)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fail(ctx.Err())
		case s.reached > before:
			tries = 0
		case s.reached == 0 || tries == maxScans:
			return fail(err)
		}
		if !Sleep(ctx, time.Second) {
			return fail(ctx.Err())
		}
		config.DeliverPolicy, config.OptStartSeq, config.OptStartTime =
			jetstream.DeliverByStartSequencePolicy, s.reached+1, nil
	}
}

const (
	maxScans  = 5   // attempts in a row that read nothing
	scanBatch = 256 // messages in a request, if their size allows
)

// scanner reads a stream to its end, with one consumer after another if messages get lost.
type scanner struct {
	b       *Bus
	nc      *nats.Conn
	last    uint64 // the sequence to stop at
	each    func(Raw) bool
	reached uint64
}

var errMissed = errors.New("a message was lost in transit")

// read reads with a new consumer.
func (s *scanner) read(ctx context.Context, stream jetstream.Stream, config jetstream.ConsumerConfig) error {
	consumer, err := stream.CreateConsumer(ctx, config)
	if err != nil {
		return err
	}
	info := consumer.CachedInfo()
	if info.NumPending == 0 {
		return nil
	}
	request := pullRequest{Batch: scanBatch, MaxBytes: s.b.readLimit()}
	for received, ended := uint64(0), false; ; { // of this consumer
		before := received
		var failed error
		err := s.b.pull(ctx, s.nc, info.Stream, info.Name, time.Second, request, func(msg *nats.Msg) bool {
			meta, err := msg.Metadata()
			if err != nil || meta.Sequence.Consumer != received+1 {
				failed = cmp.Or(err, errMissed)
				return false
			}
			raw, _, _ := s.b.raw(msg)
			received, s.reached = received+1, raw.Sequence
			ended = s.reached > s.last || !s.each(raw) || s.reached == s.last || meta.NumPending == 0
			return !ended
		})
		switch {
		case ended:
			return nil
		case err != nil || failed != nil:
			return cmp.Or(err, failed)
		case ctx.Err() != nil:
			return ctx.Err()
		case received > before:
			continue
		}
		// The remaining messages may have been deleted during the scan.
		now, err := consumer.Info(ctx)
		switch {
		case err != nil:
			return err
		case now.Delivered.Consumer > received:
			return errMissed
		case now.NumPending == 0:
			return nil
		}
	}
}
