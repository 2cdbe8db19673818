package main

import (
	"context"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wmjetstream "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/jetstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go/jetstream"
)

// workWatermill runs watermill's router on its JetStream subscriber, with t.InFlight handlers,
// because each has one message in flight. The subscriber is the newer one, of pull consumers. The
// older, of push consumers, did a quarter to a half of it in trials: the server deals the messages
// out to its subscriptions in advance, so that some have several while others have none.
//
// AckAsync spares each message a round trip, as in the other contenders.
func workWatermill(t task) error {
	ctx := context.Background()
	record, _, err := openRecorder(ctx, t.Database)
	if err != nil {
		return err
	}
	_, js, err := connect(ctx, t.NATS)
	if err != nil {
		return err
	}
	if _, err := makeConsumer(ctx, js); err != nil {
		return err
	}
	r := newRival(t.API, record)
	log := watermill.NewSlogLogger(warnings())
	subscriber, err := wmjetstream.NewSubscriber(wmjetstream.SubscriberConfig{
		URL:                 t.NATS,
		Logger:              log,
		AckAsync:            true,
		NakDelay:            wmjetstream.NewStaticDelay(time.Second),
		ResourceInitializer: wmjetstream.ExistingConsumer(consumerName, ""),
		ConsumeOptions:      []jetstream.PullConsumeOpt{jetstream.PullMaxMessages(1)},
	})
	if err != nil {
		return fmt.Errorf("make a subscriber: %w", err)
	}
	router, err := message.NewRouter(message.RouterConfig{}, log)
	if err != nil {
		return fmt.Errorf("make a router: %w", err)
	}
	provision := func(m *message.Message) error { return handle(m.Context(), r, m.Payload) }
	for i := range t.InFlight {
		router.AddConsumerHandler(fmt.Sprint("provision-", i), streamName, subscriber, provision)
	}
	return router.Run(ctx)
}

func consumerName(string, string) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{Name: durable}
}
