package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"papermap-worker/papermap"
)

// result is what one measurement saw.
type result struct {
	rate     float64 // answers per second
	p50, p99 time.Duration
	cpu      time.Duration // of the answering process, for one answer
}

// compare measures the worker, a bare micro endpoint and an HTTP server in turn, and prints the medians of all rounds.
func (s *system) compare(ctx context.Context, rounds int, each time.Duration) error {
	reply, err := s.nc.RequestWithContext(ctx, "papermap.rpc.embed-token", request(0))
	if err != nil {
		return fmt.Errorf("requesting a token: %w", err)
	}
	bare, err := s.start("", nil, "bare-micro", s.url+"|"+strconv.Itoa(len(reply.Data)))
	if err != nil {
		return err
	}
	if _, err := bare.says(ctx, "serving", "\n"); err != nil {
		return err
	}
	web, err := s.start("", nil, "bare-http")
	if err != nil {
		return err
	}
	address, err := web.says(ctx, "serving ", "\n")
	if err != nil {
		return err
	}
	targets := []struct {
		name    string
		process *process
		measure func(inFlight int, each time.Duration) (result, error)
	}{
		{"worker", s.worker, func(n int, d time.Duration) (result, error) { return s.askNATS(ctx, "papermap.rpc.embed-token", n, d) }},
		{"bare micro", bare, func(n int, d time.Duration) (result, error) { return s.askNATS(ctx, "bench.bare", n, d) }},
		{"HTTP", web, func(n int, d time.Duration) (result, error) { return s.askHTTP(ctx, address, n, d) }},
	}
	flights := []int{1, 16, 256}
	results := map[string][]result{}
	for round := range rounds + 1 {
		for _, n := range flights {
			for _, t := range targets {
				before, err := t.process.cpu()
				if err != nil {
					return err
				}
				r, err := t.measure(n, each)
				if err != nil {
					return fmt.Errorf("%s, %d in flight: %w", t.name, n, err)
				}
				after, err := t.process.cpu()
				if err != nil {
					return err
				}
				r.cpu = time.Duration(float64(after-before) / (r.rate * each.Seconds()))
				if round > 0 { // the first warms up
					key := fmt.Sprint(t.name, n)
					results[key] = append(results[key], r)
				}
			}
		}
	}
	fmt.Printf("%d rounds of %v; an answer has %d bytes; medians, and the ratio's lowest and highest round\n\n", rounds, each, len(reply.Data))
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "in flight\tserver\tanswers/s\tp50\tp99\tworker / it\tits CPU per answer\t")
	for _, n := range flights {
		worker := results[fmt.Sprint("worker", n)]
		for _, t := range targets {
			list := results[fmt.Sprint(t.name, n)]
			rates, ratios := pick(list, func(r result) float64 { return r.rate }), make([]float64, len(list))
			for i := range list {
				ratios[i] = worker[i].rate / list[i].rate
			}
			slices.Sort(ratios)
			fmt.Fprintf(table, "%d\t%s\t%.0f\t%v\t%v\t%.2f (%.2f-%.2f)\t%v\t\n", n, t.name, median(rates),
				time.Duration(median(pick(list, func(r result) float64 { return float64(r.p50) }))).Round(time.Microsecond),
				time.Duration(median(pick(list, func(r result) float64 { return float64(r.p99) }))).Round(time.Microsecond),
				median(ratios), ratios[0], ratios[len(ratios)-1],
				time.Duration(median(pick(list, func(r result) float64 { return float64(r.cpu) }))).Round(10*time.Nanosecond))
		}
	}
	return table.Flush()
}

func pick(list []result, value func(result) float64) []float64 {
	values := make([]float64, len(list))
	for i, r := range list {
		values[i] = value(r)
	}
	return values
}

func median(values []float64) float64 {
	values = slices.Sorted(slices.Values(values))
	return values[len(values)/2]
}

func summary(latencies []time.Duration, took time.Duration) (result, error) {
	if len(latencies) == 0 {
		return result{}, errors.New("no answers")
	}
	slices.Sort(latencies)
	return result{rate: float64(len(latencies)) / took.Seconds(), p50: latencies[len(latencies)/2], p99: latencies[len(latencies)*99/100]}, nil
}

// askNATS keeps so many requests in flight: each answer sends the next request. One connection and one goroutine, so that
// the asking costs little beside the answering.
func (s *system) askNATS(ctx context.Context, subject string, inFlight int, each time.Duration) (result, error) {
	nc, err := nats.Connect(s.url)
	if err != nil {
		return result{}, fmt.Errorf("connecting to NATS: %w", err)
	}
	defer nc.Close()
	requests := make([][]byte, min(s.tenants, 10_000))
	for i := range requests {
		requests[i] = request(i)
	}
	var (
		inbox     = nats.NewInbox()
		replies   = make([]string, inFlight)
		sent      = make([]time.Time, inFlight)
		latencies = make([]time.Duration, 0, 1<<20)
		next      int
		wrong     string
		open      = inFlight
		began     = time.Now()
		done      = make(chan struct{})
	)
	send := func(slot int) {
		sent[slot] = time.Now()
		_ = nc.PublishRequest(subject, replies[slot], requests[next%len(requests)]) // a lost one shows as a timeout
		next++
	}
	start := make(chan struct{})
	sub, err := nc.Subscribe(inbox+".*", func(m *nats.Msg) {
		<-start
		slot, _ := strconv.Atoi(m.Subject[len(inbox)+1:])
		now := time.Now()
		latencies = append(latencies, now.Sub(sent[slot]))
		if len(m.Header) > 0 || !bytes.HasPrefix(m.Data, []byte(`{"token":"`)) {
			wrong = string(m.Data)
		}
		if now.Sub(began) < each {
			send(slot)
		} else if open--; open == 0 {
			close(done)
		}
	})
	if err != nil {
		return result{}, fmt.Errorf("subscribing: %w", err)
	}
	_ = sub.SetPendingLimits(-1, -1) // there are never more than are in flight
	if err := nc.Flush(); err != nil {
		return result{}, fmt.Errorf("subscribing: %w", err)
	}
	began = time.Now()
	for slot := range inFlight {
		replies[slot] = inbox + "." + strconv.Itoa(slot)
		send(slot)
	}
	close(start) // from now on the answers send
	select {
	case <-done:
	case <-time.After(each + 10*time.Second):
		return result{}, errors.New("an answer is missing")
	case <-ctx.Done():
		return result{}, ctx.Err()
	}
	if wrong != "" {
		return result{}, fmt.Errorf("an answer is %s", wrong)
	}
	return summary(latencies, time.Since(began))
}

// askHTTP does the same over HTTP, with one connection and one goroutine for each request in flight, as its clients have.
func (s *system) askHTTP(ctx context.Context, address string, inFlight int, each time.Duration) (result, error) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: inFlight}, Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	all := make([][]time.Duration, inFlight)
	var next atomic.Int64
	var askers sync.WaitGroup
	began := time.Now()
	for i := range inFlight {
		askers.Go(func() {
			for time.Since(began) < each && ctx.Err() == nil {
				sent := time.Now()
				answer, err := client.Post(address, "application/json", bytes.NewReader(request(int(next.Add(1))%s.tenants)))
				if err != nil {
					cancel(err)
					return
				}
				text, err := io.ReadAll(answer.Body)
				if answer.Body.Close(); err != nil || !bytes.HasPrefix(text, []byte(`{"token":"`)) {
					cancel(fmt.Errorf("an answer is %s, %w", text, err))
					return
				}
				all[i] = append(all[i], time.Since(sent))
			}
		})
	}
	askers.Wait()
	if err := context.Cause(ctx); err != nil {
		return result{}, err
	}
	return summary(slices.Concat(all...), time.Since(began))
}

// bareMicro answers as a micro service can at best: at once, with bytes that are ready. at is the server's address and the
// answer's size.
func bareMicro(ctx context.Context, at string) error {
	url, size, _ := strings.Cut(at, "|")
	length, err := strconv.Atoi(size)
	if err != nil {
		return fmt.Errorf("reading the size of an answer: %w", err)
	}
	answer := append([]byte(`{"token":"`), bytes.Repeat([]byte("x"), length-10)...)
	nc, err := nats.Connect(url)
	if err != nil {
		return fmt.Errorf("connecting to NATS: %w", err)
	}
	defer nc.Close()
	service, err := micro.AddService(nc, micro.Config{Name: "bare", Version: "1.0.0"})
	if err != nil {
		return fmt.Errorf("starting the service: %w", err)
	}
	err = service.AddEndpoint("bare", micro.HandlerFunc(func(r micro.Request) { _ = r.Respond(answer) }), micro.WithEndpointSubject("bench.bare"))
	if err != nil {
		return fmt.Errorf("starting the endpoint: %w", err)
	}
	fmt.Println("serving")
	<-ctx.Done()
	return nil
}

// bareHTTP does the worker's work behind net/http: it reads the request, finds the tenant in memory, signs and answers.
func bareHTTP(ctx context.Context) error {
	type mapping struct{ dashboardID, query string }
	mappings := make(map[string]mapping, 100_000)
	for i := range 100_000 {
		id := fmt.Sprintf("b4a7a2f8-1c55-4a6e-8f0e-%012d", i)
		mappings[fmt.Sprintf("org-%07d", i)] = mapping{id, string(papermap.AppendEmbedQuery(nil, workspaceID, id))}
	}
	minter := papermap.NewMinter(papermap.KeyPair{ID: keyID, Secret: papermap.NewSecret(secret)}, workspaceID)
	http.HandleFunc("POST /embed-token", func(w http.ResponseWriter, r *http.Request) {
		var q struct {
			TenantID string `json:"tenant_id"`
		}
		if err := json.UnmarshalRead(io.LimitReader(r.Body, 64<<10), &q); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		m, known := mappings[q.TenantID]
		if !known {
			http.Error(w, "unknown", http.StatusNotFound)
			return
		}
		from := time.Now().Truncate(time.Second)
		expires := from.Add(time.Hour)
		token, err := minter.AppendToken(nil, q.TenantID, m.dashboardID, expires)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		text, err := json.Marshal(struct {
			Token        string `json:"token"`
			TenantID     string `json:"tenant_id"`
			WorkspaceID  string `json:"workspace_id"`
			DashboardID  string `json:"dashboard_id"`
			ExpiresAt    int64  `json:"expires_at"`
			RefreshAfter int64  `json:"refresh_after"`
			EmbedURL     string `json:"embed_url"`
		}{
			string(token), q.TenantID, workspaceID, m.dashboardID, expires.Unix(), from.Add(48 * time.Minute).Unix(),
			embedURL + "?embedded-token=" + strings.ReplaceAll(string(token), "=", "%3D") + m.query,
		})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(text) // the client may have gone
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	fmt.Printf("serving http://%s/embed-token\n", listener.Addr())
	context.AfterFunc(ctx, func() { _ = listener.Close() })
	_ = http.Serve(listener, nil) // ends when the listener is closed
	return nil
}
