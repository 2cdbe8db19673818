package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	subject    = "papermap.events.tenant.created" // of every job
	streamName = "JOBS"                           // of the rivals
	durable    = "papermap-worker"                // name of each contender's consumer
)

// serveNATS runs a NATS server with JetStream and its defaults.
func serveNATS(t task) error {
	address, err := netip.ParseAddrPort(t.Address)
	if err != nil {
		return fmt.Errorf("read the address: %w", err)
	}
	s, err := server.NewServer(&server.Options{
		Host: address.Addr().String(), Port: int(address.Port()),
		JetStream: true, StoreDir: t.Folder, NoLog: true,
	})
	if err != nil {
		return fmt.Errorf("make a NATS server: %w", err)
	}
	s.Start()
	s.WaitForShutdown()
	return nil
}

// connect waits for JetStream, which is ready a little later than the server's port.
func connect(ctx context.Context, address string) (*nats.Conn, jetstream.JetStream, error) {
	nc, err := nats.Connect(address)
	if err != nil {
		return nil, nil, fmt.Errorf("connect to NATS: %w", err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, nil, fmt.Errorf("use JetStream: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		if _, err = js.AccountInfo(ctx); err == nil {
			return nc, js, nil
		}
		if ctx.Err() != nil {
			nc.Close()
			return nil, nil, fmt.Errorf("use JetStream: %w", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// makeStream makes the rivals' stream: in files, as papermap-worker's.
func makeStream(ctx context.Context, js jetstream.JetStream) error {
	_, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: streamName, Subjects: []string{subject}})
	if err != nil {
		return fmt.Errorf("make a stream: %w", err)
	}
	return nil
}

// publish stores a job for each tenant.
func publish(ctx context.Context, js jetstream.JetStream, list []tenant) error {
	for _, t := range list {
		data, err := json.Marshal(t)
		if err != nil {
			return fmt.Errorf("encode a job: %w", err)
		}
		if _, err := js.PublishAsync(subject, data); err != nil {
			return fmt.Errorf("publish a job: %w", err)
		}
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-ctx.Done():
		return fmt.Errorf("publish jobs: %w", ctx.Err())
	}
	stream, err := js.StreamNameBySubject(ctx, subject)
	if err != nil {
		return fmt.Errorf("find the stream: %w", err)
	}
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return fmt.Errorf("find the stream: %w", err)
	}
	if stored := int(s.CachedInfo().State.Msgs); stored != len(list) {
		return fmt.Errorf("%d of %d jobs were stored", stored, len(list))
	}
	return nil
}

// makeConsumer makes the rivals' durable pull consumer.
func makeConsumer(ctx context.Context, js jetstream.JetStream) (jetstream.Consumer, error) {
	consumer, err := js.CreateOrUpdateConsumer(ctx, streamName, jetstream.ConsumerConfig{
		Durable: durable, AckPolicy: jetstream.AckExplicitPolicy, FilterSubject: subject,
	})
	if err != nil {
		return nil, fmt.Errorf("make a consumer: %w", err)
	}
	return consumer, nil
}

// workNATS is a plain nats.go worker: a durable pull consumer, t.InFlight goroutines, one INSERT,
// an acknowledgement.
func workNATS(t task) error {
	ctx := context.Background()
	record, _, err := openRecorder(ctx, t.Database)
	if err != nil {
		return err
	}
	r := newRival(t.API, record)
	_, js, err := connect(ctx, t.NATS)
	if err != nil {
		return err
	}
	consumer, err := makeConsumer(ctx, js)
	if err != nil {
		return err
	}
	slots := make(chan struct{}, t.InFlight)
	_, err = consumer.Consume(func(m jetstream.Msg) {
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			if err := handle(ctx, r, m.Data()); err != nil {
				slog.Error("job failed", "error", err)
				_ = m.NakWithDelay(time.Second)
				return
			}
			if err := m.Ack(); err != nil {
				slog.Error("acknowledge", "error", err)
			}
		}()
	}, jetstream.PullMaxMessages(t.InFlight))
	if err != nil {
		return fmt.Errorf("consume: %w", err)
	}
	select {}
}

// handle does the job that a message holds.
func handle(ctx context.Context, r *rival, data []byte) error {
	var job tenant
	if err := json.Unmarshal(data, &job); err != nil {
		return fmt.Errorf("decode a job: %w", err)
	}
	return r.provision(ctx, job)
}
