package events

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"reflect"
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

func TestConsumerRestoresChangedSettingsAndLosesNoEvent(t *testing.T) {
	for name, change := range map[string]func(*jetstream.ConsumerConfig){
		"filter": func(config *jetstream.ConsumerConfig) {
			config.FilterSubjects = []string{"papermap.events.usage.sync"}
		},
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
			// The server repeats its INFO.
			if line, err = answers.ReadString('\n'); strings.HasPrefix(line, "INFO ") {
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
			"discard is old: when it is full it drops old events", true},
		"age": {func(s *jetstream.StreamConfig) { s.MaxAge = time.Minute },
			"it keeps events for 1m0s", false},
		"wider": {func(s *jetstream.StreamConfig) { s.Subjects = []string{"papermap.events.>"} },
			"it takes papermap.events.> as well", false},
	} {
		t.Run(name, func(t *testing.T) {
			virtually(t, func(t *testing.T, b *Bus) {
				b.o.ManageStreams = false
				config := b.streams()[0].config()
				c.change(&config)
				if err := b.js.DeleteStream(t.Context(), config.Name); err != nil {
					t.Fatal(err)
				}
				if _, err := b.js.CreateStream(t.Context(), config); err != nil {
					t.Fatal(err)
				}
				i := slices.IndexFunc(b.Check(t.Context(), nil), func(f Finding) bool {
					return f.Check == "stream PAPERMAP" && f.Fatal == c.fatal && f.Fix != "" &&
						strings.HasPrefix(f.Found, c.want)
				})
				err := b.EnsureStreams(t.Context())
				if i < 0 || c.fatal != (err != nil && strings.Contains(err.Error(), c.want)) {
					t.Errorf("Check: %+v; EnsureStreams: %v", b.Check(t.Context(), nil), err)
				}
			})
		})
	}
}

func TestCheckFindsNothingWrongWithWhatTheWorkerMade(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		if _, err := b.supervise(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		list := b.Check(t.Context(), nil)
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

// Every field of a stream's settings is judged: by a name here, or because it is harmless.
func TestCheckJudgesEverySettingOfAStream(t *testing.T) {
	t.Parallel()
	b := &Bus{o: Options{Subjects: Subjects{"papermap"}, Stream: "PAPERMAP", Replicas: 1, MaxAge: time.Hour}}
	type settings = jetstream.StreamConfig
	type verdict struct {
		found string // empty: harmless
		fatal bool
	}
	const fatal = true
	unjudged := map[string]bool{}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[settings]()) {
		unjudged[f.Name] = true
	}
	stateOf := jetstream.StreamState{Msgs: 1000, Bytes: 1 << 20}
	for field, c := range map[string]struct {
		set  func(*settings)
		want verdict
		dead bool // of the stream of dead letters
	}{
		"Name":        {func(s *settings) {}, verdict{}, false},
		"Description": {func(s *settings) { s.Description = "x" }, verdict{}, false},
		"Subjects": {func(s *settings) { s.Subjects = s.Subjects[1:] },
			verdict{"it does not take subject", fatal}, false},
		"Retention": {func(s *settings) { s.Retention = jetstream.WorkQueuePolicy },
			verdict{"its retention is WorkQueue", fatal}, false},
		"MaxConsumers": {func(s *settings) { s.MaxConsumers = 1 },
			verdict{"max_consumers is 1", fatal}, false},
		"MaxMsgs": {func(s *settings) { s.MaxMsgs = 1000 }, verdict{"it is full", fatal}, false},
		"MaxMsgs, nearly": {func(s *settings) { s.MaxMsgs = 1050 },
			verdict{"it is nearly full", false}, true},
		"MaxBytes": {func(s *settings) { s.MaxBytes = 1<<20 + 100 },
			verdict{"it is full", fatal}, true},
		"MaxBytes, room": {func(s *settings) { s.MaxBytes = 1 << 30 }, verdict{}, true},
		"Discard": {func(s *settings) { s.Discard = jetstream.DiscardOld },
			verdict{"discard is old", fatal}, true},
		"DiscardNewPerSubject": {func(s *settings) { s.MaxMsgsPerSubject, s.DiscardNewPerSubject = 9, true },
			verdict{"max_msgs_per_subject is 9", fatal}, false},
		"MaxAge": {func(s *settings) { s.MaxAge = time.Minute },
			verdict{"it keeps events for 1m0s", false}, false},
		"MaxAge, dead letters": {func(s *settings) { s.MaxAge = time.Minute },
			verdict{"it keeps messages for 1m0s only", false}, true},
		"MaxMsgsPerSubject": {func(s *settings) { s.MaxMsgsPerSubject = 1 },
			verdict{"max_msgs_per_subject is 1", fatal}, true},
		"MaxMsgSize": {func(s *settings) { s.MaxMsgSize = 16<<10 - 1 },
			verdict{"max_msg_size is 16383 bytes", fatal}, true},
		"MaxMsgSize, enough": {func(s *settings) { s.MaxMsgSize = 16 << 10 }, verdict{}, true},
		"Storage": {func(s *settings) { s.Storage = jetstream.MemoryStorage },
			verdict{"it is kept in memory", false}, false},
		"Replicas": {func(s *settings) { s.Replicas = 3 },
			verdict{"it has 3 replicas", false}, false},
		"NoAck": {func(s *settings) { s.NoAck = true },
			verdict{"no_ack is set", fatal}, false},
		"Duplicates": {func(s *settings) { s.Duplicates = time.Second },
			verdict{"duplicate_window is 1s", false}, false},
		"Placement": {func(s *settings) { s.Placement = &jetstream.Placement{Cluster: "x"} },
			verdict{}, false},
		"Mirror": {func(s *settings) { s.Mirror = &jetstream.StreamSource{Name: "x"} },
			verdict{"it is a mirror", fatal}, false},
		"Sources": {func(s *settings) { s.Sources = []*jetstream.StreamSource{{Name: "x"}} },
			verdict{"it takes the messages of other streams", false}, false},
		"Sealed": {func(s *settings) { s.Sealed = true }, verdict{"it is sealed", fatal}, true},
		"DenyDelete": {func(s *settings) { s.DenyDelete = true },
			verdict{"deny_delete is set", false}, true},
		"DenyPurge": {func(s *settings) { s.DenyPurge = true }, verdict{}, true},
		"AllowRollup": {func(s *settings) { s.AllowRollup = true },
			verdict{"allow_rollup_hdrs is set", fatal}, true},
		"Compression": {func(s *settings) { s.Compression = jetstream.S2Compression },
			verdict{}, false},
		"FirstSeq": {func(s *settings) { s.FirstSeq = 7 }, verdict{}, false},
		"SubjectTransform": {func(s *settings) {
			s.SubjectTransform = &jetstream.SubjectTransformConfig{}
		}, verdict{"subject_transform is set", fatal}, true},
		"RePublish": {func(s *settings) { s.RePublish = &jetstream.RePublish{} },
			verdict{"republish is set", fatal}, true},
		"AllowDirect":  {func(s *settings) { s.AllowDirect = true }, verdict{}, true},
		"MirrorDirect": {func(s *settings) { s.MirrorDirect = true }, verdict{}, true},
		"ConsumerLimits": {func(s *settings) { s.ConsumerLimits.MaxAckPending = 5 },
			verdict{"max_ack_pending of its consumers is 5", fatal}, false},
		"Metadata": {func(s *settings) { s.Metadata = map[string]string{"a": "b"} },
			verdict{}, false},
		"Template": {func(s *settings) { s.Template = "x" }, verdict{}, false},
		"AllowMsgTTL": {func(s *settings) { s.AllowMsgTTL = true },
			verdict{"allow_msg_ttl is set", fatal}, true},
		"SubjectDeleteMarkerTTL": {func(s *settings) { s.SubjectDeleteMarkerTTL = time.Hour },
			verdict{"subject_delete_marker_ttl is set", fatal}, false},
		"AllowMsgCounter": {func(s *settings) { s.AllowMsgCounter = true },
			verdict{"allow_msg_counter is set", fatal}, false},
		"AllowAtomicPublish": {func(s *settings) { s.AllowAtomicPublish = true }, verdict{}, false},
		"AllowBatchPublish":  {func(s *settings) { s.AllowBatchPublish = true }, verdict{}, false},
		"AllowMsgSchedules": {func(s *settings) { s.AllowMsgSchedules = true },
			verdict{"allow_msg_schedules is set", fatal}, false},
		"PersistMode": {func(s *settings) { s.PersistMode = jetstream.AsyncPersistMode },
			verdict{"persist_mode is async", fatal}, false},
	} {
		s := b.streams()[0]
		if c.dead {
			s = b.streams()[1]
		}
		config := s.config()
		config.Duplicates = 2 * time.Minute // as the server sets it
		c.set(&config)
		list := s.check(&jetstream.StreamInfo{Config: config, State: stateOf})
		switch {
		case c.want.found == "" && len(list) == 0:
		case len(list) == 1 && c.want.found != "" && strings.HasPrefix(list[0].Found, c.want.found) &&
			list[0].Fatal == c.want.fatal && list[0].Fix != "":
		default:
			t.Errorf("%s: %+v, want %+v", field, list, c.want)
		}
		delete(unjudged, strings.Split(field, ",")[0])
	}
	if len(unjudged) > 0 {
		t.Errorf("no verdict on %v", slices.Sorted(maps.Keys(unjudged)))
	}
}
