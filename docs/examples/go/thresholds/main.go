// Thresholds tells the account managers, by a webhook at WEBHOOK_URL, of tenants that reach a
// threshold of their budget.
package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func main() {
	nc, err := nats.Connect(cmp.Or(os.Getenv("NATS_URL"), nats.DefaultURL), nats.MaxReconnects(-1))
	check(err)
	js, err := jetstream.New(nc)
	check(err)
	events, err := js.CreateOrUpdateConsumer(context.Background(), "PAPERMAP", jetstream.ConsumerConfig{
		Durable: "account-managers", FilterSubject: "papermap.events.usage.threshold",
		AckPolicy: jetstream.AckExplicitPolicy,
	})
	check(err)
	_, err = events.Consume(func(msg jetstream.Msg) {
		if err := tell(msg.Data()); err != nil {
			log.Print(err)
			_ = msg.NakWithDelay(5 * time.Second) // deliver it again
			return
		}
		_ = msg.Ack()
	})
	check(err)
	select {}
}

func tell(event []byte) error {
	var e struct {
		ID   string
		Data struct {
			TenantID                string `json:"tenant_id"`
			Period, Credits, Budget string
			Percent                 int
		}
	}
	if err := json.Unmarshal(event, &e); err != nil {
		return fmt.Errorf("decode an event: %w", err)
	}
	body, _ := json.Marshal(map[string]string{"text": fmt.Sprintf(
		"%s has used %d %% of its budget in %s: %s of %s credits",
		e.Data.TenantID, e.Data.Percent, e.Data.Period, e.Data.Credits, e.Data.Budget)})
	request, err := http.NewRequest("POST", os.Getenv("WEBHOOK_URL"), bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Idempotency-Key", e.ID) // events are delivered at least once
	answer, err := (&http.Client{Timeout: 10 * time.Second}).Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode/100 != 2 {
		return fmt.Errorf("the webhook answered %s", answer.Status)
	}
	return nil
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
