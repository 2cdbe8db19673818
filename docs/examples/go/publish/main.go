// Publish tells the worker of a new tenant and returns when the stream has stored the event.
//
//	publish TENANT NAME
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 3 {
		log.Fatal("usage: publish TENANT NAME")
	}
	if err := publish(os.Args[1], os.Args[2]); err != nil {
		log.Fatalf("publish: %v", err)
	}
}

func publish(tenantID, name string) error {
	nc, err := nats.Connect(cmp.Or(os.Getenv("NATS_URL"), nats.DefaultURL))
	if err != nil {
		return fmt.Errorf("connect to NATS: %w", err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("open JetStream: %w", err)
	}
	data, err := json.Marshal(map[string]string{"tenant_id": tenantID, "name": name})
	if err != nil {
		return fmt.Errorf("encode the event: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	// The message id makes a second publish of the same event a duplicate.
	id := jetstream.WithMsgID("signup-" + tenantID)
	ack, err := js.Publish(ctx, "papermap.events.tenant.created", data, id)
	if err != nil { // it may be stored or not: publish it again under the same id
		return fmt.Errorf("publish tenant.created for %q: %w", tenantID, err)
	}
	fmt.Printf("stored in %s as %d, duplicate: %t\n", ack.Stream, ack.Sequence, ack.Duplicate)
	return nil
}
