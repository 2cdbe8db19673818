package events

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"
)

// Options says which NATS server to use and how.
type Options struct {
	URL         string // several servers separated by commas
	Credentials string // path of a .creds file
	NKey        string // path of an nkey seed
	User        string
	Password    string
	TLSCA       string // paths of PEM files
	TLSCert     string
	TLSKey      string
	InboxPrefix string // of our own inboxes; empty means _INBOX

	Subjects      Subjects
	Stream        string // the dead letters' stream is the same with _DEAD behind it
	ManageStreams bool   // create streams that are missing
	Replicas      int
	MaxAge        time.Duration

	Wait bool // keep trying when the server cannot be reached yet, instead of returning an error
	Name string

	Tracer trace.Tracer // nil: no spans, and no trace in messages
}

// publishWait is how long one of many events that are published at once waits for the stream's acknowledgement.
const publishWait = 10 * time.Second

// Bus is a connection to NATS with the worker's streams.
type Bus struct {
	o      Options
	nc     *nats.Conn
	js     jetstream.JetStream
	log    *slog.Logger
	closed chan struct{}
	slow   *rate.Limiter // of log lines about requests that were dropped
	mu     sync.Mutex
	why    error // the last reason for having no connection

	ensuring sync.Mutex // held while streams are looked up and made
}

// Connect connects to NATS. With o.Wait it returns at once and connects when the server is there.
func Connect(o Options, log *slog.Logger) (*Bus, error) {
	b, failed := &Bus{o: o, log: log, closed: make(chan struct{}), slow: rate.NewLimiter(rate.Every(10*time.Second), 1)}, make(chan error, 1)
	options := []nats.Option{
		nats.Name(o.Name),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(time.Second),
		nats.IgnoreAuthErrorAbort(), // keys may be put right while we run
		nats.RetryOnFailedConnect(o.Wait),
		nats.ConnectHandler(func(nc *nats.Conn) {
			if o.Wait { // not worth a line for one command
				log.Info("connected to NATS", "server_version", nc.ConnectedServerVersion())
			}
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("lost the connection to NATS; reconnecting", "error", b.because(err))
			}
		}),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) {
			select {
			case failed <- err:
			default: // the first tells enough
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { log.Info("connected to NATS again") }),
		nats.ClosedHandler(func(*nats.Conn) { close(b.closed) }),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrSlowConsumer) && !b.slow.Allow() {
				return // in a flood it comes with every request that is dropped
			}
			attrs := []any{"error", err}
			if sub != nil {
				attrs = append(attrs, "subject", sub.Subject)
			}
			log.Warn("NATS reported an error", attrs...)
		}),
	}
	if o.Credentials != "" {
		options = append(options, nats.UserCredentials(o.Credentials))
	}
	if o.NKey != "" {
		key, err := nats.NkeyOptionFromSeed(o.NKey)
		if err != nil {
			return nil, fmt.Errorf("reading the nkey seed: %w", err)
		}
		options = append(options, key)
	}
	if o.User != "" {
		options = append(options, nats.UserInfo(o.User, o.Password))
	}
	if o.TLSCA != "" {
		options = append(options, nats.RootCAs(o.TLSCA))
	}
	if o.TLSCert != "" {
		options = append(options, nats.ClientCert(o.TLSCert, o.TLSKey))
	}
	if o.InboxPrefix != "" {
		options = append(options, nats.CustomInboxPrefix(o.InboxPrefix))
	}
	var err error
	if b.nc, err = nats.Connect(o.URL, options...); err != nil {
		return nil, fmt.Errorf("connecting to NATS (NATS_URL): %w", err)
	}
	if o.Wait && !b.nc.IsConnected() {
		select {
		case err := <-failed: // LastError may have been cleared for the next try
			log.Warn("NATS cannot be reached yet; waiting for it", "error", b.because(err))
		case <-time.After(time.Second): // the connection was made, and lost just now
		}
	}
	// Without an end, publishes that got no acknowledgement would add up to the most that may wait for one, and then stop all others.
	if b.js, err = jetstream.New(b.nc, jetstream.WithPublishAsyncTimeout(publishWait)); err != nil {
		return nil, fmt.Errorf("opening JetStream: %w", err)
	}
	return b, nil
}

// Connected returns nil while there is a connection, else why not.
func (b *Bus) Connected() error {
	if b.nc.IsConnected() {
		return nil
	}
	if why := b.because(b.nc.LastError()); why != nil {
		return fmt.Errorf("no connection to NATS: %w", why)
	}
	return errors.New("no connection to NATS")
}

// because keeps the reason and returns it, or the one kept before: nats.go clears its last error before each try.
func (b *Bus) because(err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil && (b.why == nil || !strings.EqualFold(err.Error(), b.why.Error())) { // it has two spellings of some
		b.why = err
	}
	return b.why
}

// Close sends what is buffered, waits for the callbacks under way and closes the connection, all within ctx.
func (b *Bus) Close(ctx context.Context) {
	if !b.nc.IsConnected() || b.nc.Drain() != nil {
		b.nc.Close()
	}
	select {
	case <-b.closed: // Drain returns before it has drained
	case <-ctx.Done():
		b.nc.Close()
	}
}

// oldestServer is the first with consumers of several filter subjects, the newest thing used here: older ones ignore the filter.
var oldestServer = []int{2, 10, 0}

// checkServer returns an error for a server that is too old. A version that cannot be read is taken as new enough.
func checkServer(version string) error {
	have := make([]int, 3)
	if n, _ := fmt.Sscanf(strings.TrimPrefix(version, "v"), "%d.%d.%d", &have[0], &have[1], &have[2]); n < 2 || slices.Compare(have, oldestServer) >= 0 {
		return nil
	}
	return fmt.Errorf("the NATS server has version %s, and the worker needs %d.%d or newer: upgrade it", version, oldestServer[0], oldestServer[1])
}

// EnsureStreams makes the two streams if they are missing and checks that they, and the server, can do what they must.
func (b *Bus) EnsureStreams(ctx context.Context) error {
	if err := checkServer(b.nc.ConnectedServerVersion()); err != nil {
		return err
	}
	b.ensuring.Lock() // both consumers ask for them
	defer b.ensuring.Unlock()
	if err := b.ensureStream(ctx, b.o.Stream, b.o.Subjects.all(), b.o.MaxAge); err != nil {
		return err
	}
	return b.ensureStream(ctx, b.deadStream(), []string{b.o.Subjects.Dead(">")}, 0)
}

func (b *Bus) deadStream() string { return b.o.Stream + "_DEAD" }

func (b *Bus) ensureStream(ctx context.Context, name string, subjects []string, maxAge time.Duration) error {
	stream, err := b.js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if !b.o.ManageStreams {
			return fmt.Errorf("stream %s does not exist: create it, or set NATS_MANAGE_STREAMS=true", name)
		}
		stream, err = b.js.CreateStream(ctx, jetstream.StreamConfig{
			Name: name, Subjects: subjects, Replicas: b.o.Replicas, MaxAge: maxAge,
			Retention: jetstream.LimitsPolicy, Storage: jetstream.FileStorage, Discard: jetstream.DiscardNew,
		})
		if err != nil {
			return fmt.Errorf("creating stream %s: %w", name, err)
		}
		b.log.Info("created a stream", "stream", name)
	}
	if err != nil {
		return fmt.Errorf("looking up stream %s: %w", name, err)
	}
	for _, s := range subjects {
		if !taken(stream.CachedInfo().Config.Subjects, s) {
			return fmt.Errorf("stream %s does not take subject %s: add it to the stream's subjects", name, s)
		}
	}
	return nil
}

// taken says whether one of the patterns takes every subject that subject stands for.
func taken(patterns []string, subject string) bool {
	want := strings.Split(subject, ".")
	for _, p := range patterns {
		have := strings.Split(p, ".")
		for i, token := range have {
			if token == ">" && len(want) > i {
				return true
			}
			if i >= len(want) || token != "*" && token != want[i] || token == "*" && want[i] == ">" {
				break
			}
			if i == len(have)-1 && len(have) == len(want) {
				return true
			}
		}
	}
	return false
}

// Request sends a request to one of the worker's endpoints. An answer that is an error comes back as a *ServiceError.
func (b *Bus) Request(ctx context.Context, endpoint string, data []byte) ([]byte, error) {
	ctx, msg, span := b.startRequest(ctx, endpoint, data)
	defer span.End()
	reply, err := b.nc.RequestMsgWithContext(ctx, msg)
	failSpan(span, err)
	if errors.Is(err, nats.ErrNoResponders) {
		return nil, fmt.Errorf("requesting %s: no worker answers there: is `papermap-worker serve` running on this NATS server?", endpoint)
	}
	if err != nil {
		return nil, fmt.Errorf("requesting %s: %w", endpoint, err)
	}
	data, err = readReply(reply)
	failSpan(span, err)
	return data, err
}

// Backlog is what waits for a consumer.
type Backlog struct {
	Consumer                         string
	Pending, AckPending, Redelivered int
	Oldest                           time.Duration // age of the oldest event that is not settled; 0 when there is none
	MaxAge                           time.Duration // at which the stream drops it; 0: never
}

// Backlog reads what waits for the two consumers, and how many dead letters there are.
func (b *Bus) Backlog(ctx context.Context) (list []Backlog, deadLetters int, err error) {
	fail := func(err error) ([]Backlog, int, error) {
		return nil, 0, fmt.Errorf("reading the backlog: %w", b.explain(err))
	}
	stream, err := b.js.Stream(ctx, b.o.Stream)
	if err != nil {
		return fail(err)
	}
	for _, c := range []struct {
		name  string
		types []string
	}{{MainConsumer, mainTypes}, {AccessConsumer, accessTypes}} {
		consumer, err := stream.Consumer(ctx, c.name)
		if err != nil {
			return fail(err)
		}
		info := consumer.CachedInfo()
		waits := Backlog{Consumer: c.name, Pending: int(info.NumPending), AckPending: info.NumAckPending, Redelivered: info.NumRedelivered, MaxAge: stream.CachedInfo().Config.MaxAge}
		if waits.Pending+waits.AckPending > 0 {
			// The consumer's first event behind the last that is settled is the oldest that is not.
			for _, subject := range b.o.Subjects.events(c.types) {
				oldest, err := stream.GetMsg(ctx, info.AckFloor.Stream+1, jetstream.WithGetMsgSubject(subject))
				if err == nil {
					waits.Oldest = max(waits.Oldest, info.TimeStamp.Sub(oldest.Time))
				} else if !errors.Is(err, jetstream.ErrMsgNotFound) {
					return fail(err)
				}
			}
		}
		list = append(list, waits)
	}
	dead, err := b.js.Stream(ctx, b.deadStream())
	if err != nil {
		return fail(err)
	}
	return list, int(dead.CachedInfo().State.Msgs), nil
}

// TellChanged tells the other replicas that a tenant's mapping has changed. They would find out by themselves, a little later.
func (b *Bus) TellChanged(tenantID string) {
	if err := b.nc.Publish(b.o.Subjects.Changed(), []byte(tenantID)); err != nil {
		b.log.Debug("cannot tell others of a change", "tenant_id", tenantID, "error", err)
	}
}

// OnChanged calls do for each tenant whose mapping another replica, or this one, has changed.
func (b *Bus) OnChanged(do func(tenantID string)) (stop func(), err error) {
	sub, err := b.nc.Subscribe(b.o.Subjects.Changed(), func(m *nats.Msg) { do(string(m.Data)) })
	if err != nil {
		return nil, fmt.Errorf("subscribing to changes: %w", err)
	}
	return func() { _ = sub.Unsubscribe() }, nil // it fails only without a connection
}

// explain says what a person can do about an error of JetStream.
func (b *Bus) explain(err error) error {
	switch {
	case errors.Is(err, jetstream.ErrNoStreamResponse):
		return fmt.Errorf("no stream takes it; is the worker running, and is NATS_STREAM %s right? %w", b.o.Stream, err)
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return fmt.Errorf("start the NATS server with JetStream (-js): %w", err)
	case errors.Is(err, nats.ErrMaxPayload), errors.Is(err, jetstream.ErrStreamMessageExceedsMaximum):
		return fmt.Errorf("%w (%w)", ErrTooLarge, err)
	}
	return err
}
