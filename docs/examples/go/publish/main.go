// Publish tells the worker of a new tenant and returns when the stream has stored the event.
//
//	publish TENANT NAME [DASHBOARD]
//
// With the id of a dashboard that the tenant has at Papermap already, it gets that one.
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
	if len(os.Args) != 3 && len(os.Args) != 4 {
		log.Fatal("usage: publish TENANT NAME [DASHBOARD]")
	}
	fields := map[string]string{"tenant_id": os.Args[1], "name": os.Args[2]}
	if len(os.Args) == 4 {
		fields["dashboard_id"] = os.Args[3]
	}
	if err := publish(fields); err != nil {
		log.Fatalf("publish: %v", err)
	}
}

func publish(fields map[string]string) error {
	nc, err := nats.Connect(cmp.Or(os.Getenv("NATS_URL"), nats.DefaultURL))
	if err != nil {
		return fmt.Errorf("connect to NATS: %w", err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("open JetStream: %w", err)
	}
	data, err := json.Marshal(fields)
	if err != nil {
		return fmt.Errorf("encode the event: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	// The message id makes a second publish of the same event a duplicate.
	id := jetstream.WithMsgID("signup-" + fields["tenant_id"])
	ack, err := js.Publish(ctx, "papermap.events.tenant.created", data, id)
	if err != nil { // it may be stored or not: publish it again under the same id
		return fmt.Errorf("publish tenant.created for %q: %w", fields["tenant_id"], err)
	}
	fmt.Printf("stored in %s as %d, duplicate: %t\n", ack.Stream, ack.Sequence, ack.Duplicate)
	return nil
}
