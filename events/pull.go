package events

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// pullRequest asks a consumer for messages.
// https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-13.md
type pullRequest struct {
	Batch     int   `json:"batch"`
	MaxBytes  int   `json:"max_bytes,omitzero"`
	Expires   int64 `json:"expires"`                 // ns
	Heartbeat int64 `json:"idle_heartbeat,omitzero"` // ns
}

const (
	// heartbeat is the server's idle heartbeat during a pull that waits at least twice as long. The
	// server refuses heartbeats for shorter pulls.
	heartbeat = 5 * time.Second
	pullGrace = 5 * time.Second // how late the end of a pull, or its next message, may be
	statuses  = 16              // room for status messages in the channel of a pull
)

var (
	// errUnanswered means that the server neither ended a pull in time nor sent heartbeats.
	errUnanswered = errors.New("the server did not answer a pull request")
	// errMoved means that the pull was lost with the consumer's leader.
	errMoved = errors.New("the consumer has another leader")
	// errMaxBytes means that the next message is larger than the request allows.
	errMaxBytes = errors.New("the next message is too large")
)

// pull requests at most r.Batch messages from a consumer and calls each for every one that arrives,
// until wait has passed, ctx ends or each returns false. When ctx ends, each still gets the messages
// that have arrived. If the consumer was deleted, the error is [jetstream.ErrConsumerDeleted]; if the
// connection was lost, [nats.ErrDisconnected].
//
// nats.go's own pulls mistake a stored message that has no data and a "Status" header for a status
// message from the server, so it would never be handled.
func (b *Bus) pull(
	ctx context.Context, nc *nats.Conn, stream, consumer string, wait time.Duration, r pullRequest,
	each func(*nats.Msg) bool,
) error {
	silence := time.NewTimer(2 * heartbeat)
	defer silence.Stop()
	if r.Expires = wait.Nanoseconds(); wait >= 2*heartbeat {
		r.Heartbeat = heartbeat.Nanoseconds()
	} else {
		silence.Stop()
	}
	request, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode the request: %w", err)
	}
	lost := nc.StatusChanged(nats.RECONNECTING, nats.CLOSED)
	defer nc.RemoveStatusListener(lost)
	if !nc.IsConnected() { // since before the listener
		return nats.ErrDisconnected
	}
	inbox, arrived := nc.NewInbox(), make(chan *nats.Msg, r.Batch+statuses)
	sub, err := nc.ChanSubscribe(inbox, arrived)
	if err != nil {
		return err
	}
	defer func() { _ = sub.Unsubscribe() }() // it fails only if the connection is closed
	if err := nc.PublishRequest(b.api("CONSUMER.MSG.NEXT."+stream+"."+consumer), inbox, request); err != nil {
		return err
	}
	end := time.Now().Add(wait + pullGrace)
	late := time.NewTimer(wait + pullGrace)
	defer late.Stop()
	for n := 0; n < r.Batch; {
		var msg *nats.Msg
		select {
		case msg = <-arrived: // also what arrived before the pull was cut short
		default:
			select {
			case msg = <-arrived:
			case <-ctx.Done():
				return nil
			case <-lost:
				return nats.ErrDisconnected
			case <-late.C:
				return errUnanswered
			case <-silence.C:
				return errUnanswered
			}
		}
		if msg.Reply != "" { // the subject of its acknowledgement, which a status message lacks
			n++
			if !each(msg) {
				return nil
			}
			late.Reset(max(time.Until(end), pullGrace)) // a large message takes long, and each may block
		} else if ended, err := endsPull(msg.Header); ended {
			return err
		}
		if r.Heartbeat > 0 {
			silence.Reset(2 * heartbeat)
		}
	}
	return nil
}

// endsPull reports whether a status message ends a pull. The error is the reason, or nil if it is a
// normal end.
func endsPull(header nats.Header) (ended bool, err error) {
	status, description := header.Get("Status"), header.Get("Description")
	is := func(text string) bool { return status == "409" && strings.Contains(description, text) }
	switch {
	case status == "100": // a heartbeat
		return false, nil
	case status == "404", status == "408": // no messages, request timeout
		return true, nil
	case is("Exceeds MaxBytes"):
		return true, errMaxBytes
	case is("Consumer Deleted"):
		return true, jetstream.ErrConsumerDeleted
	case is("Leadership Change"), is("Server Shutdown"):
		return true, errMoved
	case status == "503":
		return true, nats.ErrNoResponders
	}
	return true, fmt.Errorf("%s (status %s)", description, status)
}
