package events

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Finding is what Diagnose found at one place.
type Finding struct {
	Check string // what was looked at
	Found string
	Do    string // what to do about it; empty when nothing is
	Fatal bool   // the worker could not work
}

// diagnoseTime is how long an answer is waited for: to what a user may not ask there is none.
const diagnoseTime = 2 * time.Second

// Diagnose looks at the server, the streams and the consumers as the worker needs them, and changes nothing.
func (b *Bus) Diagnose(ctx context.Context) []Finding {
	var list []Finding
	fine := func(check, format string, args ...any) {
		list = append(list, Finding{Check: check, Found: fmt.Sprintf(format, args...)})
	}
	wrong := func(fatal bool, check, found, do string) {
		list = append(list, Finding{check, found, do, fatal})
	}
	version := b.nc.ConnectedServerVersion()
	if err := checkServer(version); err != nil {
		wrong(true, "NATS server", err.Error(), fmt.Sprintf("upgrade it to %d.%d or newer", oldestServer[0], oldestServer[1]))
	} else {
		fine("NATS server", "version %s, messages up to %d bytes", version, b.nc.MaxPayload())
	}
	asking, cancel := context.WithTimeout(ctx, diagnoseTime)
	defer cancel()
	account, err := b.js.AccountInfo(asking)
	switch {
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount), errors.Is(err, nats.ErrNoResponders):
		wrong(true, "JetStream", "it is not enabled for this account", "start the server with JetStream (-js), or enable it for the account")
		return list
	case err == nil:
		fine("JetStream", "%d streams in this account", account.Streams)
	} // else the account may not be asked, which is not needed
	for _, s := range []struct {
		name     string
		subjects []string
		maxAge   time.Duration
	}{{b.o.Stream, b.o.Subjects.all(), b.o.MaxAge}, {b.deadStream(), []string{b.o.Subjects.Dead(">")}, 0}} {
		list = append(list, b.diagnoseStream(ctx, s.name, s.subjects, s.maxAge)...)
	}
	for name, types := range map[string][]string{MainConsumer: mainTypes, AccessConsumer: accessTypes} {
		list = append(list, b.diagnoseConsumer(ctx, name, types)...)
	}
	return append(list, b.diagnoseOverlaps(ctx)...)
}

func (b *Bus) diagnoseStream(ctx context.Context, name string, subjects []string, maxAge time.Duration) []Finding {
	check := "stream " + name
	asking, cancel := context.WithTimeout(ctx, diagnoseTime)
	defer cancel()
	stream, err := b.js.Stream(asking, name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound) && !b.o.ManageStreams:
		return []Finding{{check, "it does not exist, and NATS_MANAGE_STREAMS is false", "create it, or set NATS_MANAGE_STREAMS=true", true}}
	case errors.Is(err, jetstream.ErrStreamNotFound):
		if !b.mayAsk(ctx, "STREAM.CREATE."+name) {
			return []Finding{{check, "it does not exist, and this user may not create it", "give it the permissions of docs/nats, or create the stream", true}}
		}
		return []Finding{{Check: check, Found: "it does not exist yet: serve creates it"}}
	case err != nil:
		return []Finding{{check, err.Error(), "give the user the permissions of docs/nats; is NATS_STREAM right?", true}}
	}
	info := stream.CachedInfo()
	var list []Finding
	for _, s := range subjects {
		if !taken(info.Config.Subjects, s) {
			list = append(list, Finding{check, "it does not take subject " + s, "add the subject: nats stream edit " + name, true})
		}
	}
	for _, s := range info.Config.Subjects {
		if name == b.o.Stream && !slices.Contains(subjects, s) {
			list = append(list, Finding{check, fmt.Sprintf("it takes %s as well", s), "a publish to a mistyped subject would not be refused; let it take the events' subjects alone", false})
		}
	}
	for _, drift := range []struct {
		is    bool
		found string
		do    string
		fatal bool
	}{
		{info.Config.Retention != jetstream.LimitsPolicy, fmt.Sprintf("its retention is %s", info.Config.Retention), "make it anew with limits: other retentions drop events that the other consumer has not seen", true},
		{info.Config.Storage != jetstream.FileStorage, "it is kept in memory", "make it anew with file storage: a restart of the server loses what waits", false},
		{info.Config.Discard != jetstream.DiscardNew && name == b.o.Stream, "when it is full it drops old events", "set discard new: nats stream edit --discard new", false},
		{maxAge > 0 && info.Config.MaxAge > 0 && info.Config.MaxAge < maxAge, fmt.Sprintf("it keeps events for %v, and NATS_STREAM_MAX_AGE is %v", info.Config.MaxAge, maxAge), "an event that waits longer is lost: nats stream edit --max-age", false},
		{maxAge == 0 && info.Config.MaxAge > 0, fmt.Sprintf("it keeps dead letters for %v only", info.Config.MaxAge), "nats stream edit --max-age 0", false},
		{info.Config.Replicas != b.o.Replicas, fmt.Sprintf("it has %d replicas, and NATS_STREAM_REPLICAS is %d", info.Config.Replicas, b.o.Replicas), "nats stream edit --replicas, or change the setting", false},
	} {
		if drift.is {
			list = append(list, Finding{check, drift.found, drift.do, drift.fatal})
		}
	}
	if len(list) == 0 {
		list = append(list, Finding{Check: check, Found: fmt.Sprintf("%d messages, %d replicas", info.State.Msgs, info.Config.Replicas)})
	}
	return list
}

func (b *Bus) diagnoseConsumer(ctx context.Context, name string, types []string) []Finding {
	check := "consumer " + name
	asking, cancel := context.WithTimeout(ctx, diagnoseTime)
	defer cancel()
	consumer, err := b.js.Consumer(asking, b.o.Stream, name)
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound), errors.Is(err, jetstream.ErrStreamNotFound):
		if !b.mayAsk(ctx, "CONSUMER.CREATE."+b.o.Stream+"."+name) {
			return []Finding{{check, "it does not exist, and this user may not create it", "give it the permissions of docs/nats", true}}
		}
		return []Finding{{Check: check, Found: "it does not exist yet: serve creates it"}}
	case err != nil:
		return []Finding{{check, err.Error(), "give the user the permissions of docs/nats", true}}
	}
	info := consumer.CachedInfo()
	c := info.Config
	filters := c.FilterSubjects
	if c.FilterSubject != "" {
		filters = append(filters, c.FilterSubject)
	}
	want := b.o.Subjects.events(types)
	slices.Sort(filters)
	slices.Sort(want)
	if !slices.Equal(filters, want) || len(c.BackOff) > 0 || c.MaxDeliver > 0 || c.MaxAckPending > 0 || c.AckPolicy != jetstream.AckExplicitPolicy {
		return []Finding{{check, "somebody has changed it", "restart the worker: it puts the consumer right when it starts", false}}
	}
	return []Finding{{Check: check, Found: fmt.Sprintf("%d events wait, %d are in hand or wait for a retry", info.NumPending, info.NumAckPending)}}
}

// diagnoseOverlaps looks for streams that take what is not for them: they would keep tokens, answer requests, or keep ours from
// being made.
func (b *Bus) diagnoseOverlaps(ctx context.Context) []Finding {
	const check = "other streams"
	ctx, cancel := context.WithTimeout(ctx, diagnoseTime)
	defer cancel()
	var list []Finding
	streams := b.js.ListStreams(ctx)
	ours := map[string]string{
		b.o.Subjects.RPC("embed-token"): "requests for tokens, and answers them with its own acknowledgement",
		b.o.Subjects.RPC("usage"):       "requests for usage, and answers them with its own acknowledgement",
		"_INBOX.x.y":                    "answers, with the tokens in them",
		b.o.Subjects.Changed():          "what workers tell each other",
	}
	if b.o.InboxPrefix != "" {
		ours[b.o.InboxPrefix+".x.y"] = "answers to the worker"
	}
	for info := range streams.Info() {
		for _, subject := range append(b.o.Subjects.all(), b.o.Subjects.Dead("x")) {
			if name := info.Config.Name; name != b.o.Stream && name != b.deadStream() && taken(info.Config.Subjects, subject) {
				list = append(list, Finding{check, fmt.Sprintf("stream %s takes %s, so %s cannot", name, subject, b.o.Stream),
					"take the subject out of that stream, or correct NATS_STREAM or SUBJECT_PREFIX", true})
				break
			}
		}
		for subject, what := range ours {
			if taken(info.Config.Subjects, subject) {
				list = append(list, Finding{check, fmt.Sprintf("stream %s (%s) keeps %s", info.Config.Name, strings.Join(info.Config.Subjects, " "), what),
					"take " + b.o.Subjects.Prefix + ".> and inboxes out of its subjects, or change SUBJECT_PREFIX", true})
			}
		}
	}
	if err := streams.Err(); err != nil && len(list) == 0 {
		return []Finding{{check, "this user may not list streams", "run doctor as the operator of docs/nats to find streams that overlap", false}}
	}
	if len(list) == 0 {
		list = append(list, Finding{Check: check, Found: "none takes requests, answers or inboxes"})
	}
	return list
}

// mayAsk says whether JetStream answers a request. Its body is empty, so that nothing is done.
func (b *Bus) mayAsk(ctx context.Context, api string) bool {
	ctx, cancel := context.WithTimeout(ctx, diagnoseTime)
	defer cancel()
	_, err := b.nc.RequestWithContext(ctx, "$JS.API."+api, nil)
	return err == nil
}
