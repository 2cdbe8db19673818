package events

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

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

// publishDead stores the dead letter of an event and returns when the stream has it. It goes on when ctx has ended:
// a drain settles what is in hand.
func (b *Bus) publishDead(ctx context.Context, raw Raw, e Event, p *Permanent) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	raw.Header = tracedDead(ctx, raw.Header)
	added := headerSize(nats.Header{jetstream.ExpectedStreamHeader: {b.deadStream()}}) // by the publish
	msg := deadLetter(raw, e, p, int(b.nc.MaxPayload())-added)
	msg.Subject = b.o.Subjects.Dead(raw.Type)
	if _, err := b.js.PublishMsg(ctx, msg, jetstream.WithExpectStream(b.deadStream())); err != nil {
		return fmt.Errorf("publishing a dead letter: %w", err)
	}
	return nil
}

// deadLetter is the message that keeps an event that cannot be handled, at most maxPayload bytes with its headers.
func deadLetter(raw Raw, e Event, p *Permanent, maxPayload int) *nats.Msg {
	own := nats.Header{}
	own.Set(jetstream.MsgIDHeader, "dead-"+e.Message)
	own.Set(headerEventID, e.ID)
	own.Set(headerEventTime, e.Time.UTC().Format(time.RFC3339Nano))
	own.Set(headerError, oneLine(p.Error(), 500))
	own.Set(headerCode, p.Code)
	own.Set(headerAttempts, strconv.Itoa(max(1, p.Attempts)))
	own.Set(headerSequence, strconv.FormatUint(raw.Sequence, 10))
	own.Set(headerSideEffect, p.sideEffect())

	msg := &nats.Msg{Header: nats.Header{}, Data: raw.Data}
	for name, values := range raw.Header {
		switch lower := strings.ToLower(name); {
		case strings.HasPrefix(lower, "nats-"): // they would be obeyed: expected sequence, rollup, time to live …
			msg.Header[originalPrefix+name] = values
		case !isOwn(own, name) && lower != strings.ToLower(headerTruncated):
			msg.Header[name] = values
		}
	}
	if headerSize(msg.Header)+headerSize(own) > maxPayload/2 {
		own.Set(headerDropped, strconv.Itoa(len(msg.Header)))
		msg.Header = nats.Header{}
	}
	for name, values := range own {
		msg.Header[name] = values
	}
	if room := maxPayload - headerSize(msg.Header) - 128; len(msg.Data) > room { // 128: the header that says so
		msg.Header.Set(headerTruncated, fmt.Sprintf("%d %x", len(raw.Data), sha256.Sum256(raw.Data)))
		msg.Data = msg.Data[:max(0, room)]
	}
	return msg
}

func isOwn(own nats.Header, name string) bool {
	for o := range own {
		if strings.EqualFold(o, name) {
			return true
		}
	}
	return false
}

// headerSize is the length of the headers on the wire.
func headerSize(h nats.Header) int {
	size := len("NATS/1.0\r\n\r\n")
	for name, values := range h {
		for _, v := range values {
			size += len(name) + len(v) + len(": \r\n")
		}
	}
	return size
}

// oneLine makes text fit for a header: no control characters, at most most code points.
func oneLine(text string, most int) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "�"))
	if r := []rune(text); len(r) > most {
		text = string(r[:most-1]) + "…"
	}
	return text
}
