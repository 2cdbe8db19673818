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
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// snapshot returns a stream as `nats stream backup` does, and a function that restores it.
func snapshot(t *testing.T, b *Bus, name string) (restore func()) {
	t.Helper()
	api := func(call string, request, reply any) {
		t.Helper()
		data, err := json.Marshal(request)
		if err != nil {
			t.Fatal(err)
		}
		m, err := b.nc.RequestWithContext(t.Context(), b.api(call+"."+name), data)
		if err == nil {
			err = json.Unmarshal(m.Data, reply)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	inbox := nats.NewInbox()
	sub, err := b.nc.SubscribeSync(inbox)
	if err != nil {
		t.Fatal(err)
	}
	var taken struct {
		Config jsontext.Value `json:"config"`
		State  jsontext.Value `json:"state"`
	}
	api("STREAM.SNAPSHOT", map[string]any{"deliver_subject": inbox}, &taken)
	var chunks [][]byte
	for {
		m, err := sub.NextMsgWithContext(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(m.Data) == 0 {
			break
		}
		chunks = append(chunks, m.Data)
		if m.Reply != "" {
			if err := m.Respond(nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	return func() {
		t.Helper()
		var started struct {
			Subject string              `json:"deliver_subject"`
			Error   *jetstream.APIError `json:"error"`
		}
		api("STREAM.RESTORE", map[string]any{"config": taken.Config, "state": taken.State}, &started)
		if started.Error != nil {
			t.Fatal(started.Error)
		}
		for _, chunk := range append(chunks, nil) {
			m, err := b.nc.RequestWithContext(t.Context(), started.Subject, chunk)
			if err != nil || bytes.Contains(m.Data, []byte(`"error"`)) {
				t.Fatalf("%v, %s", err, m.Data)
			}
		}
	}
}

func recreateStream(t *testing.T, b *Bus) {
	t.Helper()
	time.Sleep(time.Millisecond) // a stream is known by the time at which it was created
	if err := b.js.DeleteStream(t.Context(), b.o.Stream); err != nil {
		t.Fatal(err)
	}
	if _, err := b.js.CreateStream(t.Context(), b.streams()[0].config()); err != nil {
		t.Fatal(err)
	}
}

// A new event gets the sequence of one that is in flight. Whatever its handler returns, and however
// long it takes, nothing of that must reach the new event, which waits for a retry.
func TestOutcomeOfAnEventNeverReachesARecreatedStream(t *testing.T) {
	for name, outcome := range map[string]error{
		"acknowledge": nil, "terminate": &Permanent{Code: "X", Err: errors.New("no")},
		"delay": &Retry{After: time.Hour, Err: errors.New("later")},
	} {
		for when, restored := range map[string]bool{"made again": false, "restored from a snapshot": true} {
			for _, takes := range []time.Duration{0, 8 * time.Second, time.Minute} {
				t.Run(fmt.Sprint(name, ", ", when, ", ", takes), func(t *testing.T) {
					virtually(t, func(t *testing.T, b *Bus) {
						testOutcomeOfAnotherStream(t, b, outcome, restored, takes)
					})
				})
			}
		}
	}
}

func testOutcomeOfAnotherStream(t *testing.T, b *Bus, outcome error, restored bool, takes time.Duration) {
	c := b.MainConsumer(4, time.Second)
	started, release := make(chan struct{}), make(chan struct{})
	var deliveries, done atomic.Int32
	var old atomic.Int64 // when the old event was stored, which acknowledgements repeat
	c.Handle = func(_ context.Context, e Event) error {
		switch {
		case e.TenantID() == "old" && old.CompareAndSwap(0, e.Stored.UnixNano()):
			close(started)
			<-release
			return outcome
		case e.TenantID() == "new" && deliveries.Add(1) == 1:
			return &Retry{After: 12 * time.Second, Err: errors.New("asked to wait")}
		case e.TenantID() == "new":
			done.Add(1)
		}
		return nil
	}
	finish := sync.OnceFunc(func() { close(release) })
	restore := snapshot(t, b, b.o.Stream)
	b.o.ManageStreams = !restored // or the worker makes the stream before it can be restored
	consume(t, c)
	t.Cleanup(finish)
	publish(t, b, createdEvent("old"))
	<-started
	if restored {
		if err := b.js.DeleteStream(t.Context(), b.o.Stream); err != nil {
			t.Fatal(err)
		}
		restore()
	} else {
		recreateStream(t, b)
	}
	settled, err := b.nc.SubscribeSync("$JS.ACK." + b.o.Stream + "." + MainConsumer + ".>")
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second) // or both events would be stored in the same instant
	publish(t, b, createdEvent("new"))
	eventually(t, "the new event was delivered", func() bool { return deliveries.Load() > 0 })
	time.Sleep(takes)
	finish()
	eventually(t, "the new event is handled", func() bool {
		return done.Load() > 0 && pending(t, b, MainConsumer) == 0
	})
	for {
		m, err := settled.NextMsg(time.Second)
		if err != nil {
			break
		}
		if strings.Contains(m.Subject, fmt.Sprint(old.Load())) {
			t.Errorf("told the new stream of the old event: %s %s", m.Subject, m.Data)
		}
	}
}

// The window between a look at the stream and the acknowledgement cannot be closed: a process may sleep
// in it. What was removed by then is delivered again.
func TestConsumersOfARecreatedStreamStartOver(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		c := b.MainConsumer(4, time.Second)
		var old, after atomic.Int32
		c.Handle = func(_ context.Context, e Event) error {
			if e.TenantID() == "old" {
				old.Add(1)
				return nil
			}
			if after.Add(1) == 1 {
				return &Retry{After: time.Hour, Err: errors.New("later")}
			}
			return nil
		}
		consume(t, c)
		publish(t, b, createdEvent("old"))
		eventually(t, "it is handled", func() bool {
			return old.Load() == 1 && pending(t, b, MainConsumer) == 0
		})
		recreateStream(t, b)
		other := connectBus(t, b.o) // another worker makes the consumers of the new stream
		if _, err := other.supervise(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		publish(t, b, createdEvent("new"))
		js, err := b.js.Consumer(t.Context(), b.o.Stream, MainConsumer)
		if err != nil {
			t.Fatal(err)
		}
		batch, err := js.Fetch(1)
		if err != nil {
			t.Fatal(err)
		}
		for m := range batch.Messages() { // as by the number of the old event
			if err := m.Ack(); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "the new event is delivered all the same", func() bool { return after.Load() > 0 })
	})
}

func TestEachStreamIsRecreatedWhileTheWorkerRuns(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		c := b.AccessConsumer(4, time.Second)
		c.Handle = func(context.Context, Event) error { return nil }
		consume(t, c)
		for _, s := range b.streams() {
			eventually(t, "it consumes", c.Healthy)
			if err := b.js.DeleteStream(t.Context(), s.name); err != nil {
				t.Fatal(err)
			}
			eventually(t, s.name+" is back", func() bool {
				_, err := b.js.Stream(t.Context(), s.name)
				return err == nil
			})
		}
		publish(t, b, Outgoing{Type: TypeTenantDeleted, Data: []byte("poison")})
		eventually(t, "a bad event is a dead letter", func() bool {
			return len(deadLetters(t, b)) == 1 && pending(t, b, AccessConsumer) == 0
		})
	})
}

// Settings that are unknown to the client library must stay as well, so the whole answer is compared.
func TestMissingSubjectsAreAddedAndNothingElseIsChanged(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		for _, s := range b.streams() {
			config := s.config()
			config.Subjects, config.Description, config.MaxMsgs = []string{"other." + s.name}, "ours", 10
			config.Metadata = map[string]string{"team": "x"}
			if err := b.js.DeleteStream(t.Context(), s.name); err != nil {
				t.Fatal(err)
			}
			stream, err := b.js.CreateStream(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			want := stream.CachedInfo().Config
			if err := b.EnsureStreams(t.Context()); err != nil {
				t.Fatal(err)
			}
			info, err := stream.Info(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			want.Subjects = append(want.Subjects, s.subjects...)
			if diff := cmp.Diff(want, info.Config); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		}
	})
}

func TestWithoutManagedStreamsNoSubjectIsAdded(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		b.o.ManageStreams = false
		config := b.streams()[0].config()
		config.Subjects = config.Subjects[1:]
		if _, err := b.js.UpdateStream(t.Context(), config); err != nil {
			t.Fatal(err)
		}
		if err := b.EnsureStreams(t.Context()); err == nil {
			t.Error("a stream that does not take all subjects was accepted")
		}
	})
}

// Events out wait in the outbox until somebody adds the subject.
func TestMissingSubjectOfEventsOutStopsNothing(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		b.o.ManageStreams = false
		config := b.streams()[0].config()
		config.Subjects = b.o.Subjects.of(TypesIn())
		if _, err := b.js.UpdateStream(t.Context(), config); err != nil {
			t.Fatal(err)
		}
		if err := b.EnsureStreams(t.Context()); err != nil {
			t.Error(err)
		}
		c := b.MainConsumer(1, time.Second)
		var handled atomic.Bool
		c.Handle = func(context.Context, Event) error { handled.Store(true); return nil }
		consume(t, c)
		publish(t, b, createdEvent("a"))
		eventually(t, "it is handled", handled.Load)
		want := Finding{"stream PAPERMAP", "it does not take subject papermap.events.usage.synced",
			"add the subject: nats stream edit PAPERMAP", false}
		if list := b.CheckTopology(t.Context()); !contains(list, want) {
			t.Errorf("%+v", list)
		}
	})
}

func contains(list []Finding, want Finding) bool {
	for _, f := range list {
		if f == want {
			return true
		}
	}
	return false
}

// A stream that may lose events loses more of them while nobody takes them out.
func TestConsumerGoesOnWithAStreamThatMayLoseEvents(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		said := make(logged, 100)
		b.log = slog.New(slog.NewTextHandler(said, nil))
		c := b.MainConsumer(1, time.Second)
		var handled atomic.Int32
		c.Handle = func(context.Context, Event) error { handled.Add(1); return nil }
		consume(t, c)
		config := b.streams()[0].config()
		config.Discard = jetstream.DiscardOld
		if _, err := b.js.UpdateStream(t.Context(), config); err != nil {
			t.Fatal(err)
		}
		said.wait(t, "discard is old")
		publish(t, b, createdEvent("a"))
		eventually(t, "it is handled", func() bool { return handled.Load() == 1 })
		config.Discard = jetstream.DiscardNew
		if _, err := b.js.UpdateStream(t.Context(), config); err != nil {
			t.Fatal(err)
		}
		said.wait(t, "streams are configured correctly")
	})
}

// Each is made by somebody before the worker starts, and an event is there that it may pass over.
func TestConsumerOfAnySettingsIsPutRight(t *testing.T) {
	future := time.Now().AddDate(100, 0, 0)
	for name, change := range map[string]func(*jetstream.ConsumerConfig){
		"deliver new":      func(c *jetstream.ConsumerConfig) { c.DeliverPolicy = jetstream.DeliverNewPolicy },
		"deliver last":     func(c *jetstream.ConsumerConfig) { c.DeliverPolicy = jetstream.DeliverLastPolicy },
		"last per subject": func(c *jetstream.ConsumerConfig) { c.DeliverPolicy = jetstream.DeliverLastPerSubjectPolicy },
		"by start sequence": func(c *jetstream.ConsumerConfig) {
			c.DeliverPolicy, c.OptStartSeq = jetstream.DeliverByStartSequencePolicy, 100
		},
		"by start time": func(c *jetstream.ConsumerConfig) {
			c.DeliverPolicy, c.OptStartTime = jetstream.DeliverByStartTimePolicy, &future
		},
		"ack all": func(c *jetstream.ConsumerConfig) { c.AckPolicy = jetstream.AckAllPolicy },
		"ack none": func(c *jetstream.ConsumerConfig) {
			c.AckPolicy, c.AckWait, c.MaxAckPending = jetstream.AckNonePolicy, 0, 0
		},
		"replay original": func(c *jetstream.ConsumerConfig) { c.ReplayPolicy = jetstream.ReplayOriginalPolicy },
		"ack wait":        func(c *jetstream.ConsumerConfig) { c.AckWait = time.Hour },
		"max deliver":     func(c *jetstream.ConsumerConfig) { c.MaxDeliver = 1 },
		"backoff":         func(c *jetstream.ConsumerConfig) { c.MaxDeliver, c.BackOff = 3, []time.Duration{time.Hour} },
		"one filter": func(c *jetstream.ConsumerConfig) {
			c.FilterSubjects, c.FilterSubject = nil, "papermap.events.usage.sync"
		},
		"wide filter":        func(c *jetstream.ConsumerConfig) { c.FilterSubjects, c.FilterSubject = nil, "papermap.events.>" },
		"no filter":          func(c *jetstream.ConsumerConfig) { c.FilterSubjects = nil },
		"headers only":       func(c *jetstream.ConsumerConfig) { c.HeadersOnly = true },
		"max ack pending":    func(c *jetstream.ConsumerConfig) { c.MaxAckPending = 1 },
		"max waiting":        func(c *jetstream.ConsumerConfig) { c.MaxWaiting = 1 },
		"request batch":      func(c *jetstream.ConsumerConfig) { c.MaxRequestBatch = 1 },
		"request expires":    func(c *jetstream.ConsumerConfig) { c.MaxRequestExpires = time.Millisecond },
		"request bytes":      func(c *jetstream.ConsumerConfig) { c.MaxRequestMaxBytes = 1 },
		"inactive threshold": func(c *jetstream.ConsumerConfig) { c.InactiveThreshold = time.Hour },
		"in memory":          func(c *jetstream.ConsumerConfig) { c.MemoryStorage = true },
		"sampled":            func(c *jetstream.ConsumerConfig) { c.SampleFrequency = "100" },
		"description":        func(c *jetstream.ConsumerConfig) { c.Description = "mine" },
		"push":               func(c *jetstream.ConsumerConfig) { c.DeliverSubject, c.MaxWaiting = "somewhere", 0 },
		"priority groups": func(c *jetstream.ConsumerConfig) {
			c.PriorityPolicy, c.PriorityGroups = jetstream.PriorityPolicyOverflow, []string{"a"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			virtually(t, func(t *testing.T, b *Bus) {
				if _, err := b.supervise(t.Context(), 0); err != nil {
					t.Fatal(err)
				}
				js, err := b.js.Consumer(t.Context(), b.o.Stream, MainConsumer)
				if err != nil {
					t.Fatal(err)
				}
				want := js.CachedInfo().Config
				if err := b.js.DeleteConsumer(t.Context(), b.o.Stream, MainConsumer); err != nil {
					t.Fatal(err)
				}
				config := b.consumerConfig(MainConsumer)
				change(&config)
				if _, err := b.js.CreateConsumer(t.Context(), b.o.Stream, config); errors.Is(err,
					jetstream.ErrNotPullConsumer) {
					t.Log("the library returns this for a push consumer that it made")
				} else if err != nil {
					t.Fatal(err)
				}
				publish(t, b, createdEvent("a"))
				c := b.MainConsumer(4, time.Second)
				var handled atomic.Int32
				c.Handle = func(context.Context, Event) error { handled.Add(1); return nil }
				consume(t, c)
				eventually(t, "the event is handled", func() bool { return handled.Load() > 0 })
				again, err := b.js.Consumer(t.Context(), b.o.Stream, MainConsumer)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, again.CachedInfo().Config); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
				if dead := deadLetters(t, b); len(dead) > 0 {
					t.Errorf("a dead letter: %s", dead[0].Error)
				}
			})
		})
	}
}

// Whether to pause is an operator's decision: the worker says so, and leaves it.
func TestPausedConsumerIsAFatalFindingAndStaysPaused(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		c := b.MainConsumer(4, time.Second)
		var handled atomic.Int32
		c.Handle = func(context.Context, Event) error { handled.Add(1); return nil }
		stream, err := b.js.Stream(t.Context(), b.o.Stream)
		if err != nil {
			t.Fatal(err)
		}
		config := b.consumerConfig(MainConsumer)
		config.AckWait = time.Minute // to be restored
		if _, err := b.js.CreateConsumer(t.Context(), b.o.Stream, config); err != nil {
			t.Fatal(err)
		}
		_, err = stream.PauseConsumer(t.Context(), MainConsumer, time.Now().Add(10*time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		consume(t, c)
		publish(t, b, createdEvent("a"))
		time.Sleep(5 * time.Minute)
		if handled.Load() > 0 {
			t.Error("the pause was ended")
		}
		want := Finding{"consumer papermap-worker", "it is paused for 5m0s more: it delivers nothing",
			"nats consumer resume PAPERMAP papermap-worker", true}
		if list := b.CheckTopology(t.Context()); !contains(list, want) {
			t.Errorf("%+v", list)
		}
		time.Sleep(6 * time.Minute)
		eventually(t, "it is handled after the pause", func() bool { return handled.Load() == 1 })
	})
}
