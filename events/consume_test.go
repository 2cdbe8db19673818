package events

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
)

func TestEventIsAcknowledgedOnlyAfterItsHandlerSucceeded(t *testing.T) {
	t.Parallel()
	b := startBus(t)
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
	eventually(t, "the event is acknowledged", func() bool { return pending(t, b, MainConsumer) == 0 })
	if calls.Load() != 3 {
		t.Errorf("handled %d times, want 3", calls.Load())
	}
}

func TestEventThatCanNeverBeHandledBecomesOneDeadLetterWithinOneDelivery(t *testing.T) {
	t.Parallel()
	b := startBus(t)
	c := b.MainConsumer(4, time.Second)
	var calls atomic.Int32
	c.Handle = func(context.Context, Event) error {
		calls.Add(1)
		return &Permanent{Code: "REFUSED", Err: errors.New("no"), SideEffect: "maybe", Attempts: 7}
	}
	consume(t, c)
	publish(t, b, Outgoing{ID: "bad-json", Type: TypeTenantCreated, Data: []byte(`{"tenant_id":`)})
	publish(t, b, Outgoing{ID: "refused", Type: TypeTenantCreated, Data: []byte(`{"tenant_id":"a","name":"x"}`)})
	eventually(t, "both are dead letters", func() bool { return len(deadLetters(t, b)) == 2 && pending(t, b, MainConsumer) == 0 })
	if calls.Load() != 1 {
		t.Errorf("the handler saw %d events, want the readable one", calls.Load())
	}
	byID := map[string]DeadLetter{}
	for _, d := range deadLetters(t, b) {
		byID[d.EventID] = d
	}
	if d := byID["bad-json"]; d.Code != codeJSON || d.SideEffect != "none" || string(d.Data) != `{"tenant_id":` || d.StreamSequence != 1 {
		t.Errorf("dead letter of bad JSON: %+v", d)
	}
	if d := byID["refused"]; d.Code != "REFUSED" || d.SideEffect != "maybe" || d.Attempts != 7 || d.Error != "no" || d.Type != TypeTenantCreated {
		t.Errorf("dead letter of a refused event: %+v", d)
	}
}

func TestEventAsLargeAsTheServerTakesBecomesADeadLetter(t *testing.T) {
	t.Parallel()
	b := startBus(t)
	consume(t, b.MainConsumer(1, time.Second)) // it has no handler: nothing gets that far
	expected := len("NATS/1.0\r\nNats-Expected-Stream: PAPERMAP\r\n\r\n")
	data := bytes.Repeat([]byte("x"), int(b.nc.MaxPayload())-expected)
	publish(t, b, Outgoing{Type: TypeTenantCreated, Data: data})
	eventually(t, "it is a dead letter", func() bool { return len(deadLetters(t, b)) == 1 })
	if d := deadLetters(t, b)[0]; d.Truncated == "" || !bytes.HasPrefix(data, d.Data) {
		t.Errorf("cut %q, %d bytes", d.Truncated, len(d.Data))
	}
}

func TestEventStaysWhenItsDeadLetterCannotBeStored(t *testing.T) {
	t.Parallel()
	b := startBus(t)
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
}

func TestLongHandlerIsNotOfferedToAnotherWorker(t *testing.T) {
	t.Parallel()
	b := startBus(t)
	release := make(chan struct{})
	var calls atomic.Int32
	worker := func() *Consumer {
		c := b.MainConsumer(4, 10*time.Second)
		c.ackWait = time.Second
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
	<-time.After(3 * time.Second) // three times as long as the server would wait without heartbeats
	close(release)
	eventually(t, "it is acknowledged", func() bool { return pending(t, b, MainConsumer) == 0 })
	if calls.Load() != 1 {
		t.Errorf("handled %d times", calls.Load())
	}
}

func TestNoMoreEventsAreFetchedThanThereAreSlots(t *testing.T) {
	t.Parallel()
	b := startBus(t)
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
		if n := consumer.CachedInfo().NumAckPending; n > slots+1 { // one may have its acknowledgement on the way
			t.Errorf("%d events are out, with %d slots", n, slots)
		}
		step <- struct{}{}
	}
	eventually(t, "all are acknowledged", func() bool { return pending(t, b, MainConsumer) == 0 })
	if most.Load() > slots {
		t.Errorf("%d in hand at once, with %d slots", most.Load(), slots)
	}
}

func TestPanicOfAHandlerIsOneFailureOfThatEvent(t *testing.T) {
	t.Parallel()
	b := startBus(t)
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
	eventually(t, "both are acknowledged", func() bool { return pending(t, b, MainConsumer) == 0 })
	mu.Lock()
	defer mu.Unlock()
	if seen["bad"] != 2 || seen["good"] != 1 {
		t.Errorf("handled: %v", seen)
	}
}

func TestNothingIsFetchedWhileNothingIsAdmitted(t *testing.T) {
	t.Parallel()
	b := startBus(t)
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
}

func TestConsumerIsBuiltAgainAfterItOrItsStreamWasDeleted(t *testing.T) {
	t.Parallel()
	b := startBus(t)
	c := b.MainConsumer(4, time.Second)
	var calls atomic.Int32
	c.Handle = func(context.Context, Event) error { calls.Add(1); return nil }
	consume(t, c)
	publish(t, b, createdEvent("1"))
	eventually(t, "the first is done", func() bool { return calls.Load() == 1 && pending(t, b, MainConsumer) == 0 })
	if err := b.js.DeleteConsumer(t.Context(), b.o.Stream, MainConsumer); err != nil {
		t.Fatal(err)
	}
	publish(t, b, createdEvent("2"))
	eventually(t, "the second is done", func() bool { return calls.Load() >= 2 && pending(t, b, MainConsumer) == 0 })
	if err := b.js.DeleteStream(t.Context(), b.o.Stream); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stream is back", func() bool {
		_, err := b.js.Stream(t.Context(), b.o.Stream)
		return err == nil
	})
	before := calls.Load()
	publish(t, b, createdEvent("3"))
	eventually(t, "the third is done", func() bool { return calls.Load() > before && pending(t, b, MainConsumer) == 0 })
	eventually(t, "it is healthy", c.Healthy)
}

func TestAConsumerThatSomebodyChangedIsPutRightAndLosesNoEvent(t *testing.T) {
	for name, change := range map[string]func(*jetstream.ConsumerConfig){
		"filter":     func(config *jetstream.ConsumerConfig) { config.FilterSubjects = []string{"papermap.events.usage.sync"} },
		"deliveries": func(config *jetstream.ConsumerConfig) { config.MaxDeliver = 1 },
		"ack wait":   func(config *jetstream.ConsumerConfig) { config.AckWait = time.Hour },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startBus(t)
			said := make(logged, 100)
			b.log = slog.New(slog.NewTextHandler(said, nil))
			c := b.MainConsumer(4, time.Second)
			var changed, handled atomic.Bool
			c.Handle = func(_ context.Context, e Event) error {
				if e.ID == "late" && changed.CompareAndSwap(false, true) {
					return &Retry{After: time.Second, Err: errors.New("later")}
				}
				handled.Store(handled.Load() || e.ID == "late")
				return nil
			}
			consume(t, c)
			publish(t, b, createdEvent("1"))
			eventually(t, "the first is done", func() bool { return pending(t, b, MainConsumer) == 0 })
			js, err := b.js.Consumer(t.Context(), b.o.Stream, MainConsumer)
			if err != nil {
				t.Fatal(err)
			}
			before := js.CachedInfo().Config
			config := before
			change(&config)
			if _, err := b.js.UpdateConsumer(t.Context(), b.o.Stream, config); err != nil {
				t.Fatal(err)
			}
			late := createdEvent("2")
			late.ID = "late"
			publish(t, b, late)
			said.wait(t, "somebody has changed the consumer")
			eventually(t, "the event that came meanwhile is done", func() bool { return handled.Load() && pending(t, b, MainConsumer) == 0 })
			eventually(t, "the consumer is as before", func() bool { // it is told before it is done
				info, err := js.Info(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				return cmp.Equal(before, info.Config)
			})
		})
	}
}

func TestAConsumerThatWasChangedWhileNobodyConsumedLosesNoEvent(t *testing.T) {
	t.Parallel()
	b := startBus(t)
	if _, err := b.js.CreateConsumer(t.Context(), b.o.Stream, jetstream.ConsumerConfig{
		Durable: MainConsumer, FilterSubjects: []string{"papermap.events.usage.sync"}, AckPolicy: jetstream.AckExplicitPolicy,
	}); err != nil {
		t.Fatal(err)
	}
	publish(t, b, createdEvent("1"))
	c := b.MainConsumer(4, time.Second)
	var handled atomic.Bool
	c.Handle = func(context.Context, Event) error { handled.Store(true); return nil }
	consume(t, c)
	eventually(t, "the event is done", handled.Load)
}

func TestStopGivesBackAtOnceWhatIsNotBegunAndFinishesTheRest(t *testing.T) {
	t.Parallel()
	b := startBus(t)
	c := b.MainConsumer(1, 10*time.Second)
	begun, release := make(chan struct{}), make(chan struct{})
	c.Handle = func(ctx context.Context, _ Event) error {
		close(begun)
		<-release
		return ctx.Err()
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { c.Run(ctx); close(done) }()
	publish(t, b, createdEvent("1"))
	publish(t, b, createdEvent("2"))
	<-begun
	stop()
	select {
	case <-done:
		t.Fatal("stopped with an event in hand")
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	<-done
	if n := pending(t, b, MainConsumer); n != 1 {
		t.Errorf("%d events are left, want the one that was not begun", n)
	}
}

func TestHandlerIsToldWhenTheGraceIsOver(t *testing.T) {
	t.Parallel()
	b := startBus(t)
	c := b.MainConsumer(1, 20*time.Millisecond)
	begun := make(chan struct{})
	c.Handle = func(ctx context.Context, _ Event) error {
		close(begun)
		<-ctx.Done()
		return ctx.Err()
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { c.Run(ctx); close(done) }()
	publish(t, b, createdEvent("1"))
	<-begun
	stop()
	<-done
	if n := pending(t, b, MainConsumer); n != 1 {
		t.Errorf("%d events are left, want the one that was given up", n)
	}
}

func TestMistypedSubjectIsRefusedByTheStream(t *testing.T) {
	t.Parallel()
	b := startBus(t)
	if _, err := b.js.Publish(t.Context(), "papermap.events.tenant.create", []byte("{}")); !errors.Is(err, jetstream.ErrNoStreamResponse) {
		t.Errorf("published to a mistyped subject: %v", err)
	}
}

func TestStreamOfOtherSubjectsIsNamed(t *testing.T) {
	t.Parallel()
	b := startBus(t)
	stream, err := b.js.Stream(t.Context(), b.o.Stream)
	if err != nil {
		t.Fatal(err)
	}
	config := stream.CachedInfo().Config
	config.Subjects = config.Subjects[:3]
	if _, err := b.js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	if err := b.EnsureStreams(t.Context()); err == nil {
		t.Error("a stream that does not take all subjects was accepted")
	}
}

func TestPatternTakesSubject(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		pattern, subject string
		want             bool
	}{
		{"a.b", "a.b", true}, {"a.b", "a.c", false}, {"a.b", "a", false}, {"a", "a.b", false}, {"a.*", "a.b", true}, {"a.*", "a.b.c", false},
		{"a.>", "a.b.c", true}, {"a.>", "a", false}, {">", "a.b", true}, {"a.>", "a.>", true}, {"a.*", "a.>", false}, {"a.b.>", "a.>", false},
	} {
		if got := taken([]string{test.pattern}, test.subject); got != test.want {
			t.Errorf("taken(%q, %q) = %v", test.pattern, test.subject, got)
		}
	}
}

func TestDelayGrowsAndStaysShortEnoughForRecovery(t *testing.T) {
	t.Parallel()
	for n := range 100 {
		for range 20 {
			d := Delay(n)
			least, most := time.Duration(float64(MaxDelay)*0.8), time.Duration(float64(MaxDelay)*1.2)
			if n <= 1 {
				least, most = 800*time.Millisecond, 1200*time.Millisecond
			} else if n < 5 {
				least = time.Second
			}
			if d < least || d > most {
				t.Fatalf("Delay(%d) = %v", n, d)
			}
		}
	}
}

func TestTheOldestEventThatWaitsIsOneThatTheConsumerTakes(t *testing.T) {
	t.Parallel()
	b := startBus(t)
	settled := make(chan string, 10)
	for _, c := range []*Consumer{b.MainConsumer(4, time.Second), b.AccessConsumer(4, time.Second)} {
		c.Handle = func(_ context.Context, e Event) error {
			if e.TenantID() == "waits" {
				return &Retry{After: time.Hour, Err: errors.New("later")}
			}
			return nil
		}
		c.Settled = func(eventType, _ string, _ time.Duration) { settled <- eventType }
		consume(t, c)
	}
	oldest := func() map[string]time.Duration {
		t.Helper()
		list, _, err := b.Backlog(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ages := map[string]time.Duration{}
		for _, waits := range list {
			ages[waits.Consumer] = waits.Oldest
		}
		return ages
	}
	publish(t, b, createdEvent("org-1"))
	<-settled
	out, err := Structured("out", TypeDashboardCreated, "org-1", time.Now(), []byte(`{"tenant_id":"org-1","workspace_id":"w","dashboard_id":"d","title":"x"}`))
	if err != nil {
		t.Fatal(err)
	}
	publish(t, b, out)
	publish(t, b, Outgoing{Type: TypeTenantDeleted, Data: []byte(`{"tenant_id":"org-1"}`)})
	<-settled
	const apart = 500 * time.Millisecond
	published := time.Now()
	eventually(t, "the event out is older than the next event in", func() bool { return time.Since(published) > apart })
	if ages := oldest(); ages[MainConsumer] != 0 || ages[AccessConsumer] != 0 {
		t.Errorf("when nothing waits: %v", ages)
	}
	publish(t, b, createdEvent("waits"))
	<-settled
	publish(t, b, createdEvent("org-2"))
	<-settled
	if ages := oldest(); ages[MainConsumer] <= 0 || ages[MainConsumer] >= apart || ages[AccessConsumer] != 0 {
		t.Errorf("the main consumer's newest waits: %v", ages)
	}
}
