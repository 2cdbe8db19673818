package events

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/nats-io/nats.go/jetstream"
)

// The time between checks of the streams and the consumers.
const (
	checkEvery = 5 * time.Second // while events arrive
	// checkIdle applies while none arrive, and is also how long a pull waits. It is shorter than ackWait:
	// the server may deliver an event to the pull of a host that is gone, and that pull must have expired
	// before the redelivery.
	checkIdle = ackWait - time.Second
)

// supervisor is the state of the streams and the consumers. Both consumers of a process use the
// same supervisor.
type supervisor struct {
	turn chan struct{} // holds one element during a check; guards all other fields

	looked      time.Time             // when the newest look-up of the events stream began
	lookErr     error                 // of that look-up
	stream      *jetstream.StreamInfo // the newest that was seen; nil before the first
	incarnation uint64                // grows when the stream turns out to be another than before

	supervised time.Time // when streams and consumers were last correct; zero: not since an error
	err        error     // why nothing can be consumed
	consumers  map[string]jetstream.Consumer
	builtFor   uint64    // the incarnation in which the consumers were last correct
	lookAgain  time.Time // when to check the consumers again, if this user may not look them up
	imposed    map[string]imposed
	deadLimit  int      // max_msg_size of the dead-letter stream; 0: none
	reported   []string // the fatal findings that are in the log

	replies  []string  // prefixes of reply subjects that are answered, beside the default ones
	rightsOf uint64    // the connection whose rights were checked, counted from 1
	denied   []Finding // the permissions that its user lacks
	account  bool      // its user may ask for the account
}

// imposed are settings of a consumer that the server or the stream sets where the worker sets none.
type imposed struct {
	maxBatch int           // of a pull request
	inactive time.Duration // after which an unused consumer is deleted
}

// maxBatch returns how many events a pull may request; 0: any number.
func (b *Bus) maxBatch(consumer string) int {
	defer b.lockTopology()()
	return b.top.imposed[consumer].maxBatch
}

func (b *Bus) lockTopology() (unlock func()) {
	b.top.turn <- struct{}{}
	return func() { <-b.top.turn }
}

// incarnation looks up the events stream and returns its incarnation. Callers that ask during a
// look-up wait for the next one and share it, so that it began after each of them asked.
//
// A message belongs to the incarnation in which it was fetched. Sequences start over in a recreated
// stream, so an acknowledgement in another incarnation would apply to another message.
func (b *Bus) incarnation(ctx context.Context) (uint64, error) {
	asked := time.Now()
	defer b.lockTopology()()
	if !b.top.looked.After(asked) {
		b.look(ctx)
	}
	return b.top.incarnation, b.top.lookErr
}

// look finds out which events stream exists.
func (b *Bus) look(ctx context.Context) {
	t := &b.top
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTimeout)
	defer cancel()
	t.looked = time.Now()
	stream, err := b.js.Stream(ctx, b.o.Stream)
	if t.lookErr = err; err == nil {
		t.saw(stream.CachedInfo())
	}
}

// saw records the events stream that a look-up has found.
func (t *supervisor) saw(now *jetstream.StreamInfo) {
	if t.stream == nil || !sameStream(t.stream, now) {
		t.incarnation++
	}
	t.stream = now
}

// sameStream reports whether now is the same stream as before. A stream that was deleted and
// recreated has another creation time. One that was restored from a snapshot has the same, but its
// sequences go back, or its last message differs; so does a stream that lost its tail in a power
// cut.
func sameStream(before, now *jetstream.StreamInfo) bool {
	was, is := before.State, now.State
	return before.Created.Equal(now.Created) && is.LastSeq >= was.LastSeq && is.FirstSeq >= was.FirstSeq &&
		(is.LastSeq > was.LastSeq || is.Msgs == 0 || is.LastTime.Equal(was.LastTime))
}

// streamMayBeAnother begins a new incarnation: if a consumer vanishes while it is used, its stream
// was probably deleted. If it was not, the events in flight are only redelivered.
func (b *Bus) streamMayBeAnother() {
	defer b.lockTopology()()
	if t := &b.top; t.builtFor == t.incarnation { // else a new one is known already
		t.incarnation++
		t.builtFor, t.supervised = t.incarnation, time.Time{}
	}
}

// lookAgain makes the next supervise check everything, whatever its maxAge.
func (b *Bus) lookAgain() {
	defer b.lockTopology()()
	b.top.supervised = time.Time{}
}

// supervise creates missing streams and consumers, and restores the settings of consumers. It
// checks them only if the last check is older than maxAge, or the stream was recreated since. It
// returns the incarnation of the consumers' events.
func (b *Bus) supervise(ctx context.Context, maxAge time.Duration) (incarnation uint64, err error) {
	defer b.lockTopology()()
	t := &b.top
	if t.supervised.IsZero() || time.Since(t.supervised) >= maxAge || t.builtFor != t.incarnation {
		began := time.Now()
		t.supervised = time.Time{}
		if t.err = b.restoreTopology(ctx); t.err != nil {
			return 0, t.err
		}
		t.supervised = began
	}
	return t.incarnation, nil
}

// untilIdleCheck returns how long it is until an idle consumer is due to check again.
func (b *Bus) untilIdleCheck() time.Duration {
	defer b.lockTopology()()
	return time.Until(b.top.supervised.Add(checkIdle))
}

func (b *Bus) restoreTopology(ctx context.Context) error {
	t := &b.top
	if _, err := b.ensureStreams(ctx); err != nil {
		return err
	}
	// An acknowledgement may have been in flight when the stream was recreated. A consumer that
	// starts over redelivers whatever it removed.
	anew := t.builtFor != 0 && t.builtFor != t.incarnation
	if anew {
		b.log.WarnContext(ctx, "stream was recreated or restored; "+
			"events in flight are not acknowledged, and its consumers begin with its oldest event",
			"stream", b.o.Stream)
	}
	if t.consumers == nil {
		t.consumers = map[string]jetstream.Consumer{}
	}
	for _, name := range consumers {
		if t.consumers[name] != nil && !anew && time.Now().Before(t.lookAgain) {
			continue
		}
		c, err := b.ensureConsumer(ctx, name, anew)
		if err != nil {
			return err
		}
		t.consumers[name] = c
	}
	t.builtFor = t.incarnation
	return nil
}

// EnsureStreams creates the two streams if they are missing, and adds missing subjects. It returns
// an error if the server or a stream has a fatal [Finding].
func (b *Bus) EnsureStreams(ctx context.Context) error {
	defer b.lockTopology()()
	found, err := b.ensureStreams(ctx)
	if err == nil && len(found) > 0 {
		err = errors.New(found[0])
	}
	return err
}

// ensureStreams returns an error if a stream cannot be used. Fatal findings about a usable stream
// are logged and returned: leaving the events where they may be lost would not save them.
func (b *Bus) ensureStreams(ctx context.Context) (found []string, err error) {
	if err := checkVersion(b.nc.ConnectedServerVersion()); err != nil {
		return nil, err
	}
	for _, s := range b.streams() {
		began := time.Now()
		info, err := b.ensureStream(ctx, s)
		if err != nil {
			return nil, err
		}
		if s.dead {
			b.top.deadLimit = int(max(0, info.Config.MaxMsgSize))
		} else {
			b.top.looked, b.top.lookErr = began, nil
			b.top.saw(info)
		}
		for _, f := range s.check(info) {
			if f.Fatal {
				found = append(found, f.String())
			}
		}
	}
	b.report(found)
	return found, nil
}

// report logs the fatal findings once, and again when there are none left.
func (b *Bus) report(found []string) {
	for _, f := range found {
		if !slices.Contains(b.top.reported, f) {
			b.log.Error("stream is misconfigured", "finding", f)
		}
	}
	if len(found) == 0 && len(b.top.reported) > 0 {
		b.log.Info("streams are configured correctly")
	}
	b.top.reported = found
}

func (b *Bus) ensureStream(ctx context.Context, s streamSpec) (*jetstream.StreamInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, publishWait)
	defer cancel()
	stream, err := b.js.Stream(ctx, s.name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if !b.o.ManageStreams {
			return nil, errors.New(s.missing().String())
		}
		if stream, err = b.js.CreateStream(ctx, s.config()); err != nil {
			return nil, fmt.Errorf("create stream %s: %w", s.name, b.withHint(err))
		}
		b.log.Info("created a stream", "stream", s.name)
	}
	if err != nil {
		return nil, fmt.Errorf("look up stream %s: %w", s.name, err)
	}
	missing := s.missingSubjects(stream.CachedInfo().Config)
	if len(missing) == 0 || !b.o.ManageStreams {
		return stream.CachedInfo(), nil
	}
	if err := b.addSubjects(ctx, s.name, missing); err != nil {
		b.log.Warn("cannot add subjects to a stream", "stream", s.name, "subjects", missing, "error", err)
		return stream.CachedInfo(), nil // the findings say what is missing
	}
	b.log.Info("added subjects to a stream", "stream", s.name, "subjects", missing)
	return stream.Info(ctx)
}

// addSubjects changes nothing else of a stream: settings that this program does not know are sent
// back unchanged.
func (b *Bus) addSubjects(ctx context.Context, name string, subjects []string) error {
	var info struct {
		Config map[string]jsontext.Value `json:"config"`
	}
	reply, err := b.nc.RequestWithContext(ctx, b.api("STREAM.INFO."+name), nil)
	if err == nil {
		err = json.Unmarshal(reply.Data, &info)
	}
	if err != nil {
		return fmt.Errorf("read its settings: %w", err)
	}
	var all []string
	if err := json.Unmarshal(info.Config["subjects"], &all); err != nil {
		return fmt.Errorf("read its subjects: %w", err)
	}
	if info.Config["subjects"], err = json.Marshal(append(all, subjects...)); err != nil {
		return fmt.Errorf("encode its subjects: %w", err)
	}
	config, err := json.Marshal(info.Config)
	if err != nil {
		return fmt.Errorf("encode its settings: %w", err)
	}
	if reply, err = b.nc.RequestWithContext(ctx, b.api("STREAM.UPDATE."+name), config); err != nil {
		return fmt.Errorf("update it: %w", err)
	}
	var result struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(reply.Data, &result); err != nil {
		return fmt.Errorf("update it: %w", err)
	}
	if result.Error != nil {
		return fmt.Errorf("update it: %w", result.Error)
	}
	return nil
}

// ensureConsumer creates a durable consumer, or restores its settings. The consumer is deleted and
// created again, starting with the oldest event in the stream, if anew is set, if it may have
// skipped events, or if the server cannot update one of its settings. Handlers must be idempotent
// anyway. A paused consumer stays paused, because that is an operator's choice.
func (b *Bus) ensureConsumer(ctx context.Context, name string, anew bool) (jetstream.Consumer, error) {
	want := b.consumerConfig(name)
	already := b.top.imposed[name]
	old, err := b.lookUpConsumer(ctx, name)
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound):
		anew = false
	case errors.Is(err, jetstream.ErrNotPullConsumer):
		anew = true
	case err != nil && !anew: // probably the permission is missing
		b.top.lookAgain = time.Now().Add(time.Minute)
		if known := b.top.consumers[name]; known != nil {
			return known, nil
		}
	case err == nil:
		is := old.CachedInfo().Config
		as := want
		as.MaxRequestBatch, as.InactiveThreshold = already.maxBatch, already.inactive
		changed := changedSettings(is, as)
		want.PauseUntil = is.PauseUntil
		if len(changed) == 0 && !anew {
			return old, nil
		}
		anew = anew || mayHaveSkipped(is, want)
	}
	if anew {
		b.deleteConsumer(ctx, name)
	}
	c, err := b.js.CreateOrUpdateConsumer(ctx, b.o.Stream, want)
	if refused := (*jetstream.APIError)(nil); errors.As(err, &refused) && old != nil && !anew {
		b.deleteConsumer(ctx, name)
		c, err = b.js.CreateOrUpdateConsumer(ctx, b.o.Stream, want)
	}
	if err != nil {
		return nil, fmt.Errorf("create consumer %s: %w", name, b.withHint(err))
	}
	is := c.CachedInfo().Config
	if old != nil { // what the server or the stream has imposed again was not restored
		if restored := changedSettings(old.CachedInfo().Config, is); len(restored) > 0 {
			b.log.WarnContext(ctx, "the consumer's settings were changed; restored them",
				"consumer", name, "settings", strings.Join(restored, ", "))
		}
	}
	b.top.imposed[name] = imposed{is.MaxRequestBatch, is.InactiveThreshold}
	return c, nil
}

func (b *Bus) lookUpConsumer(ctx context.Context, name string) (jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	return b.js.Consumer(ctx, b.o.Stream, name)
}

func (b *Bus) deleteConsumer(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	switch err := b.js.DeleteConsumer(ctx, b.o.Stream, name); {
	case errors.Is(err, jetstream.ErrConsumerNotFound):
	case err != nil:
		b.log.ErrorContext(ctx, "the consumer may have skipped events, and it cannot be deleted: "+
			"delete it, and it is recreated from the oldest event", "consumer", name, "error", err)
	default:
		b.log.WarnContext(ctx, "deleted consumer; it will start from the oldest event",
			"consumer", name)
	}
}
