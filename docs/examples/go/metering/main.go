// Metering sends what tenants have used to the metering API at METERING_URL, as signed deltas. It
// keeps what it has sent in the folder LEDGER. Run one at a time.
package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
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
		Durable: "metering", FilterSubject: "papermap.events.usage.synced", MaxAckPending: 1,
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: 30 * time.Second,
	})
	check(err)
	// An event that a killed program had in hand comes again only after AckWait, and no other before
	// it: do not wait for it.
	now := time.Now().UTC()
	last := time.Date(now.Year(), now.Month()-1, 1, 0, 0, 0, 0, time.UTC)
	if err := sync(nc, last.Format("2006-01"), now.Format("2006-01"), func() {}); err != nil {
		log.Print(err)
	}
	_, err = events.Consume(func(msg jetstream.Msg) {
		var e struct {
			Data struct {
				From string `json:"from_period"`
				To   string `json:"to_period"`
			}
		}
		err := json.Unmarshal(msg.Data(), &e)
		if err == nil {
			err = sync(nc, e.Data.From, e.Data.To, func() { _ = msg.InProgress() })
		}
		if err != nil {
			log.Print(err)
			_ = msg.NakWithDelay(5 * time.Second)
			return
		}
		_ = msg.Ack()
	})
	check(err)
	select {}
}

// usage is a tenant's total of a month.
type usage struct {
	TenantID    string `json:"tenant_id"`
	WorkspaceID string `json:"workspace_id"`
	Period      string `json:"period"`
	Credits     string `json:"credits"`
}

// sync sends the deltas of all tenants in some months. It calls progress before each tenant, which
// takes less than AckWait.
func sync(nc *nats.Conn, from, to string, progress func()) error {
	for page, rows := 1, 0; ; page++ {
		request, _ := json.Marshal(map[string]any{"from_period": from, "to_period": to, "page": page})
		reply, err := nc.Request("papermap.rpc.usage", request, 10*time.Second)
		if err != nil {
			return fmt.Errorf("request usage: %w", err)
		}
		var answer struct {
			Usage   []usage
			Total   int
			Message string // of an error
		}
		if err := json.Unmarshal(reply.Data, &answer); err != nil || answer.Message != "" {
			return fmt.Errorf("request usage: %s %w", answer.Message, err)
		}
		for _, u := range answer.Usage {
			progress()
			if err := u.send(); err != nil {
				return err
			}
		}
		if rows += len(answer.Usage); len(answer.Usage) == 0 || rows >= answer.Total {
			return nil
		}
	}
}

// entry is what the ledger has of a tenant's month.
type entry struct {
	Revision int    // of the last delta that was accepted
	Sent     string // the total with it
	Next     string // the total with the delta that is being sent; empty: none is
}

// send brings the metering API to the total. A delta is in the ledger before it is sent, so that it is
// sent again, after a crash too, with the same key and the same amount.
func (u usage) send() error {
	path := filepath.Join(os.Getenv("LEDGER"), fmt.Sprintf("%x.json", sha256.Sum256([]byte(u.key()))))
	e := entry{Sent: "0"}
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &e)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the ledger: %w", err)
	}
	for e.Next != "" || e.Sent != u.Credits {
		if e.Next == "" {
			e.Next = u.Credits
			if err := e.save(path); err != nil {
				return err
			}
		}
		if err := u.post(e); err != nil {
			return err
		}
		e = entry{Revision: e.Revision + 1, Sent: e.Next}
		if err := e.save(path); err != nil {
			return err
		}
	}
	return nil
}

func (u usage) key() string {
	return url.PathEscape(u.WorkspaceID) + "/" + url.PathEscape(u.TenantID) + "/" + u.Period
}

func (u usage) post(e entry) error {
	sent, ok1 := new(big.Rat).SetString(e.Sent)
	next, ok2 := new(big.Rat).SetString(e.Next)
	if !ok1 || !ok2 {
		return fmt.Errorf("no numbers: %q, %q", e.Sent, e.Next)
	}
	delta := new(big.Rat).Sub(next, sent).FloatString(12) // credits have at most 12 digits after the point
	body, _ := json.Marshal(map[string]string{
		"customer": u.TenantID, "month": u.Period,
		"credits": strings.TrimRight(strings.TrimRight(delta, "0"), "."),
	})
	request, err := http.NewRequest("POST", os.Getenv("METERING_URL"), bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Idempotency-Key", fmt.Sprint(u.key(), "/", e.Revision+1))
	answer, err := (&http.Client{Timeout: 10 * time.Second}).Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode/100 != 2 {
		return fmt.Errorf("the metering API answered %s", answer.Status)
	}
	return nil
}

// save replaces the entry's file as a whole.
func (e entry) save(path string) error {
	text, _ := json.Marshal(e)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write the ledger: %w", err)
	}
	return os.Rename(path+".new", path)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
