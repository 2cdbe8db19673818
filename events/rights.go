package events

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// traceOnly makes the server check a publish and report it only to the trace's destination: it
// neither delivers nor stores the message. Servers before 2.11 do not know this header.
const (
	traceOnly = "Nats-Trace-Only"
	traceDest = "Nats-Trace-Dest"
)

// replyCheck ends the reply subjects that are tested. A refusal of one is a finding, and is not
// logged.
const replyCheck = "papermap-worker.check"

// rightsTimeout limits the check of all permissions together: each takes one round trip.
const rightsTimeout = 10 * time.Second

var traceOnlyServer = []int{2, 11, 0}

// checkRights checks what the worker does besides calls of JetStream's API: it publishes events and
// dead letters, receives requests, and answers them. A permission that was confirmed for a
// connection is not checked again on that connection.
func (b *Bus) checkRights(ctx context.Context) []Finding {
	defer b.lockTopology()()
	t := &b.top
	if now := b.nc.Stats().Reconnects + 1; t.rightsOf != now || len(t.denied) > 0 {
		ctx, cancel := context.WithTimeout(ctx, rightsTimeout)
		defer cancel()
		t.rightsOf, t.denied = now, b.deniedRights(ctx)
		t.account = !b.refuses(ctx, b.api("INFO"), func(s string) error { return b.nc.Publish(s, nil) })
		if ctx.Err() != nil {
			t.denied = append(t.denied, Finding{"rights",
				fmt.Sprintf("NATS did not answer within %s whether this user has all it needs",
					rightsTimeout),
				"look whether the server is overloaded, and check again", false})
		}
	}
	return t.denied
}

func (b *Bus) deniedRights(ctx context.Context) (denied []Finding) {
	add := func(does, subject, without string, fatal bool) {
		denied = append(denied,
			Finding{"rights", fmt.Sprintf("this user may not %s %s: %s", does, subject, without),
				"give it the permissions of docs/nats", fatal})
	}
	subjects := b.o.Subjects
	for _, subject := range []string{subjects.RPC("embed-token"), subjects.RPC("embed-token") + ".*",
		subjects.RPC("dashboard"), subjects.RPC("usage")} {
		if b.refuses(ctx, subject, b.subscribeBriefly) {
			add("subscribe to", subject, "callers get no responders", true)
		}
	}
	have, ok := parseVersion(b.nc.ConnectedServerVersion())
	if !ok || slices.Compare(have, traceOnlyServer) < 0 ||
		b.refuses(ctx, subjects.Changed(), func(s string) error { return b.nc.Publish(s, nil) }) {
		return denied // without the subject of changes, other replicas learn of them 4 s later
	}
	for _, t := range Types {
		own := slices.Contains(t.Publishers, workerUser)
		switch subject := subjects.Event(t.Name); {
		case !own && !b.o.Operate || !b.refuses(ctx, subject, b.tryPublish):
		case !own:
			add("publish", subject, "REST and the console cannot do it for an operator", false)
		case t.Consumer == "":
			add("publish", subject, "events out wait in the database", true)
		default:
			add("publish", subject,
				"ticks of the usage schedule, and what an operator creates again, wait", false)
		}
		if dead := subjects.Dead(t.Name); t.Consumer != "" && b.refuses(ctx, dead, b.tryPublish) {
			add("publish", dead, "bad events stay in the stream and are tried again", true)
		}
	}
	if b.o.Operate {
		for _, call := range b.operatorCalls() {
			if subject := b.api(call); b.refuses(ctx, subject, b.tryPublish) {
				add("publish", subject,
					"the console cannot show events or dead letters, or act on them", false)
			}
		}
	}
	for _, prefix := range b.deniedReplies(ctx) {
		add("answer to", prefix+">", "callers there get no answer", true)
	}
	return denied
}

// operatorCalls are the calls of JetStream's API that REST and the console make for an operator, about a
// consumer that does not exist.
func (b *Bus) operatorCalls() (list []string) {
	for _, stream := range []string{b.o.Stream, b.deadStream()} {
		for _, call := range []string{"CREATE", "INFO", "MSG.NEXT", "DELETE"} {
			list = append(list, "CONSUMER."+call+"."+stream+".papermap-worker-check")
		}
	}
	return append(list, "STREAM.MSG.GET."+b.deadStream(), "STREAM.MSG.DELETE."+b.deadStream())
}

// deniedReplies returns the prefixes of reply subjects that the worker should answer but may not.
// By default it is enough if one of them is permitted.
func (b *Bus) deniedReplies(ctx context.Context) (denied []string) {
	sub, err := b.nc.SubscribeSync(b.o.Subjects.Changed())
	if err != nil {
		return nil
	}
	defer func() { _ = sub.Unsubscribe() }()
	prefixes := b.top.replies
	if len(prefixes) == 0 {
		prefixes = inboxes
	}
	for _, prefix := range prefixes {
		subject := prefix + replyCheck
		// The permission allow_responses is for the reply subject of a message that was received.
		if prefix != serverReplies && b.nc.PublishRequest(b.o.Subjects.Changed(), subject, nil) == nil {
			_, _ = sub.NextMsgWithContext(ctx) // not permitted to subscribe: its error is a timeout
		}
		if b.refuses(ctx, subject, b.tryPublish) {
			denied = append(denied, prefix)
		}
	}
	if len(b.top.replies) == 0 && len(denied) < len(inboxes) {
		return nil
	}
	return denied
}

func (b *Bus) tryPublish(subject string) error {
	return b.nc.PublishMsg(&nats.Msg{Subject: subject, Header: nats.Header{
		traceOnly: {"true"}, traceDest: {b.o.Subjects.Changed()},
		jetstream.ExpectedStreamHeader: {"none: only the right to publish is checked"},
	}})
}

func (b *Bus) subscribeBriefly(subject string) error {
	sub, err := b.nc.SubscribeSync(subject)
	if err == nil {
		err = sub.Unsubscribe()
	}
	return err
}

// refuses reports whether the server refuses to let this user do something with a subject. The
// server reports the refusal before it answers the flush.
func (b *Bus) refuses(ctx context.Context, subject string, do func(subject string) error) bool {
	before := b.nc.LastError()
	if do(subject) != nil || b.nc.FlushWithContext(ctx) != nil {
		return false // the connection is lost, which is another finding
	}
	err := b.nc.LastError()
	return err != before && errors.Is(err, nats.ErrPermissionViolation) &&
		strings.Contains(err.Error(), strconv.Quote(subject))
}
