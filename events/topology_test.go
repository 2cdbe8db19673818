package events

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
)

func TestStreamRefusesAMistypedSubject(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		if _, err := b.js.Publish(t.Context(), "papermap.events.tenant.create",
			[]byte("{}")); !errors.Is(err, jetstream.ErrNoStreamResponse) {
			t.Errorf("published to a mistyped subject: %v", err)
		}
	})
}

func TestEnsureStreamsNamesAMissingSubject(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
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
	})
}

func TestConsumerRestoresChangedSettingsAndLosesNoEvent(t *testing.T) {
	for name, change := range map[string]func(*jetstream.ConsumerConfig){
		"filter":     func(config *jetstream.ConsumerConfig) { config.FilterSubjects = []string{"papermap.events.usage.sync"} },
		"deliveries": func(config *jetstream.ConsumerConfig) { config.MaxDeliver = 1 },
		"ack wait":   func(config *jetstream.ConsumerConfig) { config.AckWait = time.Hour },
	} {
		t.Run(name, func(t *testing.T) {
			virtually(t, func(t *testing.T, b *Bus) {
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
				said.wait(t, "the consumer's settings were changed")
				eventually(t, "the event that came meanwhile is done",
					func() bool { return handled.Load() && pending(t, b, MainConsumer) == 0 })
				eventually(t, "the consumer is as before", func() bool { // it is told before it is done
					info, err := js.Info(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					return cmp.Equal(before, info.Config)
				})
			})
		})
	}
}

func TestConsumerChangedBeforeStartLosesNoEvent(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		if _, err := b.js.CreateConsumer(t.Context(), b.o.Stream, jetstream.ConsumerConfig{
			Durable: MainConsumer, FilterSubjects: []string{"papermap.events.usage.sync"},
			AckPolicy: jetstream.AckExplicitPolicy,
		}); err != nil {
			t.Fatal(err)
		}
		publish(t, b, createdEvent("1"))
		c := b.MainConsumer(4, time.Second)
		var handled atomic.Bool
		c.Handle = func(context.Context, Event) error { handled.Store(true); return nil }
		consume(t, c)
		eventually(t, "the event is done", handled.Load)
	})
}

func TestCheckVersion(t *testing.T) {
	t.Parallel()
	for version, enough := range map[string]bool{
		"2.10.0": true, "2.10.29": true, "2.11.0-RC.1": true, "2.15.2": true, "3.0.0": true,
		"v2.10.0": true, "2.100.0": true, "10.0.0": true,
		"2.9.25": false, "2.9.99-beta": false, "2.0.0": false, "1.4.1": false, "v2.9.0": false, "2.9": false,
		"": true, "dev": true, "2": true, // unreadable: let it try
	} {
		if err := checkVersion(version); (err == nil) != enough {
			t.Errorf("%q: error %v", version, err)
		} else if err != nil && (!strings.Contains(err.Error(), version) ||
			!strings.Contains(err.Error(), "2.10")) {
			t.Errorf("%q: the error does not name both versions: %v", version, err)
		}
	}
}

func TestEnsureStreamsRefusesAnOldServerBeforeUsingIt(t *testing.T) {
	t.Parallel()
	s := runServer(t, "")
	old := pretendVersion(t, s, "2.9.25")
	err := tryConnect(t, workerOptions(s, Options{URL: "nats://" + old}), 10*time.Second)
	if err == nil || !strings.Contains(err.Error(), "2.9.25") || !strings.Contains(err.Error(), "2.10") ||
		!strings.Contains(err.Error(), "upgrade") {
		t.Errorf("error %v", err)
	}
	if info, err := s.Jsz(nil); err != nil || info.Streams != 0 {
		t.Errorf("%+v, %v: no stream should have been made on it", info, err)
	}
}

// pretendVersion relays one connection to the server, which it makes one of another version.
func pretendVersion(t *testing.T, s *server.Server, version string) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		client, err := l.Accept()
		if err != nil {
			return
		}
		defer client.Close()
		upstream, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			return
		}
		defer upstream.Close()
		go func() {
			_, _ = io.Copy(upstream, client)
			_ = upstream.Close()
		}()
		for answers := bufio.NewReader(upstream); err == nil; {
			var line string
			if line, err = answers.ReadString('\n'); strings.HasPrefix(line, "INFO ") { // the server repeats it
				line = strings.Replace(line, server.VERSION, version, 1)
			}
			_, _ = io.WriteString(client, line)
		}
	}()
	return l.Addr().String()
}

// The same finding stops EnsureStreams, without which nothing is consumed, and is reported by Check.
func TestEnsureStreamsFailsByTheFatalFindingsOfCheck(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*jetstream.StreamConfig)
		want   string
		fatal  bool
	}{
		"subjects": {func(s *jetstream.StreamConfig) { s.Subjects = s.Subjects[1:] },
			"it does not take subject papermap.events.tenant.created", true},
		"retention": {func(s *jetstream.StreamConfig) { s.Retention = jetstream.InterestPolicy },
			"its retention is Interest", true},
		"storage": {func(s *jetstream.StreamConfig) { s.Storage = jetstream.MemoryStorage },
			"it is kept in memory", false},
		"discard": {func(s *jetstream.StreamConfig) { s.Discard = jetstream.DiscardOld },
			"when it is full it drops old events", false},
		"age": {func(s *jetstream.StreamConfig) { s.MaxAge = time.Minute },
			"it keeps events for 1m0s", false},
		"wider": {func(s *jetstream.StreamConfig) { s.Subjects = []string{"papermap.events.>"} },
			"it takes papermap.events.> as well", false},
	} {
		t.Run(name, func(t *testing.T) {
			virtually(t, func(t *testing.T, b *Bus) {
				config := b.streams()[0].config()
				c.change(&config)
				if err := b.js.DeleteStream(t.Context(), config.Name); err != nil {
					t.Fatal(err)
				}
				if _, err := b.js.CreateStream(t.Context(), config); err != nil {
					t.Fatal(err)
				}
				i := slices.IndexFunc(b.Check(t.Context()), func(f Finding) bool {
					return f.Check == "stream PAPERMAP" && f.Fatal == c.fatal && f.Fix != "" &&
						strings.HasPrefix(f.Found, c.want)
				})
				err := b.EnsureStreams(t.Context())
				if i < 0 || c.fatal != (err != nil && strings.Contains(err.Error(), c.want)) {
					t.Errorf("Check: %+v; EnsureStreams: %v", b.Check(t.Context()), err)
				}
			})
		})
	}
}

func TestCheckFindsNothingWrongWithWhatTheWorkerMade(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		for _, c := range []*Consumer{b.MainConsumer(1, 0), b.AccessConsumer(1, 0)} {
			if _, err := c.ensure(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		list := b.Check(t.Context())
		if len(list) != 7 {
			t.Errorf("%d findings, want 7", len(list))
		}
		for _, f := range list {
			if f.Fix != "" || f.Fatal {
				t.Errorf("%+v", f)
			}
		}
	})
}

func TestConsumerStoresADeadLetterOfAForeignSubject(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		config := b.streams()[0].config()
		config.Subjects = append(config.Subjects, "x", "papermap.other.y")
		if _, err := b.js.UpdateStream(t.Context(), config); err != nil {
			t.Fatal(err)
		}
		c := b.MainConsumer(1, time.Second) // it has no handler: nothing gets that far
		consume(t, c)
		eventually(t, "it consumes", c.Healthy)
		js, err := b.js.Consumer(t.Context(), b.o.Stream, MainConsumer)
		if err != nil {
			t.Fatal(err)
		}
		changed := js.CachedInfo().Config
		changed.FilterSubjects = []string{"x", "papermap.other.y"}
		if _, err := b.js.UpdateConsumer(t.Context(), b.o.Stream, changed); err != nil {
			t.Fatal(err)
		}
		for _, subject := range changed.FilterSubjects {
			if _, err := b.js.Publish(t.Context(), subject, []byte("{}")); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "both are dead letters", func() bool { return len(deadLetters(t, b)) == 2 })
		for i, d := range deadLetters(t, b) {
			if d.Code != codeType || d.Type != changed.FilterSubjects[i] {
				t.Errorf("%+v", d)
			}
		}
	})
}
