package events

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestConsumerAcknowledgesAfterTheHandlerSucceeded(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		c := b.MainConsumer(4, time.Second)
		var calls atomic.Int32
		c.Handle = func(_ context.Context, e Event) error {
			if n := calls.Add(1); n < 3 {
				if n == 1 && pending(t, b, MainConsumer) != 1 {
					t.Error("acknowledged before it was handled")
				}
				return &Retry{After: 10 * time.Millisecond, Err: errors.New("not yet")}
			}
			return nil
		}
		consume(t, c)
		publish(t, b, createdEvent("a"))
		eventually(t, "the event is acknowledged", func() bool {
			return calls.Load() >= 3 &&
				pending(t, b, MainConsumer) == 0
		})
		synctest.Wait()
		if calls.Load() != 3 {
			t.Errorf("handled %d times, want 3", calls.Load())
		}
	})
}

func TestConsumerStoresOneDeadLetterWithinOneDelivery(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		c := b.MainConsumer(4, time.Second)
		var calls atomic.Int32
		c.Handle = func(context.Context, Event) error {
			calls.Add(1)
			return &Permanent{Code: "REFUSED", Err: errors.New("no"), SideEffect: "maybe", Attempts: 7}
		}
		consume(t, c)
		publish(t, b, Outgoing{ID: "bad-json", Type: TypeTenantCreated, Data: []byte(`{"tenant_id":`)})
		publish(t, b, Outgoing{ID: "refused", Type: TypeTenantCreated,
			Data: []byte(`{"tenant_id":"a","name":"x"}`)})
		eventually(t, "both are dead letters", func() bool {
			return len(deadLetters(t, b)) == 2 &&
				pending(t, b, MainConsumer) == 0
		})
		if calls.Load() != 1 {
			t.Errorf("the handler saw %d events, want the readable one", calls.Load())
		}
		byID := map[string]DeadLetter{}
		for _, d := range deadLetters(t, b) {
			byID[d.EventID] = d
		}
		if d := byID["bad-json"]; d.Code != codeJSON || d.SideEffect != "none" ||
			string(d.Data) != `{"tenant_id":` || d.StreamSequence != 1 {
			t.Errorf("dead letter of bad JSON: %+v", d)
		}
		if d := byID["refused"]; d.Code != "REFUSED" || d.SideEffect != "maybe" || d.Attempts != 7 ||
			d.Error != "no" || d.Type != TypeTenantCreated {
			t.Errorf("dead letter of a refused event: %+v", d)
		}
	})
}

func TestConsumerStoresADeadLetterOfTheLargestEvent(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		consume(t, b.MainConsumer(1, time.Second)) // it has no handler: nothing gets that far
		expected := len("NATS/1.0\r\nNats-Expected-Stream: PAPERMAP\r\n\r\n")
		data := bytes.Repeat([]byte("x"), int(b.nc.MaxPayload())-expected)
		publish(t, b, Outgoing{Type: TypeTenantCreated, Data: data})
		eventually(t, "it is a dead letter", func() bool { return len(deadLetters(t, b)) == 1 })
		if d := deadLetters(t, b)[0]; d.Truncated == "" || !bytes.HasPrefix(data, d.Data) {
			t.Errorf("cut %q, %d bytes", d.Truncated, len(d.Data))
		}
	})
}

func TestConsumerKeepsAnEventWhoseDeadLetterCannotBeStored(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		c := b.MainConsumer(4, time.Second)
		var calls atomic.Int32
		c.Handle = func(context.Context, Event) error {
			if calls.Add(1) == 1 { // the stream vanishes between the handler and the dead letter
				if err := b.js.DeleteStream(t.Context(), b.deadStream()); err != nil {
					t.Error(err)
				}
			} else if err := b.EnsureStreams(t.Context()); err != nil {
				t.Error(err)
			}
			return &Permanent{Code: "REFUSED", Err: errors.New("no")}
		}
		consume(t, c)
		publish(t, b, createdEvent("a"))
		eventually(t, "it is a dead letter in the end", func() bool {
			if calls.Load() < 2 {
				return false
			}
			_, err := b.js.Stream(t.Context(), b.deadStream()) // gone until it is made again
			return err == nil && len(deadLetters(t, b)) == 1 && pending(t, b, MainConsumer) == 0
		})
	})
}

func TestConsumerExtendsTheDeadlineOfLongHandlers(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		release := make(chan struct{})
		var calls atomic.Int32
		worker := func() *Consumer {
			c := b.MainConsumer(4, 10*time.Second)
			c.Handle = func(context.Context, Event) error {
				calls.Add(1)
				<-release
				return nil
			}
			return c
		}
		consume(t, worker())
		consume(t, worker())
		publish(t, b, createdEvent("a"))
		eventually(t, "it is in hand", func() bool { return calls.Load() == 1 })
		<-time.After(2 * ackWait)
		close(release)
		eventually(t, "it is acknowledged", func() bool { return pending(t, b, MainConsumer) == 0 })
		if calls.Load() != 1 {
			t.Errorf("handled %d times", calls.Load())
		}
	})
}

func TestConsumerFetchesNoMoreThanFreeSlots(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		const slots, all = 3, 20
		c := b.MainConsumer(slots, 10*time.Second)
		step := make(chan struct{})
		var inHand, most atomic.Int32
		c.Handle = func(context.Context, Event) error {
			n := inHand.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			<-step
			inHand.Add(-1)
			return nil
		}
		for i := range all {
			publish(t, b, createdEvent(fmt.Sprint(i)))
		}
		consume(t, c)
		for range all {
			eventually(t, "one is in hand", func() bool { return inHand.Load() > 0 })
			consumer, err := b.js.Consumer(t.Context(), b.o.Stream, MainConsumer)
			if err != nil {
				t.Fatal(err)
			}
			// one may have its acknowledgement on the way
			if n := consumer.CachedInfo().NumAckPending; n > slots+1 {
				t.Errorf("%d events are out, with %d slots", n, slots)
			}
			step <- struct{}{}
		}
		eventually(t, "all are acknowledged", func() bool { return pending(t, b, MainConsumer) == 0 })
		if most.Load() > slots {
			t.Errorf("%d in hand at once, with %d slots", most.Load(), slots)
		}
	})
}

// Events may be as large as the server takes, and be in hand for as long as Papermap takes to answer.
func TestConsumerHoldsNoMoreThanMemoryInHand(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		const all = 24
		c := b.MainConsumer(all, 10*time.Second)
		fit := memoryInHand / int(b.nc.MaxPayload())
		if fit >= all {
			t.Fatalf("%d of the largest events fit: publish more than %d", fit, all)
		}
		proceed := make(chan struct{})
		var inHand, handled, most atomic.Int32
		c.Handle = func(context.Context, Event) error {
			n := inHand.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			<-proceed
			inHand.Add(-1)
			handled.Add(1)
			return nil
		}
		large := strings.Repeat("x", int(b.nc.MaxPayload())-500)
		for i := range all {
			publish(t, b, Outgoing{Type: TypeTenantCreated,
				Data: fmt.Appendf(nil, `{"tenant_id":"%d","name":"x","unknown":%q}`, i, large)})
		}
		consume(t, c)
		eventually(t, "as many are in hand as fit", func() bool { return int(inHand.Load()) >= fit })
		Sleep(t.Context(), time.Minute) // no more come
		if n := int(most.Load()); n != fit {
			t.Errorf("%d of the largest events are in hand, and %d fit", n, fit)
		}
		close(proceed)
		eventually(t, "all are handled", func() bool { return handled.Load() == all })
		eventually(t, "all are acknowledged", func() bool { return pending(t, b, MainConsumer) == 0 })
	})
}

func TestConsumerRetriesAfterAPanic(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		c := b.MainConsumer(4, time.Second)
		var mu sync.Mutex
		seen := map[string]int{}
		c.Handle = func(_ context.Context, e Event) error {
			mu.Lock()
			defer mu.Unlock()
			id := e.Data.(TenantCreated).TenantID
			if seen[id]++; id == "bad" && seen[id] == 1 {
				panic("a bug")
			}
			return nil
		}
		consume(t, c)
		publish(t, b, createdEvent("bad"))
		publish(t, b, createdEvent("good"))
		handled := func() int {
			mu.Lock()
			defer mu.Unlock()
			return seen["bad"] + seen["good"]
		}
		eventually(t, "both are acknowledged", func() bool {
			return handled() >= 3 &&
				pending(t, b, MainConsumer) == 0
		})
		mu.Lock()
		defer mu.Unlock()
		if seen["bad"] != 2 || seen["good"] != 1 {
			t.Errorf("handled: %v", seen)
		}
	})
}

func TestConsumerFetchesNothingWithoutAdmission(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		c := b.MainConsumer(4, time.Second)
		admit := make(chan int)
		c.Admit = func(ctx context.Context) (int, error) {
			select {
			case n := <-admit:
				return n, nil
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}
		var calls atomic.Int32
		c.Handle = func(context.Context, Event) error { calls.Add(1); return nil }
		for i := range 3 {
			publish(t, b, createdEvent(fmt.Sprint(i)))
		}
		consume(t, c)
		eventually(t, "the consumer is there", func() bool { return pending(t, b, MainConsumer) == 3 })
		if calls.Load() != 0 {
			t.Error("fetched while nothing was admitted")
		}
		admit <- 1
		eventually(t, "one is done", func() bool { return pending(t, b, MainConsumer) == 2 })
		admit <- 4
		eventually(t, "the others are done", func() bool { return pending(t, b, MainConsumer) == 0 })
	})
}

func TestConsumerIsRecreatedWhenItOrItsStreamWasDeleted(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		c := b.MainConsumer(4, time.Second)
		var calls atomic.Int32
		c.Handle = func(context.Context, Event) error { calls.Add(1); return nil }
		consume(t, c)
		publish(t, b, createdEvent("1"))
		eventually(t, "the first is done", func() bool {
			return calls.Load() == 1 &&
				pending(t, b, MainConsumer) == 0
		})
		if err := b.js.DeleteConsumer(t.Context(), b.o.Stream, MainConsumer); err != nil {
			t.Fatal(err)
		}
		publish(t, b, createdEvent("2"))
		eventually(t, "the second is done", func() bool {
			return calls.Load() >= 2 &&
				pending(t, b, MainConsumer) == 0
		})
		if err := b.js.DeleteStream(t.Context(), b.o.Stream); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the stream is back", func() bool {
			_, err := b.js.Stream(t.Context(), b.o.Stream)
			return err == nil
		})
		before := calls.Load()
		publish(t, b, createdEvent("3"))
		eventually(t, "the third is done", func() bool {
			return calls.Load() > before &&
				pending(t, b, MainConsumer) == 0
		})
		eventually(t, "it is healthy", c.Healthy)
	})
}

func TestConsumerReturnsUnstartedEventsAndFinishesTheRestOnStop(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		c := b.MainConsumer(1, 10*time.Second)
		started, release := make(chan struct{}), make(chan struct{})
		c.Handle = func(ctx context.Context, _ Event) error {
			close(started)
			<-release
			return ctx.Err()
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { c.Run(ctx); close(done) }()
		publish(t, b, createdEvent("1"))
		publish(t, b, createdEvent("2"))
		<-started
		stop()
		select {
		case <-done:
			t.Fatal("stopped with an event in hand")
		case <-time.After(50 * time.Millisecond):
		}
		close(release)
		<-done
		synctest.Wait() // until the server has the acknowledgement
		if n := pending(t, b, MainConsumer); n != 1 {
			t.Errorf("%d events are left, want the one that was not started", n)
		}
	})
}

func TestConsumerCancelsHandlersAfterTheGrace(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		c := b.MainConsumer(1, 20*time.Millisecond)
		started := make(chan struct{})
		c.Handle = func(ctx context.Context, _ Event) error {
			close(started)
			<-ctx.Done()
			return ctx.Err()
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { c.Run(ctx); close(done) }()
		publish(t, b, createdEvent("1"))
		<-started
		stop()
		<-done
		synctest.Wait() // until the server has the acknowledgement
		if n := pending(t, b, MainConsumer); n != 1 {
			t.Errorf("%d events are left, want the one that was given up", n)
		}
	})
}

// It comes back delayed, so that the pull that is still open does not fetch it again.
func TestConsumerReturnsAnEventOnceWhenStopped(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		const slots = 8
		c := b.MainConsumer(slots, time.Second)
		c.Handle = func(context.Context, Event) error { t.Error("handled while stopping"); return nil }
		if _, err := b.supervise(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		js, err := b.js.Consumer(t.Context(), b.o.Stream, MainConsumer)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			time.Sleep(fetchWait / 2)
			if _, err := b.Publish(t.Context(), createdEvent("a")); err != nil {
				t.Error(err)
			}
		}()
		stopped, stop := context.WithCancel(t.Context())
		stop()
		for range slots {
			c.slots <- struct{}{}
		}
		if err := c.fetch(stopped, t.Context(), slots, 0); err != nil {
			t.Fatal(err)
		}
		info, err := js.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if n := info.Delivered.Consumer; n != 1 {
			t.Errorf("delivered %d times by one pull, want once", n)
		}
	})
}

func TestConsumerDeliversBesideManyThatWaitForARetry(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		const waiting = 1000 // the server's default of MaxAckPending
		c := b.MainConsumer(64, time.Second)
		var retried, handled atomic.Int32
		c.Handle = func(_ context.Context, e Event) error {
			if e.Data.(TenantCreated).TenantID == "healthy" {
				handled.Add(1)
				return nil
			}
			retried.Add(1)
			return &Retry{After: time.Hour, Err: errors.New("not yet")}
		}
		consume(t, c)
		list := make([]Outgoing, waiting)
		for i := range list {
			list[i] = createdEvent(fmt.Sprint(i))
		}
		if err := errors.Join(b.PublishAll(t.Context(), list)...); err != nil {
			t.Fatal(err)
		}
		eventually(t, "all wait for a retry", func() bool { return retried.Load() == waiting })
		publish(t, b, createdEvent("healthy"))
		eventually(t, "the healthy event is handled", func() bool { return handled.Load() == 1 })
	})
}

// Handlers that end in the moment of a heartbeat.
func TestConsumerExtendsNothingThatIsAcknowledged(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		const all = 200
		said := make(logged, 10*all)
		b.log = slog.New(slog.NewTextHandler(said, &slog.HandlerOptions{Level: slog.LevelDebug}))
		c := b.MainConsumer(all, time.Second)
		c.Handle = func(context.Context, Event) error { time.Sleep(ackWait / 3); return nil }
		consume(t, c)
		for i := range all {
			publish(t, b, createdEvent(fmt.Sprint(i)))
		}
		eventually(t, "all are done", func() bool { return pending(t, b, MainConsumer) == 0 })
		for len(said) > 0 {
			if line := <-said; strings.Contains(line, "cannot") {
				t.Error(line)
			}
		}
	})
}

// A callback that panics ends neither the process nor the loop, and its event is not lost.
func TestConsumerOutlivesPanicsOutsideTheHandler(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		c := b.MainConsumer(1, time.Second)
		var handled, observed, changes atomic.Int32
		c.Handle = func(context.Context, Event) error { handled.Add(1); return nil }
		c.Observe = func(string, string, time.Duration) { observed.Add(1); panic("a bug") }
		consume(t, c)
		stop, err := b.OnChange(func(string) { changes.Add(1); panic("a bug") })
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		stopDead, err := b.OnDead(t.Context(), TypeTenantCreated, func(DeadLetter) {
			changes.Add(1)
			panic("a bug")
		})
		if err != nil {
			t.Fatal(err)
		}
		defer stopDead()
		b.AnnounceChange("a")
		publish(t, b, createdEvent("a"))
		publish(t, b, createdEvent("b"))
		publish(t, b, Outgoing{Type: TypeTenantCreated, Data: []byte("poison")})
		eventually(t, "all are done", func() bool {
			return handled.Load() == 2 && observed.Load() == 3 && changes.Load() == 2 &&
				pending(t, b, MainConsumer) == 0
		})
	})
}
