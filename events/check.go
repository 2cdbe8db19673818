package events

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Finding is the result of one check of the NATS server, a stream or a consumer.
type Finding struct {
	Check string // what was checked
	Found string
	Fix   string // what to do about it; empty when all is well
	Fatal bool   // the worker is not ready
}

// String is the finding in a line.
func (f Finding) String() string {
	if f.Fix == "" {
		return f.Check + ": " + f.Found
	}
	return f.Check + ": " + f.Found + ": " + f.Fix
}

// checkTimeout is how long a check waits for an answer: requests without permission get none.
const checkTimeout = 2 * time.Second

// Check is CheckTopology plus a check of other streams, which the worker's own user may lack the
// permission for. It changes nothing. replyPrefixes are those of [Bus.Serve].
func (b *Bus) Check(ctx context.Context, replyPrefixes []string) []Finding {
	b.setReplies(replyPrefixes)
	list := []Finding{b.checkServer()}
	account, ok := b.checkAccount(ctx)
	list = append(list, account...)
	if !ok {
		return list
	}
	return slices.Concat(list, b.checkStreams(ctx), b.checkOverlaps(ctx))
}

// CheckTopology checks that the server, the streams, the consumers and this user's permissions are
// what the worker needs. It changes nothing. A Finding without Fix reports that all is well.
func (b *Bus) CheckTopology(ctx context.Context) []Finding {
	list := []Finding{b.checkServer()}
	streams := b.checkStreams(ctx)
	unlock := b.lockTopology()
	mayAsk, problem := b.top.account, b.top.err
	unlock()
	if mayAsk {
		account, ok := b.checkAccount(ctx)
		list = append(list, account...)
		if !ok {
			return list
		}
	}
	list = append(list, streams...)
	var refused *jetstream.APIError
	if errors.As(problem, &refused) && refused.ErrorCode == errSubjectsOverlap {
		list = append(list, b.checkOverlaps(ctx)...)
	}
	isFatal := func(f Finding) bool { return f.Fatal }
	if problem != nil && !slices.ContainsFunc(list, isFatal) {
		list = append(list, Finding{"consumers", problem.Error(), "see the log", true})
	}
	return list
}

// checkStreams checks the streams, their consumers, and what this user may do.
func (b *Bus) checkStreams(ctx context.Context) []Finding {
	var list []Finding
	for _, s := range b.streams() {
		list = append(list, b.checkStream(ctx, s)...)
	}
	for _, name := range consumers {
		list = append(list, b.checkConsumer(ctx, name))
	}
	return append(list, b.checkRights(ctx)...)
}

func (b *Bus) checkServer() Finding {
	version := b.nc.ConnectedServerVersion()
	if err := checkVersion(version); err != nil {
		fix := fmt.Sprintf("upgrade it to %d.%d or newer", oldestServer[0], oldestServer[1])
		return Finding{"NATS server", err.Error(), fix, true}
	}
	found := fmt.Sprintf("version %s, messages up to %d bytes", version, b.nc.MaxPayload())
	return Finding{Check: "NATS server", Found: found}
}

// checkAccount returns false if there is no JetStream, and no Finding if the user has no permission
// to ask.
func (b *Bus) checkAccount(ctx context.Context) (list []Finding, ok bool) {
	const check = "JetStream"
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	account, err := b.js.AccountInfo(ctx)
	switch {
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled),
		errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount), errors.Is(err, nats.ErrNoResponders):
		return []Finding{{check, "it is not enabled for this account",
			"start the server with JetStream (-js), or enable it for the account; " +
				"or set NATS_JS_DOMAIN, if it is in another domain", true}}, false
	case err != nil:
		return nil, true
	}
	tiers := map[string]jetstream.Tier{"": account.Tier}
	maps.Copy(tiers, account.Tiers)
	for name, tier := range tiers {
		limits := tier.Limits
		if limits.MaxStore > 0 && tier.Store+minMessage > uint64(limits.MaxStore) {
			storage := strings.TrimSpace("the account's storage " + name)
			list = append(list, Finding{check, fmt.Sprintf("%s is full: %d of %d bytes", storage, tier.Store,
				limits.MaxStore), "raise the account's limit", true})
		}
		if limits.MaxBytesRequired && b.o.MaxBytes == 0 && b.o.ManageStreams {
			list = append(list, Finding{check, "the account requires max_bytes of its streams",
				"set NATS_STREAM_MAX_BYTES: without it, serve cannot make a stream that is missing", true})
		}
	}
	if len(list) == 0 {
		list = []Finding{{Check: check, Found: fmt.Sprintf("%d streams in this account", account.Streams)}}
	}
	return list, true
}

func (b *Bus) checkStream(ctx context.Context, s streamSpec) []Finding {
	check := "stream " + s.name
	asking, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	stream, err := b.js.Stream(asking, s.name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound) && !b.o.ManageStreams:
		return []Finding{s.missing()}
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return []Finding{b.checkCreate(ctx, check, "STREAM.CREATE."+s.name)}
	case err != nil:
		return []Finding{{check, err.Error(),
			"give the user the permissions of docs/nats; is NATS_STREAM right?", true}}
	}
	info := stream.CachedInfo()
	if list := s.check(info); len(list) > 0 {
		return list
	}
	found := fmt.Sprintf("%d messages, %d replicas", info.State.Msgs, info.Config.Replicas)
	return []Finding{{Check: check, Found: found}}
}

func (b *Bus) checkConsumer(ctx context.Context, name string) Finding {
	check := "consumer " + name
	asking, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	consumer, err := b.js.Consumer(asking, b.o.Stream, name)
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound), errors.Is(err, jetstream.ErrStreamNotFound):
		return b.checkCreate(ctx, check, "CONSUMER.CREATE."+b.o.Stream+"."+name)
	case errors.Is(err, jetstream.ErrNotPullConsumer):
		return Finding{check, "it is a push consumer",
			"restart the worker: it makes it again when it starts", false}
	case err != nil:
		return Finding{check, err.Error(), "give the user the permissions of docs/nats", true}
	}
	info := consumer.CachedInfo()
	if info.Paused {
		return Finding{check, fmt.Sprintf("it is paused for %v more: it delivers nothing",
			info.PauseRemaining.Round(time.Second)),
			"nats consumer resume " + b.o.Stream + " " + name, true}
	}
	want := b.consumerConfig(name) // the server or the stream may set what the worker leaves unset
	want.MaxRequestBatch, want.InactiveThreshold = info.Config.MaxRequestBatch, info.Config.InactiveThreshold
	if names := changedSettings(info.Config, want); len(names) > 0 {
		return Finding{check, "its settings were changed: " + strings.Join(names, ", "),
			"restart the worker: it restores them when it starts", false}
	}
	return Finding{Check: check, Found: fmt.Sprintf("%d events wait, %d are in flight or wait for a retry",
		info.NumPending, info.NumAckPending)}
}

// checkCreate checks the permission to create what does not exist. The request's body is empty, so
// that nothing is created.
func (b *Bus) checkCreate(ctx context.Context, check, api string) Finding {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if _, err := b.nc.RequestWithContext(ctx, b.api(api), nil); err != nil {
		return Finding{check, "it does not exist, and this user may not create it",
			"give it the permissions of docs/nats, or create it", true}
	}
	return Finding{Check: check, Found: "it does not exist yet: serve creates it"}
}

// checkOverlaps looks for streams that capture subjects of this program: they would store tokens,
// answer requests, or keep the worker's streams from being created.
func (b *Bus) checkOverlaps(ctx context.Context) []Finding {
	const check = "other streams"
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	var list []Finding
	streams := b.js.ListStreams(ctx)
	private := map[string]string{
		b.o.Subjects.RPC("embed-token"): "requests for tokens, and answers them with its own acknowledgement",
		b.o.Subjects.RPC("usage"):       "requests for usage, and answers them with its own acknowledgement",
		"_INBOX.x.y":                    "answers, with the tokens in them",
		b.o.Subjects.Changed():          "the workers' cache invalidations",
	}
	if b.o.InboxPrefix != "" {
		private[b.o.InboxPrefix+".x.y"] = "answers to the worker"
	}
	for info := range streams.Info() {
		name, subjects := info.Config.Name, info.Config.Subjects
		for _, subject := range append(b.o.Subjects.all(), b.o.Subjects.Dead("x")) {
			if name != b.o.Stream && name != b.deadStream() && coversSubject(subjects, subject) {
				found := fmt.Sprintf("stream %s takes %s, so %s cannot", name, subject, b.o.Stream)
				list = append(list, Finding{check, found,
					"take the subject out of that stream, or correct NATS_STREAM or SUBJECT_PREFIX", true})
				break
			}
		}
		for subject, what := range private {
			if coversSubject(subjects, subject) {
				found := fmt.Sprintf("stream %s (%s) keeps %s", name, strings.Join(subjects, " "), what)
				list = append(list, Finding{check, found, "take " + b.o.Subjects.Prefix +
					".> and inboxes out of its subjects, or change SUBJECT_PREFIX", true})
			}
		}
	}
	switch {
	case len(list) > 0:
		return list
	case streams.Err() != nil:
		return []Finding{{check, "this user may not list streams",
			"run doctor as the operator of docs/nats to find streams that overlap", false}}
	}
	return []Finding{{Check: check, Found: "none takes requests, answers or inboxes"}}
}
