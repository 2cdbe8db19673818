// Token requests a tenant's embed token and prints the address for the iframe. While the answer has
// a retry_after, it retries for half a minute.
//
//	token TENANT
package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/nats-io/nats.go"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: token TENANT")
	}
	if err := token(os.Args[1], time.Now().Add(30*time.Second)); err != nil {
		log.Fatalf("token: %v", err)
	}
}

func token(tenantID string, until time.Time) error {
	nc, err := nats.Connect(cmp.Or(os.Getenv("NATS_URL"), nats.DefaultURL))
	if err != nil {
		return fmt.Errorf("connect to NATS: %w", err)
	}
	defer nc.Close()
	request, err := json.Marshal(map[string]any{"tenant_id": tenantID, "ttl_seconds": 600})
	if err != nil {
		return fmt.Errorf("encode the request: %w", err)
	}
	for {
		reply, err := nc.Request("papermap.rpc.embed-token", request, 2*time.Second)
		if err != nil { // nats.ErrNoResponders: no worker listens there
			return fmt.Errorf("request a token for %q: %w", tenantID, err)
		}
		var answer struct {
			EmbedURL string `json:"embed_url"`

			// Of an error.
			Code       string `json:"code"`
			Message    string `json:"message"`
			RetryAfter int    `json:"retry_after"` // seconds
		}
		if err := json.Unmarshal(reply.Data, &answer); err != nil {
			return fmt.Errorf("decode the answer: %w", err)
		}
		status := reply.Header.Get("Nats-Service-Error-Code")
		if status == "" {
			fmt.Println(answer.EmbedURL)
			return nil
		}
		wait := time.Duration(answer.RetryAfter) * time.Second
		if wait == 0 || time.Now().Add(wait).After(until) {
			return fmt.Errorf("%s %s: %s", status, answer.Code, answer.Message)
		}
		time.Sleep(wait)
	}
}
