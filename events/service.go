package events

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// Request is a request to an endpoint.
type Request struct {
	Token string // the subject's last token, which an endpoint with PerToken takes
	Data  []byte
	Trace context.Context // that it is part of, for Quick, which gets no other; it never ends
}

// Endpoint answers one kind of request.
type Endpoint struct {
	Name     string // of the subject, after "<prefix>.rpc."
	PerToken bool   // the subject goes on with one more token

	// Handle answers. It may wait, for at most the time that ctx gives it.
	Handle func(ctx context.Context, r Request) (reply []byte, err error)

	// Quick, if there is one, is asked first: it appends the answer to dst, at once, or says that Handle is to answer. It must
	// not keep r.Data or dst.
	Quick func(dst []byte, r Request) (reply []byte, v Verdict, err error)
}

// Verdict is what Quick made of a request.
type Verdict int

const (
	Answered  Verdict = iota // the reply, or the error, is the answer
	Wait                     // Handle is to answer
	WaitAhead                // Handle is to answer, ahead of the others, who may be many and strangers
)

// ServiceError is a request that is answered with an error. Any other error of a handler is answered with
// UNAVAILABLE, without its text.
type ServiceError struct {
	Status     int    // of HTTP's kind, in Nats-Service-Error-Code
	Code       string // machine-readable
	Message    string
	RetryAfter int // seconds; 0 for none
}

func (e *ServiceError) Error() string { return fmt.Sprintf("%s (%d): %s", e.Code, e.Status, e.Message) }

// errorBody is the body of an answer that is an error. It is never empty.
type errorBody struct {
	Code       string `json:"code"`
	Message    string `json:"message"`
	RetryAfter int    `json:"retry_after,omitzero"`
}

const (
	serviceWorkers = 32   // requests answered at once
	aheadWorkers   = 8    // and of those who go ahead
	serviceQueue   = 1024 // requests that wait, of each kind; more are refused with UNAVAILABLE
	requestTimeout = 5 * time.Second

	// What the client library keeps of requests that come faster than they can even be refused; it drops more.
	pendingRequests = 16 << 10
	pendingBytes    = 16 << 20
)

// Service is a running micro service. micro itself runs the handlers of an endpoint one at a time, does not recover
// from a panic and does not wait for handlers when it stops; so the work is done by a pool of our own.
type Service struct {
	bus     *Bus
	micro   micro.Service
	replies []string // prefixes of the reply subjects that are answered
	log     *slog.Logger
	queue   chan request
	ahead   chan request
	mu      sync.RWMutex // held for reading while a request is put into the queue
	stopped bool
	workers sync.WaitGroup
	buffers sync.Pool // of quick answers
}

type request struct {
	micro.Request
	endpoint *Endpoint
	ctx      context.Context // never ends; with the span of a request that is traced
}

func (r request) event() Request {
	q := Request{Data: r.Data(), Trace: r.ctx}
	if r.endpoint.PerToken {
		q.Token = r.Subject()[strings.LastIndexByte(r.Subject(), '.')+1:]
	}
	return q
}

// Serve starts the micro service named papermap-worker. replyPrefixes are more reply subjects that may be answered,
// beside _INBOX. and _R_. (a server's own, for imported services).
func (b *Bus) Serve(version string, replyPrefixes []string, endpoints ...Endpoint) (*Service, error) {
	s := &Service{bus: b, replies: []string{"_INBOX.", "_R_."}, log: b.log, queue: make(chan request, serviceQueue), ahead: make(chan request, serviceQueue)}
	s.buffers.New = func() any { return new([]byte) }
	for _, p := range replyPrefixes {
		s.replies = append(s.replies, strings.TrimSuffix(p, ".")+".")
	}
	for queue, workers := range map[chan request]int{s.queue: serviceWorkers, s.ahead: aheadWorkers} {
		for range workers {
			s.workers.Go(func() {
				for r := range queue {
					s.answer(r)
				}
			})
		}
	}
	var err error
	s.micro, err = micro.AddService(b.nc, micro.Config{Name: "papermap-worker", Version: version, Description: "Papermap dashboards and embed tokens of tenants"})
	if err != nil {
		return nil, fmt.Errorf("starting the request-reply service: %w", err)
	}
	for _, e := range endpoints {
		name, subject := e.Name, b.o.Subjects.RPC(e.Name)
		if e.PerToken {
			name, subject = name+"-per-token", subject+".*"
		}
		err := s.micro.AddEndpoint(name, micro.HandlerFunc(func(r micro.Request) { s.accept(request{r, &e, context.Background()}) }),
			micro.WithEndpointSubject(subject), micro.WithEndpointPendingLimits(pendingRequests, pendingBytes))
		if err != nil {
			return nil, fmt.Errorf("starting endpoint %s: %w", name, err)
		}
	}
	return s, nil
}

// Stop takes no more requests and returns when those under way are answered.
func (s *Service) Stop() {
	if err := s.micro.Stop(); err != nil {
		s.log.Warn("cannot stop the request-reply service cleanly", "error", err)
	}
	s.takeArrived()
	s.mu.Lock()
	s.stopped = true
	close(s.queue)
	close(s.ahead)
	s.mu.Unlock()
	s.workers.Wait()
}

// takeArrived waits until every request has been accepted that the server sent before it heard that no more are wanted, which
// micro does not wait for.
func (s *Service) takeArrived() {
	nc := s.bus.nc
	if !nc.IsConnected() || nc.FlushTimeout(requestTimeout) != nil {
		return
	}
	accepted := make(chan struct{})
	if nc.Barrier(func() { close(accepted) }) == nil {
		<-accepted
	}
}

// accept queues a request, or refuses it at once when too many wait.
func (s *Service) accept(r request) {
	if !s.answerable(r.Reply()) {
		return
	}
	if s.bus.o.Tracer != nil && len(r.Headers()) > 0 {
		r.ctx = s.traced(r)
	}
	queue := s.queue
	switch s.quick(r) {
	case Answered:
		trace.SpanFromContext(r.ctx).End()
		return
	case WaitAhead:
		queue = s.ahead
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if !s.stopped {
		select {
		case queue <- r:
			return
		default:
		}
	}
	s.refuse(r, unavailable("too many requests; try again"))
	trace.SpanFromContext(r.ctx).End()
}

// quick answers a request that needs no waiting, in the library's own goroutine: no hand-over, no copy.
func (s *Service) quick(r request) (v Verdict) {
	if r.endpoint.Quick == nil {
		return Wait
	}
	defer func() {
		if p := recover(); p != nil { // the handler that may wait has the next try
			s.log.ErrorContext(r.ctx, "a request failed", "endpoint", r.endpoint.Name, "panic", p, "stack", string(debug.Stack()))
			v = Wait
		}
	}()
	buffer := s.buffers.Get().(*[]byte)
	defer s.buffers.Put(buffer)
	reply, v, err := r.endpoint.Quick((*buffer)[:0], r.event())
	if v != Answered {
		return v
	}
	if err != nil {
		if known := (*ServiceError)(nil); errors.As(err, &known) {
			s.refuse(r, known)
			return Answered
		}
		return Wait // the handler that may wait tells the log
	}
	*buffer = reply
	if err := s.bus.nc.Publish(r.Reply(), reply); err != nil { // which copies it
		s.log.Warn("cannot answer a request", "endpoint", r.endpoint.Name, "error", err)
	}
	return Answered
}

func (s *Service) answerable(reply string) bool {
	for _, p := range s.replies {
		if strings.HasPrefix(reply, p) && len(reply) > len(p) {
			return true
		}
	}
	return false
}

func (s *Service) answer(r request) {
	ctx, cancel := context.WithTimeout(r.ctx, requestTimeout)
	defer cancel()
	defer trace.SpanFromContext(r.ctx).End()
	data, err := s.call(ctx, r)
	var known *ServiceError
	switch {
	case err == nil:
		s.respond(r, &nats.Msg{Data: data})
	case errors.As(err, &known):
		s.refuse(r, known)
	default:
		s.log.ErrorContext(ctx, "a request failed", "endpoint", r.endpoint.Name, "error", err)
		s.refuse(r, unavailable("the worker cannot answer now; try again"))
	}
}

func (s *Service) call(ctx context.Context, r request) (data []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the handler panicked: %v\n%s", p, debug.Stack())
		}
	}()
	return r.endpoint.Handle(ctx, r.event())
}

func unavailable(message string) *ServiceError {
	return &ServiceError{Status: 503, Code: "UNAVAILABLE", Message: message, RetryAfter: 1}
}

func (s *Service) refuse(r request, e *ServiceError) {
	span := trace.SpanFromContext(r.ctx)
	span.SetAttributes(attribute.String("error.type", e.Code))
	if e.Status >= 500 { // else it is the caller's
		span.SetStatus(codes.Error, e.Code)
	}
	body, err := json.Marshal(errorBody{Code: e.Code, Message: e.Message, RetryAfter: e.RetryAfter})
	if err != nil { // only for text that is not UTF-8
		body = []byte(`{"code":"UNAVAILABLE","message":"the error cannot be told"}`)
	}
	s.respond(r, &nats.Msg{Data: body, Header: nats.Header{
		micro.ErrorHeader:     {oneLine(cmp.Or(e.Message, e.Code), 300)},
		micro.ErrorCodeHeader: {strconv.Itoa(e.Status)},
	}})
}

// respond answers over the connection and not by micro's methods: those write what they did into the request, which
// micro reads when the callback returns, long before.
func (s *Service) respond(r request, m *nats.Msg) {
	m.Subject = r.Reply()
	err := s.bus.nc.PublishMsg(m)
	if errors.Is(err, nats.ErrMaxPayload) && m.Header == nil {
		s.refuse(r, &ServiceError{Status: 400, Code: "INVALID_REQUEST", Message: "the answer would be larger than the NATS server takes: ask for less"})
		return
	}
	if err != nil {
		s.log.Warn("cannot answer a request", "endpoint", r.endpoint.Name, "error", err)
	}
}

// readReply is the caller's side: the data, or the error that the answer tells of.
func readReply(m *nats.Msg) ([]byte, error) {
	code := m.Header.Get(micro.ErrorCodeHeader)
	if code == "" {
		return m.Data, nil
	}
	e := &ServiceError{Message: m.Header.Get(micro.ErrorHeader)}
	e.Status, _ = strconv.Atoi(code)
	var body errorBody
	if json.Unmarshal(m.Data, &body) == nil {
		e.Code, e.Message, e.RetryAfter = body.Code, body.Message, body.RetryAfter
	}
	return nil, e
}
