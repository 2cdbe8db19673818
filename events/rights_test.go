package events

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// A user may do all but what is denied. What the worker can do without is no error.
func TestCheckFindsEachRightThatIsMissing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		permissions string
		replies     []string
		want        string // empty: nothing is wrong
		fatal       bool
	}{
		"all": {`{}`, nil, "", false},
		"events out": {`{publish: {deny: "papermap.events.dashboard.held"}}`, nil,
			"may not publish papermap.events.dashboard.held: events out wait", true},
		"dead letters": {`{publish: {deny: "papermap.dead.tenant.deleted"}}`, nil,
			"may not publish papermap.dead.tenant.deleted: bad events stay", true},
		"ticks": {`{publish: {deny: "papermap.events.usage.sync"}}`, nil,
			"may not publish papermap.events.usage.sync: ticks", false},
		"requests": {`{subscribe: {deny: "papermap.rpc.embed-token"}}`, nil,
			"may not subscribe to papermap.rpc.embed-token: callers", true},
		"usage requests": {`{subscribe: {deny: "papermap.rpc.usage"}}`, nil,
			"may not subscribe to papermap.rpc.usage: callers", true},
		"answers": {`{publish: {deny: ["_INBOX.>", "_R_.>"]}}`, nil,
			"may not answer to _INBOX.>: callers", true},
		"one of two": {`{publish: {deny: "_INBOX.>"}}`, nil, "", false},
		"other answers": {`{publish: {deny: "_INBOX_team.>"}}`, []string{"_INBOX_team"},
			"may not answer to _INBOX_team.>: callers", true},
		"allowed to reply": {`{publish: {allow: ["$JS.>", "papermap.>"]}, allow_responses: true}`,
			nil, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := runServer(t, `authorization {users: [{user: w, password: w, permissions: `+c.permissions+
				`}, {user: all, password: all}]}`)
			all, err := nats.Connect(s.ClientURL(), nats.UserInfo("all", "all"))
			if err != nil {
				t.Fatal(err)
			}
			defer all.Close()
			seen, err := all.SubscribeSync("papermap.events.>")
			if err != nil {
				t.Fatal(err)
			}
			b, err := Connect(workerOptions(s, Options{User: "w", Password: "w"}),
				slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close(context.Background())
			if err := b.EnsureStreams(t.Context()); err != nil {
				t.Fatal(err)
			}
			for range 2 { // what is denied is asked again
				var found []Finding
				for _, f := range b.Check(t.Context(), c.replies) {
					if f.Check == "rights" {
						found = append(found, f)
					}
				}
				ok := len(found) == 0
				if c.want != "" {
					ok = len(found) > 0 && strings.Contains(found[0].Found, c.want) &&
						found[0].Fatal == c.fatal
				}
				if !ok {
					t.Errorf("found %+v", found)
				}
			}
			if m, err := seen.NextMsg(50 * time.Millisecond); err == nil {
				t.Errorf("an observer got %s", m.Subject)
			}
			if _, deadLetters, err := b.Backlog(t.Context()); err == nil && deadLetters > 0 {
				t.Errorf("%d dead letters were stored", deadLetters)
			}
		})
	}
}

func TestCheckFindsThatTheAccountRequiresMaxBytes(t *testing.T) {
	t.Parallel()
	s := runServer(t,
		`accounts {A {jetstream: {max_file: 1GB, max_bytes: true}, users: [{user: w, password: w}]}}`)
	o := workerOptions(s, Options{User: "w", Password: "w"})
	for _, size := range []int64{0, 1 << 20} {
		o.MaxBytes = size
		b, err := Connect(o, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		want := Finding{"JetStream", "the account requires max_bytes of its streams",
			"set NATS_STREAM_MAX_BYTES: without it, serve cannot make a stream that is missing", true}
		if list := b.Check(t.Context(), nil); contains(list, want) != (size == 0) {
			t.Errorf("max_bytes %d: %+v", size, list)
		}
		err = b.EnsureStreams(t.Context())
		if size == 0 && (err == nil || !strings.Contains(err.Error(), "set NATS_STREAM_MAX_BYTES")) ||
			size > 0 && err != nil {
			t.Errorf("max_bytes %d: %v", size, err)
		}
		b.Close(context.Background())
	}
}

func TestConnectUsesTheJetStreamDomain(t *testing.T) {
	t.Parallel()
	s := runServer(t, `jetstream {domain: hub}`)
	for domain, ok := range map[string]bool{"hub": true, "elsewhere": false} {
		o := workerOptions(s, Options{Domain: domain})
		if err := tryConnect(t, o, 3*time.Second); (err == nil) != ok {
			t.Errorf("domain %s: %v", domain, err)
		}
	}
	b, err := Connect(workerOptions(s, Options{Domain: "hub"}), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close(context.Background())
	c := b.MainConsumer(1, time.Second)
	handled := make(chan string, 1)
	c.Handle = func(_ context.Context, e Event) error { handled <- e.TenantID(); return nil }
	consume(t, c)
	publish(t, b, createdEvent("a"))
	<-handled
	eventually(t, "it is acknowledged", func() bool { return pending(t, b, MainConsumer) == 0 })
	for _, f := range b.Check(t.Context(), nil) {
		if f.Fatal {
			t.Errorf("%+v", f)
		}
	}
}
