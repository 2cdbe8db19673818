package events

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// Status messages of the server have these headers and no data.
var likeStatuses = []nats.Header{
	{"Status": {"100"}}, {"Status": {"404"}}, {"Status": {"408"}}, {"Status": {"503"}},
	{"Status": {"409"}, "Description": {"Consumer Deleted"}},
	{"Status": {"409"}, "Description": {"Batch Completed"}},
}

func publishLikeStatus(t *testing.T, b *Bus, header nats.Header) {
	t.Helper()
	// The check of all messages at the end of a test cannot read it, because it uses nats.go's pulls.
	t.Cleanup(func() {
		_ = b.js.DeleteStream(context.Background(), b.o.Stream)
		_ = b.js.DeleteStream(context.Background(), b.deadStream())
	})
	m := nats.NewMsg(b.o.Subjects.Event(TypeTenantCreated))
	m.Header = header
	if _, err := b.js.PublishMsg(t.Context(), m); err != nil {
		t.Fatal(err)
	}
}

func TestEventThatLooksLikeAStatusMessageBecomesADeadLetter(t *testing.T) {
	for _, header := range likeStatuses {
		t.Run(fmt.Sprint(header), func(t *testing.T) {
			virtually(t, func(t *testing.T, b *Bus) {
				said := make(logged, 100)
				b.log = slog.New(slog.NewTextHandler(said, nil))
				handled := make(chan struct{}, 10)
				c := b.MainConsumer(16, time.Second)
				c.Handle = func(context.Context, Event) error {
					time.Sleep(10 * time.Second)
					handled <- struct{}{}
					return nil
				}
				consume(t, c)
				time.Sleep(time.Minute) // it is idle
				publish(t, b, createdEvent("another"))
				time.Sleep(time.Second)
				publishLikeStatus(t, b, header)
				time.Sleep(5 * time.Minute)
				if n := pending(t, b, MainConsumer); n != 0 || len(handled) != 1 {
					t.Errorf("%d events wait; the other tenant's was handled %d times", n, len(handled))
				}
				list := deadLetters(t, b)
				if len(list) != 1 || list[0].Code != "INVALID_JSON" || list[0].Header.Get("Status") != "" {
					t.Errorf("dead letters: %+v", list)
				}
				if len(said) == 0 {
					t.Fatal("logged nothing")
				}
				line := string(<-said)
				if len(said) > 0 || !strings.Contains(line, "event became a dead letter") {
					t.Errorf("%d more lines after %s", len(said), line)
				}
			})
		})
	}
}

func TestScanReadsPastEventsThatLookLikeStatusMessages(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		publish(t, b, createdEvent("a"))
		for _, header := range likeStatuses {
			publishLikeStatus(t, b, header)
		}
		publish(t, b, createdEvent("b"))
		publishLikeStatus(t, b, likeStatuses[0]) // the last one
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var found []string
		err := b.ScanSince(ctx, time.Time{}, func(e StoredEvent) error {
			found = append(found, e.TenantID())
			return nil
		})
		if err != nil || fmt.Sprint(found) != "[a b]" {
			t.Errorf("found %v, error: %v", found, err)
		}
	})
}

func TestScanRereadsMessagesLostInTransit(t *testing.T) {
	for _, n := range []int{scanBatch + 1, scanBatch + 10} { // the last message is lost, or another
		virtually(t, func(t *testing.T, b *Bus) {
			for i := range n {
				publish(t, b, createdEvent(fmt.Sprint(i)))
			}
			found := 0
			err := b.ScanSince(t.Context(), time.Time{}, func(e StoredEvent) error {
				if e.TenantID() != fmt.Sprint(found) {
					t.Errorf("got event %s, want %d", e.TenantID(), found)
				}
				if found++; found == 10 {
					steal(t, b)
				}
				return nil
			})
			if err != nil || found != n {
				t.Errorf("found %d of %d, error: %v", found, n, err)
			}
		})
	}
}

// steal takes the next message from the consumer of a scan.
func steal(t *testing.T, b *Bus) {
	t.Helper()
	stream, err := b.js.Stream(t.Context(), b.o.Stream)
	if err != nil {
		t.Fatal(err)
	}
	for name := range stream.ConsumerNames(t.Context()).Name() {
		next := b.api("CONSUMER.MSG.NEXT." + b.o.Stream + "." + name)
		if _, err := b.nc.Request(next, nil, time.Second); err != nil {
			t.Fatal(err)
		}
	}
}

// The server does not answer a refused pull that has heartbeats.
func TestIdleConsumerIsUnhealthyWhileTheServerRefusesItsPulls(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		said := make(logged, 100)
		b.log = slog.New(slog.NewTextHandler(said, nil))
		c := b.MainConsumer(4, time.Second)
		c.Handle = func(context.Context, Event) error { return nil }
		if _, err := b.supervise(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		others, err := nats.Connect("", nats.InProcessServer(b.o.InProcess))
		if err != nil {
			t.Fatal(err)
		}
		defer others.Close()
		if _, err := others.Subscribe("_INBOX.others.*", func(*nats.Msg) {}); err != nil {
			t.Fatal(err)
		}
		next := b.api("CONSUMER.MSG.NEXT." + b.o.Stream + "." + MainConsumer)
		pull := []byte(`{"batch":1,"expires":600000000000}`)
		for i := range 30 * 520 { // the server takes only some at a time
			_ = others.PublishRequest(next, fmt.Sprint("_INBOX.others.", i), pull)
			if i%520 == 0 {
				time.Sleep(time.Second)
			}
		}
		consume(t, c)
		time.Sleep(time.Minute)
		staysUnhealthy(t, c)
		saysOnce(t, said, "Exceeded MaxWaiting")
	})
}

// The server gives the event to the pull of the host that is gone, and after ackWait to another.
func TestEventDeliveredToAVanishedHostIsRedelivered(t *testing.T) {
	virtuallyOn(t, func(t *testing.T, b *Bus, way *way) {
		host := newWay(way.Server)
		victim := connectBus(t, Options{InProcess: host})
		t.Cleanup(func() { host.vanished.Store(false) })
		idle(t, victim, nil)
		host.nextPull()
		time.Sleep(50 * time.Millisecond) // it waits at the server
		host.vanished.Store(true)
		time.Sleep(2 * time.Second)
		began := time.Now()
		publish(t, b, createdEvent("a"))
		handled := make(chan struct{}, 1)
		c := b.MainConsumer(4, time.Second)
		c.Handle = func(context.Context, Event) error { handled <- struct{}{}; return nil }
		consume(t, c)
		<-handled
		if took := time.Since(began); took > ackWait+time.Second {
			t.Errorf("handled after %v", took)
		}
	})
}
