package events

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"
)

// Options says which NATS server to use and how. Empty credentials mean none; the server decides
// which it requires.
type Options struct {
	URL         string // several servers separated by commas; tried in random order
	Credentials string // path of a .creds file
	NKey        string // path of an nkey seed
	User        string
	Password    string
	TLSCA       string // paths of PEM files
	TLSCert     string
	TLSKey      string
	InboxPrefix string // of this connection's inboxes; empty means _INBOX

	Domain string // of JetStream; empty: the server's own

	Subjects      Subjects
	Stream        string        // dead letters are kept in the stream of this name and _DEAD
	ManageStreams bool          // create streams that are missing, and add missing subjects
	Replicas      int           // of the streams, in a cluster
	MaxBytes      int64         // of each stream that is created; 0: no limit
	MaxAge        time.Duration // after which the stream drops an event, handled or not; dead letters stay

	Operate bool // REST or console are on: what they do for an operator is checked as well

	Wait bool   // keep trying when the server cannot be reached yet, instead of returning an error
	Name string // of the connection, as the server shows it to an operator

	// InProcess, if set, makes the connections instead of dialing URL: to an embedded server, in
	// tests in virtual time.
	InProcess nats.InProcessConnProvider

	Tracer trace.Tracer // nil: no spans, and no trace in messages
}

// publishWait is how long each of several concurrent publishes waits for the stream's
// acknowledgement.
const publishWait = 10 * time.Second

// Bus holds the connections to NATS and the worker's streams. It is safe for concurrent use.
type Bus struct {
	o    Options
	nc   *connection // of the events
	js   jetstream.JetStream
	log  *slog.Logger
	slow *rate.Limiter // of log lines about requests that were dropped

	reading reading

	unanswerable atomic.Int64 // requests with a reply subject that is not answered

	top supervisor

	mu      sync.Mutex
	lastErr error           // the last reason for having no connection
	denials map[string]bool // errors of permissions that are in the log

	requests []*connection // of running services
}

// Connect connects to NATS. With o.Wait it returns at once and connects when the server is there.
func Connect(o Options, log *slog.Logger) (*Bus, error) {
	b := &Bus{
		o: o, log: log, slow: rate.NewLimiter(rate.Every(10*time.Second), 1),
		top:     supervisor{turn: make(chan struct{}, 1), imposed: map[string]imposed{}},
		denials: map[string]bool{},
		reading: reading{turn: make(chan struct{}, 1), slots: make(chan struct{}, readers)},
	}
	failed := make(chan error, 1) // the first failure to connect
	var err error
	if b.nc, err = b.dial(forEvents, failed); err != nil {
		return nil, err
	}
	if o.Wait && !b.nc.IsConnected() {
		select {
		case err := <-failed: // LastError may have been cleared for the next try
			log.Warn("NATS cannot be reached yet; waiting for it", "error", b.reason(err))
		case <-time.After(time.Second): // the connection was made, and lost just now
		}
	}
	if b.js, err = b.jetStream(b.nc); err != nil {
		return nil, err
	}
	return b, nil
}

// api returns the subject of a call of JetStream's API.
func (b *Bus) api(call string) string {
	if b.o.Domain != "" {
		return "$JS." + b.o.Domain + ".API." + call
	}
	return "$JS.API." + call
}

// handlers log what happens to a connection, and report its end and its first failure.
func (b *Bus) handlers(purpose string, closed chan struct{}, failed chan<- error) []nats.Option {
	log := b.log.With("connection", purpose)
	return []nats.Option{
		nats.ConnectHandler(func(nc *nats.Conn) {
			if b.o.Wait && purpose != forReading { // not worth a line for one command
				log.Info("connected to NATS", "server_version", nc.ConnectedServerVersion())
			}
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil && purpose != forReading { // whose reader has the error
				log.Warn("lost the connection to NATS; reconnecting", "error", b.reason(err))
			}
		}),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) {
			select {
			case failed <- err:
			default: // the first is enough
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { log.Info("connected to NATS again") }),
		nats.ClosedHandler(func(*nats.Conn) { close(closed) }),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrSlowConsumer) && !b.slow.Allow() {
				return // in a flood it comes with every request that is dropped
			}
			if errors.Is(err, nats.ErrPermissionViolation) &&
				(strings.Contains(err.Error(), replyCheck) ||
					strings.Contains(err.Error(), strconv.Quote(b.api("INFO"))) || b.wasLogged(err)) {
				return
			}
			attrs := []any{"error", err}
			if sub != nil {
				attrs = append(attrs, "subject", sub.Subject)
			}
			log.Warn("NATS reported an error", attrs...)
		}),
	}
}

// credentials are the options of the connection that may be left out.
func (o Options) credentials() (options []nats.Option, err error) {
	for _, optional := range []struct {
		given  bool
		option nats.Option
	}{
		{o.InProcess != nil, nats.InProcessServer(o.InProcess)},
		{o.Credentials != "", nats.UserCredentials(o.Credentials)},
		{o.User != "", nats.UserInfo(o.User, o.Password)},
		{o.TLSCA != "", nats.RootCAs(o.TLSCA)},
		{o.TLSCert != "", nats.ClientCert(o.TLSCert, o.TLSKey)},
		{o.InboxPrefix != "", nats.CustomInboxPrefix(o.InboxPrefix)},
	} {
		if optional.given {
			options = append(options, optional.option)
		}
	}
	if o.NKey != "" {
		key, err := nats.NkeyOptionFromSeed(o.NKey)
		if err != nil {
			return nil, fmt.Errorf("read the nkey seed: %w", err)
		}
		options = append(options, key)
	}
	return options, nil
}

// reason keeps err and returns it, or the one kept before: nats.go clears its last error before
// each attempt.
func (b *Bus) reason(err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	// nats.go spells some errors in two ways.
	if err != nil && (b.lastErr == nil || !strings.EqualFold(err.Error(), b.lastErr.Error())) {
		b.lastErr = err
	}
	return b.lastErr
}

// wasLogged reports whether an error of permissions was logged before: it recurs with every
// attempt.
func (b *Bus) wasLogged(err error) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.denials[err.Error()] {
		return true
	}
	if len(b.denials) < 1000 {
		b.denials[err.Error()] = true
		return false
	}
	return !b.slow.Allow()
}

// Close sends buffered messages, waits for running callbacks and closes the connections. If ctx
// ends first, it closes them at once.
func (b *Bus) Close(ctx context.Context) {
	b.reading.end()
	b.mu.Lock()
	requests := slices.Clone(b.requests)
	b.mu.Unlock()
	b.drop(ctx, append(requests, b.nc)...)
}

// Request sends a request to one of the worker's endpoints and returns the reply. A reply that is an
// error is returned as a *ServiceError.
//
//	reply, err := bus.Request(ctx, "embed-token", []byte(`{"tenant_id":"org-123"}`))
func (b *Bus) Request(ctx context.Context, endpoint string, data []byte) ([]byte, error) {
	ctx, msg, span := b.startRequest(ctx, endpoint, data)
	defer span.End()
	reply, err := b.nc.RequestMsgWithContext(ctx, msg)
	failSpan(span, err)
	if errors.Is(err, nats.ErrNoResponders) {
		return nil, fmt.Errorf("request %s: no worker answers there: "+
			"is `papermap-worker serve` running on this NATS server?", endpoint)
	}
	if err != nil {
		return nil, fmt.Errorf("request %s: %w", endpoint, err)
	}
	data, err = readReply(reply)
	failSpan(span, err)
	return data, err
}

// Backlog is the number and age of the events that wait for a consumer.
type Backlog struct {
	Consumer                         string
	Pending, AckPending, Redelivered int
	Oldest                           time.Duration // age of the oldest unacknowledged event; 0: none
	MaxAge                           time.Duration // at which the stream drops it; 0: never
}

// Backlog returns what waits for each of the two consumers, and the number of dead letters.
func (b *Bus) Backlog(ctx context.Context) (list []Backlog, deadLetters int, err error) {
	fail := func(err error) ([]Backlog, int, error) {
		return nil, 0, fmt.Errorf("read the backlog: %w", b.withHint(err))
	}
	js, release, err := b.reader()
	if err != nil {
		return fail(err)
	}
	defer release()
	stream, err := js.Stream(ctx, b.o.Stream)
	if err != nil {
		return fail(err)
	}
	for _, name := range consumers {
		waits, err := b.backlogOf(ctx, stream, name)
		if err != nil {
			return fail(err)
		}
		list = append(list, waits)
	}
	dead, err := js.Stream(ctx, b.deadStream())
	if err != nil {
		return fail(err)
	}
	return list, int(dead.CachedInfo().State.Msgs), nil
}

func (b *Bus) backlogOf(ctx context.Context, stream jetstream.Stream, name string) (Backlog, error) {
	consumer, err := stream.Consumer(ctx, name)
	if err != nil {
		return Backlog{}, err
	}
	info := consumer.CachedInfo()
	waits := Backlog{
		Consumer: name, Pending: int(info.NumPending), AckPending: info.NumAckPending,
		Redelivered: info.NumRedelivered, MaxAge: stream.CachedInfo().Config.MaxAge,
	}
	if waits.Pending+waits.AckPending == 0 {
		return waits, nil
	}
	// The oldest is the first of the consumer's events behind the acknowledgement floor.
	for _, subject := range b.o.Subjects.of(TypesOf(name)) {
		oldest, err := stream.GetMsg(ctx, info.AckFloor.Stream+1, jetstream.WithGetMsgSubject(subject))
		if err == nil {
			waits.Oldest = max(waits.Oldest, info.TimeStamp.Sub(oldest.Time))
		} else if !errors.Is(err, jetstream.ErrMsgNotFound) {
			return waits, err
		}
	}
	return waits, nil
}

// AnnounceChange notifies the other replicas that a tenant's mapping has changed. Without it they
// would notice a few seconds later.
func (b *Bus) AnnounceChange(tenantID string) {
	if err := b.nc.Publish(b.o.Subjects.Changed(), []byte(tenantID)); err != nil {
		b.log.Debug("cannot announce a change to other replicas", "tenant_id", tenantID, "error", err)
	}
}

// OnChange calls do for each tenant whose mapping this or another replica has changed, until stop.
func (b *Bus) OnChange(do func(tenantID string)) (stop func(), err error) {
	sub, err := b.nc.Subscribe(b.o.Subjects.Changed(), func(m *nats.Msg) {
		defer logPanic(b.log, m.Subject)
		do(string(m.Data))
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe to changes: %w", err)
	}
	return func() { _ = sub.Unsubscribe() }, nil // it fails only without a connection
}

// logPanic, deferred in a callback of the client library, keeps a panic from ending the process.
func logPanic(log *slog.Logger, subject string) {
	if p := recover(); p != nil {
		log.Error("a callback panicked", "subject", subject, "panic", p, "stack", string(debug.Stack()))
	}
}

// Error codes of the server that the client library has no name for.
const (
	errHeaderTooLarge   = 10097
	errMaxBytesRequired = 10113 // by the account, for its streams
	errSubjectsOverlap  = 10065 // with those of another stream
)

// withHint adds to an error of JetStream what a person can do about it.
func (b *Bus) withHint(err error) error {
	var refused *jetstream.APIError
	switch {
	case errors.Is(err, jetstream.ErrNoStreamResponse):
		return fmt.Errorf("no stream captures this subject; is the worker running, "+
			"and is NATS_STREAM %s right? %w", b.o.Stream, err)
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled),
		errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return fmt.Errorf("start the NATS server with JetStream (-js): %w", err)
	case errors.As(err, &refused) && refused.ErrorCode == errMaxBytesRequired:
		return fmt.Errorf("%w: set NATS_STREAM_MAX_BYTES", err)
	case errors.Is(err, nats.ErrReconnectBufExceeded): // whose limit is none
		return cmp.Or(b.Connected(), err)
	case errors.Is(err, nats.ErrMaxPayload), errors.Is(err, jetstream.ErrStreamMessageExceedsMaximum),
		errors.As(err, &refused) && refused.ErrorCode == errHeaderTooLarge:
		return fmt.Errorf("%w (%w)", ErrTooLarge, err)
	}
	return err
}
