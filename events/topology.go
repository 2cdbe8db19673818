package events

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// What the server, the two streams and the two consumers must look like. The worker makes and repairs
// them from it, and [Bus.Check], from which doctor reports, judges by the same functions.

// ackWait is how long the server waits for an acknowledgement: a killed worker's events are
// delivered again after it. An event in flight extends it three times as often.
const ackWait = 15 * time.Second

// oldestServer is the first version with consumers of several filter subjects, the newest feature
// used here: older servers ignore the filter.
var oldestServer = []int{2, 10, 0}

// checkVersion returns an error for a server that is too old. A version that cannot be parsed is
// accepted.
func checkVersion(version string) error {
	have := make([]int, 3)
	n, _ := fmt.Sscanf(strings.TrimPrefix(version, "v"), "%d.%d.%d", &have[0], &have[1], &have[2])
	if n < 2 || slices.Compare(have, oldestServer) >= 0 {
		return nil
	}
	return fmt.Errorf("the NATS server has version %s, and the worker needs %d.%d or newer: upgrade it",
		version, oldestServer[0], oldestServer[1])
}

// streamSpec is what a stream must look like.
type streamSpec struct {
	name     string
	subjects []string
	maxAge   time.Duration // 0: no limit
	replicas int
	dead     bool // the stream of dead letters
}

func (b *Bus) deadStream() string { return b.o.Stream + "_DEAD" }

func (b *Bus) streams() []streamSpec {
	return []streamSpec{
		{b.o.Stream, b.o.Subjects.all(), b.o.MaxAge, b.o.Replicas, false},
		{b.deadStream(), []string{b.o.Subjects.Dead(">")}, 0, b.o.Replicas, true},
	}
}

func (s streamSpec) config() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: s.name, Subjects: s.subjects, Replicas: s.replicas, MaxAge: s.maxAge,
		Retention: jetstream.LimitsPolicy, Storage: jetstream.FileStorage, Discard: jetstream.DiscardNew,
	}
}

// check compares a stream with what it must look like.
func (s streamSpec) check(is jetstream.StreamConfig) []Finding {
	var list []Finding
	add := func(wrong, fatal bool, fix, format string, args ...any) {
		if wrong {
			list = append(list, Finding{"stream " + s.name, fmt.Sprintf(format, args...), fix, fatal})
		}
	}
	for _, subject := range s.subjects {
		add(!coversSubject(is.Subjects, subject), true, "add the subject: nats stream edit "+s.name,
			"it does not take subject %s", subject)
	}
	for _, subject := range is.Subjects {
		add(!s.dead && !slices.Contains(s.subjects, subject), false,
			"a publish to a mistyped subject would not be refused; let it take the events' subjects alone",
			"it takes %s as well", subject)
	}
	add(is.Retention != jetstream.LimitsPolicy, true,
		"make it anew with limits: other retentions drop events that the other consumer has not seen",
		"its retention is %s", is.Retention)
	add(is.Storage != jetstream.FileStorage, false,
		"make it anew with file storage: a restart of the server loses what waits", "it is kept in memory")
	add(!s.dead && is.Discard != jetstream.DiscardNew, false,
		"set discard new: nats stream edit --discard new", "when it is full it drops old events")
	add(s.maxAge > 0 && is.MaxAge > 0 && is.MaxAge < s.maxAge, false,
		"an event that waits longer is lost: nats stream edit --max-age",
		"it keeps events for %v, and NATS_STREAM_MAX_AGE is %v", is.MaxAge, s.maxAge)
	add(s.maxAge == 0 && is.MaxAge > 0, false, "nats stream edit --max-age 0",
		"it keeps messages for %v only", is.MaxAge)
	add(is.Replicas != s.replicas, false, "nats stream edit --replicas, or change the setting",
		"it has %d replicas, and NATS_STREAM_REPLICAS is %d", is.Replicas, s.replicas)
	return list
}

// missing is the finding about a stream that does not exist and that the worker does not make.
func (s streamSpec) missing() Finding {
	return Finding{"stream " + s.name, "it does not exist, and NATS_MANAGE_STREAMS is false",
		"create it, or set NATS_MANAGE_STREAMS=true", true}
}

// EnsureStreams makes the two streams if they are missing. It returns an error when the server or a
// stream has a fatal [Finding].
func (b *Bus) EnsureStreams(ctx context.Context) error {
	if err := checkVersion(b.nc.ConnectedServerVersion()); err != nil {
		return err
	}
	b.ensuring.Lock() // both consumers ensure them
	defer b.ensuring.Unlock()
	for _, s := range b.streams() {
		if err := b.ensureStream(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

func (b *Bus) ensureStream(ctx context.Context, s streamSpec) error {
	stream, err := b.js.Stream(ctx, s.name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if !b.o.ManageStreams {
			return errors.New(s.missing().String())
		}
		if stream, err = b.js.CreateStream(ctx, s.config()); err != nil {
			return fmt.Errorf("create stream %s: %w", s.name, err)
		}
		b.log.Info("created a stream", "stream", s.name)
	}
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", s.name, err)
	}
	for _, f := range s.check(stream.CachedInfo().Config) {
		if f.Fatal {
			return errors.New(f.String())
		}
	}
	return nil
}

// consumerConfig is what a durable consumer must look like. BackOff stays empty: it would replace
// AckWait, and the delays are the worker's own.
func (b *Bus) consumerConfig(durable string) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Name:           durable,
		Durable:        durable,
		FilterSubjects: b.o.Subjects.of(TypesOf(durable)), // exact, or it would take the events out
		DeliverPolicy:  jetstream.DeliverAllPolicy,
		AckPolicy:      jetstream.AckExplicitPolicy,
		AckWait:        ackWait,
		MaxDeliver:     -1,  // a limit would drop events silently; failures are counted in the database
		MaxAckPending:  -1,  // events that wait for a retry count, and must not block others
		MaxWaiting:     512, // the server's default
	}
}

// changedSettings names the settings of a consumer that differ. Servers add to the metadata, and an
// operator may pause a consumer: those two may differ.
func changedSettings(is, want jetstream.ConsumerConfig) []string {
	var names []string
	a, b := reflect.ValueOf(is), reflect.ValueOf(want)
	for i := range a.NumField() {
		name, _, _ := strings.Cut(a.Type().Field(i).Tag.Get("json"), ",")
		if name != "metadata" && name != "pause_until" &&
			!reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			names = append(names, name)
		}
	}
	return names
}

// mayHaveSkipped reports whether a consumer with these settings may have passed over events that it
// is to deliver. The server would not deliver them after a repair: it must begin again.
func mayHaveSkipped(is, want jetstream.ConsumerConfig) bool {
	return is.MaxDeliver > 0 || slices.ContainsFunc(want.FilterSubjects, func(s string) bool {
		return !slices.Contains(is.FilterSubjects, s)
	})
}

// ensure makes the durable consumer, or restores its settings. One that may have skipped events
// begins again with the oldest in the stream: handlers must bear repetition anyway.
func (c *Consumer) ensure(ctx context.Context) (jetstream.Consumer, error) {
	stream, want := c.bus.o.Stream, c.bus.consumerConfig(c.Durable)
	old, err := c.bus.js.Consumer(ctx, stream, c.Durable)
	if err == nil && mayHaveSkipped(old.CachedInfo().Config, want) {
		if err := c.bus.js.DeleteConsumer(ctx, stream, c.Durable); err != nil {
			c.log.ErrorContext(ctx, "the consumer's settings were changed, so that it may have skipped "+
				"events, and it cannot be deleted: delete it, and it is recreated from the oldest event",
				"error", err)
		} else {
			c.log.WarnContext(ctx, "the consumer's settings were changed, so that it may have skipped "+
				"events; it begins again with the oldest")
		}
	}
	js, err := c.bus.js.CreateOrUpdateConsumer(ctx, stream, want)
	if err != nil {
		return nil, fmt.Errorf("create consumer %s: %w", c.Durable, err)
	}
	return js, nil
}
