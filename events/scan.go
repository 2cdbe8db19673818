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
// false or the scan has passed the message that was the stream's last when it started.
func (b *Bus) scan(
	ctx context.Context, name string, config jetstream.ConsumerConfig, each func(Raw) bool,
) error {
	config.AckPolicy, config.MemoryStorage, config.Replicas = jetstream.AckNonePolicy, true, 1
	s := scanner{b: b, stream: name, config: config, each: each}
	for tries := 1; ; tries++ {
		before := s.reached
		err := s.read(ctx)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("read stream %s: %w", name, b.withHint(ctx.Err()))
		case s.reached > before:
			tries = 0
		case s.reached == 0 || tries == maxScans:
			return fmt.Errorf("read stream %s: %w", name, b.withHint(err))
		}
		Sleep(ctx, time.Second)
		s.config.DeliverPolicy = jetstream.DeliverByStartSequencePolicy
		s.config.OptStartSeq, s.config.OptStartTime = s.reached+1, nil
	}
}

const (
	maxScans  = 20              // attempts in a row that read nothing, after some that did
	scanBatch = 256             // messages in a request, if their size allows
	scanIdle  = 1 * time.Minute // how long a consumer that a scan left behind stays on the server
)

// scanner reads a stream to its end, with one consumer after another if messages or the connection
// get lost.
type scanner struct {
	b       *Bus
	stream  string
	config  jetstream.ConsumerConfig
	each    func(Raw) bool
	last    uint64 // the sequence to stop at
	reached uint64
}

var errMissed = errors.New("a message was lost in transit")

// read reads with a new consumer.
func (s *scanner) read(ctx context.Context) error {
	js, release, err := s.b.readerInTurn(ctx)
	if err != nil {
		return err
	}
	defer release()
	stream, err := js.Stream(ctx, s.stream)
	if err != nil {
		return err
	}
	if s.last == 0 {
		s.last = stream.CachedInfo().State.LastSeq
	}
	s.config.InactiveThreshold = scanIdle
	if limit := stream.CachedInfo().Config.ConsumerLimits.InactiveThreshold; limit > 0 {
		s.config.InactiveThreshold = min(scanIdle, limit)
	}
	consumer, err := stream.CreateConsumer(ctx, s.config)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = stream.DeleteConsumer(ctx, consumer.CachedInfo().Name) // else the server does
	}()
	if consumer.CachedInfo().NumPending == 0 {
		return nil
	}
	return s.readAll(ctx, js.Conn(), consumer)
}

// readAll reads what a new consumer delivers.
func (s *scanner) readAll(ctx context.Context, nc *nats.Conn, consumer jetstream.Consumer) error {
	info := consumer.CachedInfo()
	batch := pullRequest{Batch: limited(scanBatch, info.Config.MaxRequestBatch), MaxBytes: s.b.readLimit()}
	request := batch
	for received, ended := uint64(0), false; ; { // of this consumer
		before := received
		var failed error
		err := s.b.pull(ctx, nc, info.Stream, info.Name, time.Second, request, func(msg *nats.Msg) bool {
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
		request = batch
		switch {
		case ended:
			return nil
		case failed != nil:
			return failed
		case errors.Is(err, errMaxBytes):
			if received == before { // it was stored when the server's limit was higher
				request = pullRequest{Batch: 1}
			}
			continue
		case err != nil:
			return err
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

// limited returns n, or limit if that is lower. A limit of 0 means none.
func limited(n, limit int) int {
	if limit > 0 {
		return min(n, limit)
	}
	return n
}
