package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
)

// memory asks for a token of every tenant and prints what memory the worker then has.
func (s *system) memory(ctx context.Context) error {
	before, err := s.worker.status("VmRSS")
	if err != nil {
		return err
	}
	began := time.Now()
	slots, wrong := make(chan struct{}, 200), make(chan string, 1)
	inbox := nats.NewInbox()
	sub, err := s.nc.Subscribe(inbox, func(m *nats.Msg) {
		if !strings.HasPrefix(string(m.Data), `{"token":"`) {
			select {
			case wrong <- string(m.Data):
			default:
			}
		}
		<-slots
	})
	if err != nil {
		return fmt.Errorf("subscribing: %w", err)
	}
	_ = sub.SetPendingLimits(-1, -1)
	// Twice: from the database, which lookups of tenants that are not in memory reach only so often, and from memory.
	for i := range s.tenants {
		select {
		case slots <- struct{}{}:
		case <-time.After(10 * time.Second):
			return errors.New("an answer is missing")
		}
		// Just below the 2000 lookups a second that the worker allows itself.
		if wait := time.Duration(i)*time.Second/1900 - time.Since(began); wait > 0 {
			time.Sleep(wait)
		}
		if err := s.nc.PublishRequest("papermap.rpc.embed-token", inbox, request(i)); err != nil {
			return fmt.Errorf("requesting: %w", err)
		}
	}
	for len(slots) > 0 && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	select {
	case text := <-wrong:
		return fmt.Errorf("an answer is %s", text)
	default:
	}
	after, err := s.worker.status("VmRSS")
	if err != nil {
		return err
	}
	peak, err := s.worker.status("VmHWM")
	if err != nil {
		return err
	}
	fmt.Printf("RSS %.1f MiB at the start, %.1f MiB with %d tenants in memory (peak %.1f MiB), after %v\n",
		mebi(before), mebi(after), s.tenants, mebi(peak), time.Since(began).Round(time.Second))
	return nil
}

func mebi(kibi int) float64 { return float64(kibi) / 1024 }

// flood sends five times what the worker can answer, and prints what becomes of it.
func (s *system) flood(ctx context.Context) error {
	const floodTime = 20 * time.Second
	capacity, err := s.askNATS(ctx, "papermap.rpc.embed-token", 256, 5*time.Second)
	if err != nil {
		return err
	}
	state := func() string {
		rss, err := s.worker.status("VmRSS")
		threads, errThreads := s.worker.status("Threads")
		if err = errors.Join(err, errThreads); err != nil {
			return err.Error()
		}
		return fmt.Sprintf("RSS %.1f MiB, %d threads", mebi(rss), threads)
	}
	fmt.Printf("capacity: %.0f tokens/s\nbefore:   %s\n", capacity.rate, state())
	if err := s.worker.resetPeak(); err != nil {
		return err
	}
	pourer, err := s.start("", nil, "pour", s.url, fmt.Sprint(int(5*capacity.rate)), floodTime.String())
	if err != nil {
		return err
	}
	if _, err := pourer.says(ctx, "pouring", "\n"); err != nil {
		return err
	}
	asked, answered, refused := map[string]int{}, map[string]int{}, 0
	var slowest time.Duration
	ask := func(what string, do func(context.Context) error) {
		asking, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		asked[what]++
		began := time.Now()
		if do(asking) == nil {
			answered[what]++
			slowest = max(slowest, time.Since(began))
		}
	}
	for ended := time.Now().Add(floodTime); time.Now().Before(ended) && ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
		ask("dashboard", func(ctx context.Context) error {
			reply, err := s.nc.RequestWithContext(ctx, "papermap.rpc.dashboard", request(1))
			if err == nil && !strings.Contains(string(reply.Data), `"dashboard_id":"`) {
				refused++
				err = errors.New("refused")
			}
			return err
		})
		ask("usage", func(ctx context.Context) error {
			reply, err := s.nc.RequestWithContext(ctx, "papermap.rpc.usage", []byte(`{}`))
			if err == nil && !strings.Contains(string(reply.Data), `"usage":`) {
				refused++
				err = errors.New("refused")
			}
			return err
		})
		ask("/readyz", func(ctx context.Context) error {
			q, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.ready+"/readyz", nil)
			if err != nil {
				return err
			}
			answer, err := http.DefaultClient.Do(q)
			if err != nil {
				return err
			}
			if answer.Body.Close(); answer.StatusCode != http.StatusOK {
				return errors.New(answer.Status)
			}
			return nil
		})
	}
	poured, err := pourer.says(ctx, "poured ", "\n")
	if err != nil {
		return err
	}
	stopped := time.Now()
	if err := s.waitForToken(ctx); err != nil {
		return err
	}
	recovered := time.Since(stopped)
	peak, err := s.worker.status("VmHWM")
	if err != nil {
		return err
	}
	fmt.Printf("flood:    %s requests for tokens; peak RSS %.1f MiB\n", poured, mebi(peak))
	for _, what := range []string{"dashboard", "usage", "/readyz"} {
		fmt.Printf("          %-9s answered %d of %d\n", what, answered[what], asked[what])
	}
	fmt.Printf("          %d refused; the slowest of those answers took %v\nafter:    a token %v after the flood; %s\n", refused, slowest.Round(time.Millisecond), recovered.Round(time.Millisecond), state())
	time.Sleep(5 * time.Second)
	fmt.Printf("          %s 5 s later\n", state())
	lines := map[string]int{}
	for line := range strings.Lines(s.worker.text()) {
		var entry struct{ Level, Msg, Error string }
		if err := json.Unmarshal([]byte(line), &entry, json.MatchCaseInsensitiveNames(true)); err == nil && (entry.Level == "WARN" || entry.Level == "ERROR") {
			lines[entry.Level+" "+entry.Msg+" "+entry.Error]++
		}
	}
	for _, line := range slices.Sorted(maps.Keys(lines)) {
		fmt.Printf("log:      %d times %s\n", lines[line], line)
	}
	return nil
}

// pour publishes requests at a rate for a time, as steadily as it can, and reads no answers. args are the server's address, the
// rate and the time.
func pour(ctx context.Context, args []string) error {
	rate, err := strconv.Atoi(args[1])
	if err != nil {
		return fmt.Errorf("reading the rate: %w", err)
	}
	span, err := time.ParseDuration(args[2])
	if err != nil {
		return fmt.Errorf("reading the time: %w", err)
	}
	nc, err := nats.Connect(args[0])
	if err != nil {
		return fmt.Errorf("connecting to NATS: %w", err)
	}
	defer nc.Close()
	fmt.Println("pouring")
	data, inbox, began, sent := request(0), nats.NewInbox(), time.Now(), 0
	for time.Since(began) < span && ctx.Err() == nil {
		for due := int(float64(rate) * time.Since(began).Seconds()); sent < due; sent++ {
			if err := nc.PublishRequest("papermap.rpc.embed-token", inbox, data); err != nil {
				return fmt.Errorf("requesting: %w", err)
			}
		}
		time.Sleep(time.Millisecond)
	}
	if err := nc.FlushTimeout(30 * time.Second); err != nil {
		return fmt.Errorf("flushing: %w", err)
	}
	took := time.Since(began)
	fmt.Printf("poured %.0f/s in %v\n", float64(sent)/took.Seconds(), took.Round(time.Millisecond))
	return nil
}
