package events

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Headers of a dead letter, and of a replayed event.
const (
	headerEventID    = "Papermap-Event-Id"
	headerEventTime  = "Papermap-Event-Time"
	headerError      = "Papermap-Error"
	headerCode       = "Papermap-Error-Code"
	headerAttempts   = "Papermap-Attempts"
	headerSequence   = "Papermap-Stream-Sequence"
	headerSideEffect = "Papermap-Side-Effect"
	headerTruncated  = "Papermap-Data-Truncated"
	headerDropped    = "Papermap-Headers-Dropped"
	originalPrefix   = "Papermap-Original-"
)

// publishDead stores the dead letter of an event and returns when the stream has it. It does not
// stop when ctx ends, because a drain completes the events in flight.
func (b *Bus) publishDead(ctx context.Context, raw Raw, e Event, p *Permanent) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	raw.Header = tracedDead(ctx, raw.Header)
	added := headerSize(nats.Header{jetstream.ExpectedStreamHeader: {b.deadStream()}}) // by the publish
	msg := deadLetter(raw, e, p, b.deadLetterLimit()-added)
	msg.Subject = b.o.Subjects.Dead(raw.Type)
	_, err := b.js.PublishMsg(ctx, msg, jetstream.WithExpectStream(b.deadStream()))
	if errors.Is(err, jetstream.ErrStreamMessageExceedsMaximum) { // its limit was lowered just now
		b.lookAgain()
	}
	if err != nil {
		return fmt.Errorf("publish a dead letter: %w", b.withHint(err))
	}
	return nil
}

// deadLetterLimit is the size of the largest message, with its headers, that the server and the
// dead-letter stream accept.
func (b *Bus) deadLetterLimit() int {
	limit := int(b.nc.MaxPayload())
	defer b.lockTopology()()
	if b.top.deadLimit > 0 {
		limit = min(limit, b.top.deadLimit)
	}
	return limit
}

const (
	maxHeaders = 64<<10 - 1 // that JetStream stores, in bytes
	maxReason  = 500        // code points of an error in a header, and of a reason
)

// deadLetter returns the message that keeps an event that cannot be handled, at most limit bytes
// with its headers. What does not fit is cut: first the data, then the event's headers, and last
// the reason.
func deadLetter(raw Raw, e Event, p *Permanent, limit int) *nats.Msg {
	own := nats.Header{
		jetstream.MsgIDHeader: {"dead-" + e.Message},
		headerEventID:         {e.ID},
		headerEventTime:       {e.Time.UTC().Format(time.RFC3339Nano)},
		headerError:           {oneLine(p.Error(), maxReason)},
		headerCode:            {p.Code},
		headerAttempts:        {strconv.Itoa(max(1, p.Attempts))},
		headerSequence:        {strconv.FormatUint(raw.Sequence, 10)},
		headerSideEffect:      {cmp.Or(p.SideEffect, "none")},
	}
	msg := &nats.Msg{Header: nats.Header{}, Data: raw.Data}
	for name, values := range raw.Header {
		isOwn := func(own string) bool { return strings.EqualFold(own, name) }
		switch {
		case hasPrefixFold(name, "nats-"), // the server would act on it: rollup, time to live
			// Clients would mistake it for a status message from the server; see Bus.pull.
			len(raw.Data) == 0 && strings.EqualFold(name, "Status"):
			msg.Header[originalPrefix+name] = values
		case !isOwn(headerTruncated) && !slices.ContainsFunc(slices.Collect(maps.Keys(own)), isOwn):
			msg.Header[name] = values
		}
	}
	const room = 128 // for headerTruncated and headerDropped
	if headerSize(msg.Header)+headerSize(own)+room > min(limit/2, maxHeaders) {
		own.Set(headerDropped, strconv.Itoa(len(msg.Header)))
		msg.Header = nats.Header{}
		for reason := maxReason / 2; reason > 0 && headerSize(own)+room > limit; reason /= 2 {
			own.Set(headerError, oneLine(p.Error(), reason))
		}
	}
	maps.Copy(msg.Header, own)
	if rest := limit - headerSize(msg.Header) - room; len(msg.Data) > rest {
		msg.Header.Set(headerTruncated, fmt.Sprintf("%d %x", len(raw.Data), sha256.Sum256(raw.Data)))
		msg.Data = msg.Data[:max(0, rest)]
	}
	return msg
}

func hasPrefixFold(name, lowerPrefix string) bool {
	return strings.HasPrefix(strings.ToLower(name), lowerPrefix)
}

// headerSize is the length of the headers on the wire, in bytes.
func headerSize(h nats.Header) int {
	size := len("NATS/1.0\r\n\r\n")
	for name, values := range h {
		for _, v := range values {
			size += len(name) + len(v) + len(": \r\n")
		}
	}
	return size
}

// oneLine makes text fit for a header: no control characters, at most limit code points.
func oneLine(text string, limit int) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "�"))
	return firstOf(text, limit)
}

// firstOf is the text, or as much of it as fits into limit code points with an ellipsis.
func firstOf(text string, limit int) string {
	if utf8.RuneCountInString(text) > limit {
		text = string([]rune(text)[:limit-1]) + "…"
	}
	return text
}

// DeadLetter is a stored event that could not be handled.
type DeadLetter struct {
	Sequence       uint64      `json:"sequence"` // in the stream of dead letters
	Type           string      `json:"type"`
	TenantID       string      `json:"tenant_id,omitempty"` // as far as the data can be read
	EventID        string      `json:"event_id"`
	EventTime      string      `json:"event_time"`
	Time           time.Time   `json:"time"` // when it became a dead letter
	Code           string      `json:"code"`
	Error          string      `json:"error"`
	Attempts       int         `json:"attempts"`
	SideEffect     string      `json:"side_effect"`
	StreamSequence uint64      `json:"stream_sequence"`     // of the event
	Truncated      string      `json:"truncated,omitempty"` // length and SHA-256 of data that did not fit
	Header         nats.Header `json:"header"`
	Data           []byte      `json:"data"`
}

func newDeadLetter(r Raw) DeadLetter {
	h := r.Header
	d := DeadLetter{
		Sequence: r.Sequence, Type: r.Type, TenantID: tenantOf(r.Data), Time: r.Time, Header: h, Data: r.Data,
		EventID: h.Get(headerEventID), EventTime: h.Get(headerEventTime), Code: h.Get(headerCode),
		Error: h.Get(headerError), SideEffect: h.Get(headerSideEffect), Truncated: h.Get(headerTruncated),
	}
	d.Attempts, _ = strconv.Atoi(h.Get(headerAttempts)) // 0 if it was not written by publishDead
	d.StreamSequence, _ = strconv.ParseUint(h.Get(headerSequence), 10, 64)
	return d
}

// tenantOf finds the tenant in arbitrary data; empty if there is none. The data may be the reason
// for the dead letter.
func tenantOf(data []byte) string {
	var tenantID struct {
		ID   jsontext.Value `json:"tenant_id"`
		Data struct {
			ID jsontext.Value `json:"tenant_id"`
		} `json:"data"`
	}
	_ = json.Unmarshal(data, &tenantID, jsontext.AllowDuplicateNames(true))
	var id string
	for _, v := range []jsontext.Value{tenantID.Data.ID, tenantID.ID} {
		if id == "" {
			_ = json.Unmarshal(v, &id)
		}
	}
	return shorten(id)
}

// shorten cuts a text to what a list may show, because publishers choose it.
func shorten(text string) string {
	const limit = 4 * maxReason // bytes, of maxReason code points
	if len(text) <= limit {
		return strings.Clone(text) // a copy, so that the whole message can be freed
	}
	return strings.ToValidUTF8(text[:limit], "") + "…"
}

// DeadFilter selects dead letters. An empty field selects all.
type DeadFilter struct {
	Sequences            []uint64
	From                 uint64 // the first sequence
	Type, Code, TenantID string
	Since, Before        time.Time // when they became dead letters
}

func (f DeadFilter) selects(d DeadLetter) bool {
	is := func(want, have string) bool { return want == "" || want == have }
	return (len(f.Sequences) == 0 || slices.Contains(f.Sequences, d.Sequence)) &&
		is(f.Type, d.Type) && is(f.Code, d.Code) && is(f.TenantID, d.TenantID) &&
		!d.Time.Before(f.Since) && (f.Before.IsZero() || d.Time.Before(f.Before))
}

// DeadLetters returns the dead letters that the filter selects, oldest first, at most limit, without
// their headers and data.
func (b *Bus) DeadLetters(ctx context.Context, f DeadFilter, limit int) (list []DeadLetter, err error) {
	err = b.EachDeadLetter(ctx, f, limit, func(d DeadLetter) error {
		d.Header, d.Data = nil, nil
		for _, text := range []*string{
			&d.EventID, &d.EventTime, &d.Code, &d.Error, &d.SideEffect, &d.Truncated,
		} {
			*text = shorten(*text)
		}
		list = append(list, d)
		return nil
	})
	return list, err
}

// EachDeadLetter calls each for the dead letters that the filter selects, oldest first, at most limit.
// If each returns an error, it stops and returns it.
func (b *Bus) EachDeadLetter(
	ctx context.Context, f DeadFilter, limit int, each func(DeadLetter) error,
) error {
	var failed error
	err := b.scan(ctx, b.deadStream(), jetstream.ConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: max(1, f.From),
	}, func(r Raw) bool {
		if d := newDeadLetter(r); f.selects(d) {
			failed = each(d)
			limit--
		}
		return failed == nil && limit > 0
	})
	return errors.Join(err, failed)
}

// ErrNoDeadLetter means that there is no dead letter of that sequence.
var ErrNoDeadLetter = errors.New("there is no such dead letter")

// DeadLetter returns the dead letter of a sequence, or an error that wraps [ErrNoDeadLetter]. It reads
// one message and does not scan.
func (b *Bus) DeadLetter(ctx context.Context, sequence uint64) (DeadLetter, error) {
	fail := func(err error) (DeadLetter, error) {
		return DeadLetter{}, fmt.Errorf("read dead letter %d: %w", sequence, b.withHint(err))
	}
	js, release, err := b.readerInTurn(ctx)
	if err != nil {
		return fail(err)
	}
	defer release()
	stream, err := js.Stream(ctx, b.deadStream())
	if err != nil {
		return fail(err)
	}
	m, err := stream.GetMsg(ctx, sequence)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		err = ErrNoDeadLetter
	}
	if err != nil {
		return fail(err)
	}
	return newDeadLetter(Raw{b.o.Subjects.typeOf(m.Subject), m.Header, m.Data, sequence, m.Time}), nil
}

// deadPoll is the time between two looks for new dead letters.
const deadPoll = 500 * time.Millisecond

// OnDead calls do for each event of a type that becomes a dead letter from now on, until stop is called.
// It polls, and continues after an outage of NATS. If the stream was recreated or restored, do may get
// a dead letter twice. do must not call stop, which waits for it.
func (b *Bus) OnDead(ctx context.Context, eventType string, do func(DeadLetter)) (stop func(), err error) {
	info, err := b.deadInfo(ctx)
	if err != nil {
		return nil, fmt.Errorf("read stream %s: %w", b.deadStream(), b.withHint(err))
	}
	seen, created := info.State.LastSeq, info.Created
	look := func() error {
		info, err := b.deadInfo(ctx)
		if err != nil {
			return err
		}
		if !info.Created.Equal(created) || info.State.LastSeq < seen { // recreated, or restored
			seen, created = 0, info.Created
		}
		if info.State.LastSeq <= seen {
			return nil
		}
		f := DeadFilter{From: seen + 1, Type: eventType}
		err = b.EachDeadLetter(ctx, f, math.MaxInt, func(d DeadLetter) error {
			defer logPanic(b.log, b.o.Subjects.Dead(eventType))
			seen = d.Sequence
			do(d)
			return nil
		})
		if err == nil {
			seen = max(seen, info.State.LastSeq)
		}
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for Sleep(ctx, deadPoll) {
			if err := look(); err != nil && ctx.Err() == nil {
				b.log.Debug("cannot look for dead letters; retrying", "error", err)
			}
		}
	}()
	return func() { cancel(); <-done }, nil
}

// deadInfo looks up the dead-letter stream.
func (b *Bus) deadInfo(ctx context.Context) (*jetstream.StreamInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	stream, err := b.js.Stream(ctx, b.deadStream())
	if err != nil {
		return nil, err
	}
	return stream.CachedInfo(), nil
}

// Discard deletes a dead letter for good.
func (b *Bus) Discard(ctx context.Context, sequence uint64) error {
	stream, err := b.js.Stream(ctx, b.deadStream())
	if err == nil {
		err = stream.DeleteMsg(ctx, sequence)
	}
	if err != nil {
		return fmt.Errorf("delete dead letter %d: %w", sequence, b.withHint(err))
	}
	return nil
}
