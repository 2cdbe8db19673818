package events

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"
)

// Request is a request to an endpoint.
type Request struct {
	Token string // the subject's last token, of an endpoint with PerToken
	Data  []byte
	Trace context.Context // for Fast, which gets no other context; it never ends
}

// Endpoint answers one kind of request.
type Endpoint struct {
	Name     string // of the subject, after "<prefix>.rpc."
	PerToken bool   // the subject has one more token

	// Timeout is how long after its arrival a request must be answered; 0: requestTimeout. Endpoints of
	// one name have the same.
	Timeout time.Duration

	// Handle answers. It may block until ctx ends. A *[ServiceError] is sent to the caller; any other
	// error is logged, and the caller gets UNAVAILABLE.
	Handle func(ctx context.Context, r Request) (reply []byte, err error)

	// Fast, if not nil, is called first and must not block: it appends the reply to dst, or leaves the
	// request to Handle. It must not keep r.Data or dst.
	Fast func(dst []byte, r Request) (reply []byte, v FastResult, err error)
}

// micro is the endpoint's name in package micro.
func (e Endpoint) micro() string {
	if e.PerToken {
		return e.Name + "-per-token"
	}
	return e.Name
}

// FastResult is what Fast did with a request.
type FastResult int

const (
	FastAnswered   FastResult = iota // the reply, or the error, is the answer
	FastQueue                        // Handle is to answer
	FastQueueFirst                   // Handle is to answer, ahead of the requests of FastQueue
)

// ServiceError is an error for the caller, and the body of its reply.
type ServiceError struct {
	Status     int    `json:"-"`    // an HTTP status, in Nats-Service-Error-Code
	Code       string `json:"code"` // machine-readable
	Message    string `json:"message"`
	RetryAfter int    `json:"retry_after,omitzero"` // seconds; 0: none
}

func (e *ServiceError) Error() string { return fmt.Sprintf("%s (%d): %s", e.Code, e.Status, e.Message) }

const (
	serviceWorkers = 32   // requests of one kind answered concurrently
	aheadWorkers   = 8    // and of those of FastQueueFirst
	serviceQueue   = 1024 // requests that wait, of each kind; more are refused with UNAVAILABLE
	maxRequest     = 4 << 10
	requestTimeout = 5 * time.Second

	// The client library's buffer for requests that arrive faster than they can even be refused; it
	// drops what does not fit.
	pendingRequests = 16 << 10
	pendingBytes    = 16 << 20
)

// Service is a running micro service. Package micro runs the handlers of an endpoint one at a time,
// does not recover from a panic and does not wait for handlers when it stops. So a pool of workers
// does the work.
type Service struct {
	bus     *Bus
	micro   micro.Service
	conns   []*connection        // for requests: of everybody, of tenants
	tenants []*nats.Subscription // on the tenants' connection
	inboxes []string             // prefixes of the reply subjects that are answered
	bound   bool                 // one of them is of the tenant
	log     *slog.Logger
	failed  *rate.Limiter    // of log lines about requests that failed
	queues  map[string]queue // by the endpoint's name: none waits for requests of another kind
	mu      sync.RWMutex     // held for reading while a request is queued
	stopped bool
	workers sync.WaitGroup
	buffers sync.Pool // of replies of Fast
}

// queue holds the requests of one kind in the order of their arrival. All have the same timeout, so
// every request ahead in the queue is answered or refused before this one's timeout.
type queue struct{ normal, ahead chan request }

type request struct {
	subject, reply string
	data           []byte
	header         nats.Header

	nc       *connection // on which it came, and is answered
	endpoint *Endpoint
	arrived  time.Time
	ctx      context.Context // never ends; with the span of a traced request
	answers  *answers
}

// answers counts what an endpoint answered. Package micro sees only how a request is handed over.
type answers struct{ all, errors, took atomic.Int64 }

func (a *answers) add(r request, failed bool) {
	a.all.Add(1)
	a.took.Add(int64(time.Since(r.arrived)))
	if failed {
		a.errors.Add(1)
	}
}

// answerStats is the data of an endpoint in the reply of $SRV.STATS.
type answerStats struct {
	Answers       int64 `json:"answers"`
	Errors        int64 `json:"errors"`
	AverageMicros int64 `json:"average_answer_us"`
}

func (a *answers) stats() answerStats {
	all := a.all.Load()
	return answerStats{all, a.errors.Load(), a.took.Load() / max(1, all) / int64(time.Microsecond)}
}

func (r request) event() Request {
	q := Request{Data: r.data, Trace: r.ctx}
	if r.endpoint.PerToken {
		q.Token = r.token()
	}
	return q
}

func (r request) token() string { return r.subject[strings.LastIndexByte(r.subject, '.')+1:] }

// Serve starts the micro service named papermap-worker. It answers only reply subjects that begin
// with _INBOX., _R_. (a server's own, for imported services) or one of replyPrefixes. On a tenant's
// own subject, the tenant follows the prefix.
//
//	service, err := bus.Serve("1.2.3", nil, events.Endpoint{Name: "usage", Handle: usage})
//	…
//	service.Stop() // before the bus is closed
func (b *Bus) Serve(version string, replyPrefixes []string, endpoints ...Endpoint) (*Service, error) {
	s := &Service{
		bus: b, inboxes: slices.Concat(inboxes, b.setReplies(replyPrefixes)), log: b.log,
		queues: map[string]queue{}, failed: rate.NewLimiter(rate.Every(10*time.Second), 1),
	}
	s.bound = slices.ContainsFunc(s.inboxes, func(p string) bool { return strings.Contains(p, anyTenant) })
	s.buffers.New = func() any { return new([]byte) }
	for _, e := range endpoints {
		if _, made := s.queues[e.Name]; made {
			continue
		}
		q := queue{make(chan request, serviceQueue), make(chan request, serviceQueue)}
		s.queues[e.Name] = q
		s.work(q.normal, serviceWorkers)
		s.work(q.ahead, aheadWorkers)
	}
	counts := map[string]*answers{} // by the endpoint's name; complete before it is read
	for _, e := range endpoints {
		counts[e.micro()] = &answers{}
	}
	if err := s.listen(version, endpoints, counts); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// work starts workers that answer the requests of a queue.
func (s *Service) work(queue <-chan request, workers int) {
	for range workers {
		s.workers.Go(func() {
			for r := range queue {
				s.answer(r)
			}
		})
	}
}

const (
	serverReplies = "_R_."     // of a server's own reply subjects, for imported services
	anyTenant     = "{tenant}" // in a prefix: the tenant's token on its own subject; elsewhere none
)

// inboxes are the prefixes of reply subjects that are always answered.
var inboxes = []string{"_INBOX.", serverReplies}

// setReplies stores and returns the prefixes of additional reply subjects that are answered.
func (b *Bus) setReplies(prefixes []string) []string {
	defer b.lockTopology()()
	b.top.replies = nil
	for _, p := range prefixes {
		b.top.replies = append(b.top.replies, strings.TrimSuffix(p, ".")+".")
	}
	return b.top.replies
}

// Stop accepts no more requests and returns when those in flight are answered.
func (s *Service) Stop() {
	if err := s.micro.Stop(); err != nil {
		s.log.Warn("cannot stop the request-reply service cleanly", "error", err)
	}
	for _, sub := range s.tenants {
		_ = sub.Drain() // it fails only without a connection
	}
	for _, c := range s.conns {
		acceptArrived(c)
	}
	s.close()
}

// close ends the workers after they have answered the queued requests, and closes the connections.
func (s *Service) close() {
	s.mu.Lock()
	s.stopped = true
	for _, q := range s.queues {
		close(q.normal)
		close(q.ahead)
	}
	s.mu.Unlock()
	s.workers.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	s.bus.drop(ctx, s.conns...)
}

// acceptArrived waits until every request that the server sent before the unsubscription has been
// accepted. Package micro does not wait for them.
func acceptArrived(c *connection) {
	if !c.IsConnected() || c.FlushTimeout(requestTimeout) != nil {
		return
	}
	accepted := make(chan struct{})
	if c.Barrier(func() { close(accepted) }) == nil {
		<-accepted
	}
}

// accept runs in the client library's goroutine, one request at a time for each endpoint. It answers
// by Fast, queues the request, or refuses it at once when too many wait: it must never block, or the
// library's buffer fills and drops requests unanswered.
func (s *Service) accept(r request) {
	defer s.refuseOnPanic(r)
	if !s.answerable(r) {
		s.drop(r)
		return
	}
	if len(r.data) > maxRequest {
		s.refuse(r, &ServiceError{Status: 400, Code: "INVALID_REQUEST",
			Message: fmt.Sprintf("the request is larger than %d bytes", maxRequest)})
		return
	}
	if s.bus.o.Tracer != nil && len(r.header) > 0 {
		r.ctx = s.traced(r)
	}
	queue := s.queues[r.endpoint.Name].normal
	switch s.answerFast(r) {
	case FastAnswered:
		trace.SpanFromContext(r.ctx).End()
		return
	case FastQueueFirst:
		queue = s.queues[r.endpoint.Name].ahead
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

// refuseOnPanic, deferred, answers a request whose handling panicked.
func (s *Service) refuseOnPanic(r request) {
	if p := recover(); p != nil {
		s.log.Error("a request failed", "endpoint", r.endpoint.Name, "panic", p,
			"stack", string(debug.Stack()))
		s.refuse(r, unavailable("the worker cannot answer now; try again"))
	}
}

// drop leaves a request without an answer, and logs it so that its caller can find out why.
func (s *Service) drop(r request) {
	if s.bus.unanswerable.Add(1); s.bus.slow.Allow() {
		s.log.Warn("reply subject not allowed: the client's inbox prefix must be "+
			"_INBOX or one of NATS_REPLY_PREFIXES", "subject", oneLine(r.subject, 300),
			"reply", oneLine(r.reply, 300))
	}
}

// Unanswerable returns how many requests had a reply subject that is not answered.
func (b *Bus) Unanswerable() int64 { return b.unanswerable.Load() }

// answerFast calls the endpoint's Fast in the library's own goroutine: no hand-over, no copy.
func (s *Service) answerFast(r request) (v FastResult) {
	if r.endpoint.Fast == nil {
		return FastQueue
	}
	defer func() {
		if p := recover(); p != nil { // Handle tries next
			s.log.ErrorContext(r.ctx, "a request failed",
				"endpoint", r.endpoint.Name, "panic", p, "stack", string(debug.Stack()))
			v = FastQueue
		}
	}()
	buffer := s.buffers.Get().(*[]byte)
	defer s.buffers.Put(buffer)
	reply, v, err := r.endpoint.Fast((*buffer)[:0], r.event())
	if v != FastAnswered {
		return v
	}
	if err != nil {
		if known := (*ServiceError)(nil); errors.As(err, &known) {
			s.refuse(r, known)
			return FastAnswered
		}
		return FastQueue // Handle meets the same error, which is logged
	}
	if s.refusedAsTooLarge(r, reply) {
		return FastAnswered
	}
	*buffer = reply
	r.answers.add(r, false)
	if err := r.nc.Publish(r.reply, reply); err != nil { // which copies it
		s.log.Warn("cannot answer a request", "endpoint", r.endpoint.Name, "error", err)
	}
	return FastAnswered
}

// answerable reports whether the reply subject is an inbox. Other subjects get nothing, not even an
// error: that would be a message to a subject of the requester's choice. A prefix with {tenant}
// applies only to a tenant's own subject, for that tenant. If there is such a prefix, no other
// applies there except the server's own: a tenant's answer cannot be sent to the inbox of another
// tenant or of the backend.
func (s *Service) answerable(r request) bool {
	reply := r.reply
	for _, p := range s.inboxes {
		ofTenant := strings.Contains(p, anyTenant)
		if ofTenant != (r.endpoint.PerToken && s.bound) && p != serverReplies {
			continue
		}
		if ofTenant {
			p = strings.ReplaceAll(p, anyTenant, r.token())
		}
		if strings.HasPrefix(reply, p) && len(reply) > len(p) {
			return true
		}
	}
	return false
}

// answer runs in a worker of the pool.
func (s *Service) answer(r request) {
	defer s.refuseOnPanic(r)
	ctx, cancel := context.WithDeadline(r.ctx, r.arrived.Add(cmp.Or(r.endpoint.Timeout, requestTimeout)))
	defer cancel()
	defer trace.SpanFromContext(r.ctx).End()
	var data []byte
	err := ctx.Err() // it may have waited too long
	if err == nil {
		data, err = s.call(ctx, r)
	}
	var known *ServiceError
	switch {
	case err == nil:
		s.respond(r, &nats.Msg{Data: data})
	case errors.As(err, &known):
		s.refuse(r, known)
	default:
		if s.failed.Allow() {
			s.log.ErrorContext(ctx, "request failed (logged at most every 10 s)",
				"endpoint", r.endpoint.Name, "error", err)
		}
		s.refuse(r, unavailable("the worker cannot answer now; try again"))
	}
}

// call turns a panic of the handler into an error, which the log shows with its stack.
func (s *Service) call(ctx context.Context, r request) (data []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the handler panicked: %v\n%s", p, debug.Stack())
		}
	}()
	return r.endpoint.Handle(ctx, r.event())
}

// unavailable is an error that reveals nothing that a stranger must not know.
func unavailable(message string) *ServiceError {
	return &ServiceError{Status: 503, Code: "UNAVAILABLE", Message: message, RetryAfter: 1}
}

// refuse replies with an error, in micro's headers for any NATS client and in a body for programs.
func (s *Service) refuse(r request, e *ServiceError) {
	span := trace.SpanFromContext(r.ctx)
	span.SetAttributes(attribute.String("error.type", e.Code))
	if e.Status >= 500 { // else it is the caller's error
		span.SetStatus(codes.Error, e.Code)
	}
	body, err := json.Marshal(e)
	if err != nil { // only for text that is not UTF-8
		body = []byte(`{"code":"UNAVAILABLE","message":"the error's text cannot be encoded"}`)
	}
	s.respond(r, &nats.Msg{Data: body, Header: nats.Header{
		micro.ErrorHeader:     {oneLine(cmp.Or(e.Message, e.Code), 300)},
		micro.ErrorCodeHeader: {strconv.Itoa(e.Status)},
	}})
}

// respond replies over the connection and not through micro's methods: those write their result
// into the request, which micro reads when its callback returns, which may be earlier.
func (s *Service) respond(r request, m *nats.Msg) {
	if m.Header == nil && s.refusedAsTooLarge(r, m.Data) {
		return
	}
	m.Subject = r.reply
	r.answers.add(r, m.Header != nil)
	if err := r.nc.PublishMsg(m); err != nil {
		s.log.Warn("cannot answer a request", "endpoint", r.endpoint.Name, "error", err)
	}
}

// refusedAsTooLarge refuses a request if the NATS server would not accept the answer.
func (s *Service) refusedAsTooLarge(r request, answer []byte) bool {
	if int64(len(answer)) <= r.nc.MaxPayload() {
		return false
	}
	s.refuse(r, &ServiceError{Status: 400, Code: "INVALID_REQUEST",
		Message: "the answer would be larger than the NATS server accepts: ask for less"})
	return true
}

// readReply is the caller's side: it returns the data, or the reply's error as a *ServiceError.
func readReply(m *nats.Msg) ([]byte, error) {
	code := m.Header.Get(micro.ErrorCodeHeader)
	if code == "" {
		return m.Data, nil
	}
	e := &ServiceError{}
	if json.Unmarshal(m.Data, e) != nil { // not a worker's
		*e = ServiceError{Message: m.Header.Get(micro.ErrorHeader)}
	}
	e.Status, _ = strconv.Atoi(code)
	return nil, e
}
