package events

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
)

// serve starts the service with one endpoint, and returns a caller's connection.
func serve(t *testing.T, handle func(context.Context, Request) ([]byte, error)) (*Bus, *nats.Conn) {
	t.Helper()
	b := startBus(t)
	s, err := b.Serve("1.2.3", []string{"_INBOX_team"}, Endpoint{Name: "echo", Handle: handle})
	if err == nil {
		err = b.nc.Flush() // or the first request may come before the server knows who answers
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	nc, err := nats.Connect(b.nc.ConnectedUrl())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return b, nc
}

func TestServiceErrorHasCodeHeadersAndBody(t *testing.T) {
	t.Parallel()
	_, nc := serve(t, func(_ context.Context, r Request) ([]byte, error) {
		data := r.Data
		switch string(data) {
		case "known":
			return nil, &ServiceError{Status: 409, Code: "NOT_READY", Message: "not\nyet", RetryAfter: 2}
		case "unknown":
			return nil, errors.New("secret text of the database")
		case "panic":
			panic("a bug")
		}
		return data, nil
	})
	for _, test := range []struct{ request, status, body string }{
		{"known", "409", `{"code":"NOT_READY","message":"not\nyet","retry_after":2}`},
		{"unknown", "503", `{"code":"UNAVAILABLE","message":"the worker cannot answer now; try again","retry_after":1}`},
		{"panic", "503", `{"code":"UNAVAILABLE","message":"the worker cannot answer now; try again","retry_after":1}`},
		{"fine", "", "fine"},
	} {
		reply, err := nc.Request("papermap.rpc.echo", []byte(test.request), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if got := reply.Header.Get("Nats-Service-Error-Code"); got != test.status {
			t.Errorf("%s: status %q, want %q", test.request, got, test.status)
		}
		if test.status != "" && reply.Header.Get("Nats-Service-Error") == "" {
			t.Errorf("%s: no Nats-Service-Error", test.request)
		}
		if string(reply.Data) != test.body {
			t.Errorf("%s: body %s", test.request, reply.Data)
		}
	}
}

func TestServiceAnswersOnlyInboxes(t *testing.T) {
	t.Parallel()
	called := make(chan string, 100)
	b, nc := serve(t, func(_ context.Context, r Request) ([]byte, error) {
		data := r.Data
		called <- string(data)
		return []byte("{}"), nil
	})
	for _, reply := range []string{
		"papermap.events.usage.sync", "papermap.events.tenant.created", "papermap.dead.x",
		"$JS.API.STREAM.DELETE.PAPERMAP",
		"$JS.API.STREAM.PURGE.PAPERMAP", "$SRV.PING", "_INBOX", "_INBOXES.x", "_R_", "other.subject",
	} {
		if err := nc.PublishRequest("papermap.rpc.echo", reply, []byte(reply)); err != nil {
			t.Fatal(err)
		}
	}
	for _, reply := range []string{"_INBOX.mine", "_INBOX_team.x"} {
		sub, err := nc.SubscribeSync(reply)
		if err != nil {
			t.Fatal(err)
		}
		if err := nc.PublishRequest("papermap.rpc.echo", reply, []byte(reply)); err != nil {
			t.Fatal(err)
		}
		if _, err := sub.NextMsg(5 * time.Second); err != nil {
			t.Fatalf("no answer on %s: %v", reply, err)
		}
		if got := <-called; got != reply { // requests of one connection come in order
			t.Errorf("the handler was called for the reply subject %q", got)
		}
	}
	stream, err := b.js.Stream(t.Context(), b.o.Stream)
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Msgs; n != 0 {
		t.Errorf("%d messages were put into the stream", n)
	}
}

func TestServiceAnswersDuringASlowRequest(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	defer close(release)
	_, nc := serve(t, func(_ context.Context, r Request) ([]byte, error) {
		data := r.Data
		if string(data) == "slow" {
			<-release
		}
		return data, nil
	})
	if err := nc.PublishRequest("papermap.rpc.echo", "_INBOX.slow", []byte("slow")); err != nil {
		t.Fatal(err)
	}
	if _, err := nc.Request("papermap.rpc.echo", []byte("quick"), 5*time.Second); err != nil {
		t.Errorf("a request waited for another: %v", err)
	}
}

func TestServiceRefusesAFlood(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	_, nc := serve(t, func(_ context.Context, r Request) ([]byte, error) {
		data := r.Data
		<-release
		return data, nil
	})
	const flood = serviceWorkers + serviceQueue + 500
	sub, err := nc.SubscribeSync("_INBOX.flood")
	if err != nil {
		t.Fatal(err)
	}
	for range flood {
		if err := nc.PublishRequest("papermap.rpc.echo", "_INBOX.flood", nil); err != nil {
			t.Fatal(err)
		}
	}
	refused := 0
	for range 500 {
		m, err := sub.NextMsg(10 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(m.Data), "UNAVAILABLE") {
			refused++
		}
	}
	close(release)
	for range flood - 500 {
		if _, err := sub.NextMsg(10 * time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if refused != 500 {
		t.Errorf("%d refused while the pool was full, want 500", refused)
	}
}

func TestServiceStopAnswersRequestsInFlight(t *testing.T) {
	t.Parallel()
	b := startBus(t)
	started, release := make(chan struct{}), make(chan struct{})
	s, err := b.Serve("1.2.3", nil, Endpoint{Name: "echo", Handle: func(_ context.Context,
		r Request) ([]byte, error) {
		data := r.Data
		close(started)
		<-release
		return data, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() {
		_, err := b.Request(context.Background(), "echo", []byte("x"))
		answered <- err
	}()
	<-started
	stopped := make(chan struct{})
	go func() { s.Stop(); close(stopped) }()
	close(release)
	<-stopped
	if err := <-answered; err != nil {
		t.Errorf("a request under way got no answer: %v", err)
	}
}

func TestServiceStopAnswersArrivedRequests(t *testing.T) {
	t.Parallel()
	b := startBus(t)
	var first atomic.Bool
	started, release := make(chan struct{}), make(chan struct{})
	s, err := b.Serve("1.2.3", nil, Endpoint{
		Name: "echo",
		Fast: func(dst []byte, r Request) ([]byte, FastResult, error) {
			if first.CompareAndSwap(false, true) {
				close(started)
				<-release // and those that come meanwhile wait in the client library
			}
			return nil, FastQueue, nil
		},
		Handle: func(_ context.Context, r Request) ([]byte, error) { return r.Data, nil },
	})
	if err == nil {
		err = b.nc.Flush() // or the requests may come before the server knows who answers
	}
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(b.nc.ConnectedUrl())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	answers, err := nc.SubscribeSync("_INBOX.stop")
	if err != nil {
		t.Fatal(err)
	}
	const requests = 100
	for range requests {
		if err := nc.PublishRequest(b.o.Subjects.RPC("echo"), answers.Subject, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	// the server has them, and sends them before it answers what comes later
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	<-started
	stopped := make(chan struct{})
	go func() { s.Stop(); close(stopped) }()
	for !s.micro.Stopped() {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(50 * time.Millisecond) // for a stop that does not wait
	close(release)
	<-stopped
	for range requests {
		answer, err := answers.NextMsg(10 * time.Second)
		if err != nil || string(answer.Data) != "x" {
			t.Fatalf("%v, %+v", err, answer)
		}
	}
}

func TestRequestReturnsServiceError(t *testing.T) {
	t.Parallel()
	b, _ := serve(t, func(context.Context, Request) ([]byte, error) {
		return nil, &ServiceError{Status: 404, Code: "TENANT_NOT_FOUND", Message: "unknown"}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err := b.Request(ctx, "echo", nil)
	var e *ServiceError
	if !errors.As(err, &e) || e.Status != 404 || e.Code != "TENANT_NOT_FOUND" || e.Message != "unknown" {
		t.Errorf("got %v", err)
	}
	if _, err := b.Request(ctx, "nobody", nil); err == nil ||
		!strings.Contains(err.Error(), "no worker answers") {
		t.Errorf("requesting where nobody listens: %v", err)
	}
}

func TestServiceFallsBackToHandleWhenFastFails(t *testing.T) {
	t.Parallel()
	b := startBus(t)
	s, err := b.Serve("1.2.3", nil, Endpoint{
		Name: "echo",
		Fast: func([]byte, Request) ([]byte, FastResult, error) {
			return nil, FastAnswered,
				errors.New("a bug")
		},
		Handle: func(context.Context, Request) ([]byte, error) { return nil, errors.New("the same bug") },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	reply, err := b.nc.Request("papermap.rpc.echo", nil, 5*time.Second)
	if err != nil || reply.Header.Get("Nats-Service-Error-Code") != "503" || len(reply.Data) == 0 {
		t.Errorf("answer %v, %v", reply, err)
	}
}

// However many strangers wait, whoever goes ahead is answered.
func TestServiceAnswersFastQueueFirstBeforeTheQueue(t *testing.T) {
	t.Parallel()
	b := startBus(t)
	release := make(chan struct{})
	s, err := b.Serve("1.2.3", nil, Endpoint{
		Name: "echo",
		Fast: func(_ []byte, r Request) ([]byte, FastResult, error) {
			if string(r.Data) == "ahead" {
				return nil, FastQueueFirst, nil
			}
			return nil, FastQueue, nil
		},
		Handle: func(_ context.Context, r Request) ([]byte, error) {
			if string(r.Data) != "ahead" {
				<-release
			}
			return r.Data, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	defer close(release)
	for range serviceWorkers + serviceQueue {
		if err := b.nc.PublishRequest("papermap.rpc.echo", "_INBOX.stranger",
			[]byte("stranger")); err != nil {
			t.Fatal(err)
		}
	}
	if reply, err := b.nc.Request("papermap.rpc.echo", []byte("ahead"), 5*time.Second); err != nil ||
		string(reply.Data) != "ahead" {
		t.Errorf("answer %v, %v", reply, err)
	}
}

func TestServiceRefusesALargeRequestBeforeItIsRead(t *testing.T) {
	t.Parallel()
	var read atomic.Int32
	b := startBus(t)
	s, err := b.Serve("1.2.3", nil, Endpoint{
		Name:   "echo",
		Handle: func(_ context.Context, r Request) ([]byte, error) { read.Add(1); return r.Data[:1], nil },
		Fast: func(dst []byte, r Request) ([]byte, FastResult, error) {
			read.Add(1)
			return dst, FastQueue, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	for size, ok := range map[int]bool{4 << 10: true, 4<<10 + 1: false, 1 << 20: false} {
		read.Store(0)
		reply, err := b.nc.Request("papermap.rpc.echo", make([]byte, size), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		code := reply.Header.Get("Nats-Service-Error-Code")
		if ok != (code == "" && read.Load() == 2) || !ok && (code != "400" || read.Load() != 0 ||
			!strings.Contains(string(reply.Data), `"code":"INVALID_REQUEST"`)) {
			t.Errorf("%d bytes: %q, %s, read %d times", size, code, reply.Data, read.Load())
		}
	}
}

func TestServiceTellsOfRequestsThatItCannotAnswer(t *testing.T) {
	t.Parallel()
	b, nc := serve(t, func(context.Context, Request) ([]byte, error) { return nil, nil })
	said := make(logged, 100)
	b.log = slog.New(slog.NewTextHandler(said, nil))
	s, err := b.Serve("1.2.3", nil, Endpoint{Name: "other",
		Handle: func(context.Context, Request) ([]byte, error) { return nil, nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	if err := b.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if err := nc.PublishRequest("papermap.rpc.other", "elsewhere.x", nil); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "they are counted", func() bool { return b.Unanswerable() == 50 })
	said.wait(t, "reply=elsewhere.x")
	if len(said) > 0 {
		t.Errorf("more than one line of them: %s", <-said)
	}
}

func TestServiceStatsHaveErrorsAndTimesOfAnswers(t *testing.T) {
	t.Parallel()
	_, nc := serve(t, func(_ context.Context, r Request) ([]byte, error) {
		<-time.After(5 * time.Millisecond)
		if string(r.Data) == "bad" {
			return nil, &ServiceError{Status: 409, Code: "X", Message: "no"}
		}
		return []byte("ok"), nil
	})
	for _, data := range []string{"good", "bad", "bad"} {
		if _, err := nc.Request("papermap.rpc.echo", []byte(data), 5*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if d := statsOf(t, nc)[0]; d.Answers != 3 || d.Errors != 2 || d.AverageMicros < 5000 {
		t.Errorf("%+v", d)
	}
}

// statsOf returns what $SRV.STATS says of each endpoint's answers.
func statsOf(t *testing.T, nc *nats.Conn) (list []answerStats) {
	t.Helper()
	reply, err := nc.Request("$SRV.STATS.papermap-worker", nil, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	var stats struct {
		Endpoints []struct {
			Data answerStats `json:"data"`
		} `json:"endpoints"`
	}
	if err := json.Unmarshal(reply.Data, &stats); err != nil {
		t.Fatal(err)
	}
	for _, e := range stats.Endpoints {
		list = append(list, e.Data)
	}
	return list
}

// An answer that NATS cannot carry is refused, by whichever way it was made, and counted once.
func TestServiceRefusesAnAnswerThatIsTooLarge(t *testing.T) {
	t.Parallel()
	b := startBus(t)
	large := func() []byte { return make([]byte, b.nc.MaxPayload()+1) }
	s, err := b.Serve("1.2.3", nil,
		Endpoint{
			Name: "echo", Handle: func(context.Context, Request) ([]byte, error) { return large(), nil },
		},
		Endpoint{Name: "fast", Fast: func([]byte, Request) ([]byte, FastResult, error) {
			return large(), FastAnswered, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	for _, name := range []string{"echo", "fast"} {
		reply, err := b.nc.Request("papermap.rpc."+name, nil, 5*time.Second)
		if err != nil || reply.Header.Get("Nats-Service-Error-Code") != "400" {
			t.Errorf("%s: %v, %v", name, reply, err)
		}
	}
	for _, d := range statsOf(t, b.nc.Conn) {
		if d.Answers != 1 || d.Errors != 1 {
			t.Errorf("%+v", d)
		}
	}
}
