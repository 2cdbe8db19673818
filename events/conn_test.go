package events

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// connectionNames are the names of the connections that a server has.
func connectionNames(t *testing.T, s *server.Server) (names []string) {
	t.Helper()
	list, err := s.Connz(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list.Conns {
		names = append(names, c.Name)
	}
	slices.Sort(names)
	return names
}

func TestBusHasAConnectionForEachPurpose(t *testing.T) {
	t.Parallel()
	s, err := server.NewServer(&server.Options{
		Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(),
		NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	go s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(time.Minute) {
		t.Fatal("the server did not start")
	}
	b := connectBus(t, Options{URL: s.ClientURL(), Name: "w"})
	service, err := b.Serve("1.2.3", nil, Endpoint{Name: "embed-token", PerToken: true})
	if err != nil {
		t.Fatal(err)
	}
	has := func(want ...string) func() bool {
		return func() bool { return slices.Equal(connectionNames(t, s), want) }
	}
	eventually(t, "connections for events and requests", has("w", "w requests", "w requests of tenants"))
	if _, err := b.DeadLetters(t.Context(), DeadFilter{}, 10); err != nil {
		t.Fatal(err)
	}
	eventually(t, "one for reading", has("w", "w reading", "w requests", "w requests of tenants"))
	b.reading.closeIdle()
	eventually(t, "none for reading when it is idle", has("w", "w requests", "w requests of tenants"))
	if err := b.Connected(); err != nil {
		t.Errorf("without the connection for reading: %v", err)
	}
	service.conns[1].Close() // as a server does to one that is flooded
	eventually(t, "answering without the connection for requests of tenants", func() bool {
		return b.Answering() == nil
	})
	service.conns[0].Close()
	if b.Answering() == nil {
		t.Error("it answers without the connection for requests")
	}
	if err := b.Connected(); err != nil {
		t.Errorf("events stop without the connections for requests: %v", err)
	}
	service.Stop()
	eventually(t, "none for requests when the service has ended", has("w"))
}

// Otherwise each attempt to reconnect costs a descriptor until the next garbage collection.
func TestReconnectClosesTheConnectionThatWasRefused(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	accepted := make(chan net.Conn, 100)
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return // closed
			}
			_, _ = io.WriteString(c, "no greeting\r\n")
			accepted <- c
		}
	}()
	bus, err := Connect(Options{URL: "nats://" + listener.Addr().String(), Wait: true},
		slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close(t.Context())
	refused := []net.Conn{<-accepted, <-accepted}
	defer (<-accepted).Close()
	for i, c := range refused {
		defer c.Close()
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("connection %d is still open while there is a newer one", i+1)
		}
	}
}

func TestReadingKeepsLittleOfLargeMessages(t *testing.T) {
	t.Parallel()
	b := startBus(t)
	const letters = 60
	large := []byte(`{"tenant_id":"org-1","name":"x","more":"` + strings.Repeat("x", 900_000) + `"}`)
	for range letters {
		m := &nats.Msg{Subject: "papermap.dead.tenant.created", Data: large}
		if _, err := b.js.PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	list, err := b.DeadLetters(ctx, DeadFilter{TenantID: "org-1"}, letters)
	if err != nil || len(list) != letters || list[0].Data != nil {
		t.Errorf("%d dead letters, %v, want %d without their data", len(list), err, letters)
	}
	d, err := b.DeadLetter(ctx, list[letters-1].Sequence)
	if err != nil || !bytes.Equal(d.Data, large) {
		t.Errorf("the last has %d bytes, %v", len(d.Data), err)
	}
	if limit := b.readLimit(); limit > 8<<20 || limit < 2<<20 {
		t.Errorf("%d bytes are requested at a time", limit)
	}
}

func TestReadersWaitForTheirTurn(t *testing.T) {
	t.Parallel()
	b := startBus(t)
	var releases []func()
	for range readers {
		_, release, err := b.readerInTurn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		releases = append(releases, release)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := b.readerInTurn(ctx); err == nil {
		t.Error("there were more readers at a time")
	}
	releases[0]()
	if _, release, err := b.readerInTurn(t.Context()); err != nil {
		t.Errorf("after one has ended: %v", err)
	} else {
		release()
	}
	for _, release := range releases {
		release()
	}
}

func TestLayoutIsLinearAndLimited(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		data, text string
		whole      bool
	}{
		{`{"a":1,"b":[true,{}],"a":"x"}`, "{\n  \"a\": 1,\n  \"b\": [\n    true,\n    {}\n  ],\n" +
			"  \"a\": \"x\"\n}", true},
		{`no JSON`, "no JSON", true}, {`{"a":1} {`, `{"a":1} {`, true}, {"\xff", "�", true}, {``, ``, true},
	} {
		if text, whole := Layout([]byte(c.data)); text != c.text || whole != c.whole {
			t.Errorf("%s: %q, whole %v", c.data, text, whole)
		}
	}
	for name, data := range map[string]string{
		"deep":         `{"x":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + `}`,
		"deep objects": strings.Repeat(`{"a":`, 9000) + "1" + strings.Repeat("}", 9000),
		"too deep":     strings.Repeat("[", 1<<20),
		"wide":         strings.Repeat("[", 7) + strings.Repeat("1,", 500_000) + "1" + strings.Repeat("]", 7),
		"long":         fmt.Sprintf("%q", strings.Repeat("x", 1<<20)),
		"not JSON":     strings.Repeat("x", 1<<20),
	} {
		text, whole := Layout([]byte(data))
		if len(text) > ShownBytes+8 || len(text) > 2*len(data) || whole != (len(data) <= ShownBytes) {
			t.Errorf("%s: %d bytes of %d, whole %v", name, len(text), len(data), whole)
		}
	}
}

func TestServiceAnswersATenantsSubjectOnlyInThatTenantsInbox(t *testing.T) {
	t.Parallel()
	b := startBus(t)
	answers := func(context.Context, Request) ([]byte, error) { return []byte("token"), nil }
	service, err := b.Serve("1.2.3", []string{"_INBOX_backend", "_INBOX_tenant.{tenant}"},
		Endpoint{Name: "token", Handle: answers}, Endpoint{Name: "token", PerToken: true, Handle: answers})
	if err != nil {
		t.Fatal(err)
	}
	inbox, err := b.nc.SubscribeSync(">")
	if err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{"papermap.rpc.token", "papermap.rpc.token.org-1"} {
		for _, reply := range []string{"_INBOX.x", "_INBOX_backend.x", "_INBOX_tenant.org-1.x",
			"_INBOX_tenant.org-2.x"} {
			if err := b.nc.PublishRequest(subject, reply, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := b.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	service.Stop() // everything is answered then
	if err := b.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	var answered []string
	for n, _, _ := inbox.Pending(); n > 0; n-- {
		if m, err := inbox.NextMsg(time.Second); err == nil && string(m.Data) == "token" {
			answered = append(answered, m.Subject)
		}
	}
	_ = inbox.Unsubscribe() // or closing the connection would wait for it to be read
	slices.Sort(answered)
	want := []string{"_INBOX.x", "_INBOX_backend.x", "_INBOX_tenant.org-1.x"}
	if !slices.Equal(answered, want) {
		t.Errorf("answered %q, want %q", answered, want)
	}
}
