package events

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
)

const (
	serviceName = "papermap-worker"

	// canAdopt is the metadata of replicas that understand dashboard_id in tenant.created.
	canAdopt = "adopts_dashboards"

	replicaWait = time.Second // for the next answer of a replica
)

// Replica is a running worker, as it describes itself.
type Replica struct {
	ID, Version string
	Adopts      bool // it understands dashboard_id in tenant.created
}

// Replicas asks the running workers for their versions.
func (b *Bus) Replicas(ctx context.Context) ([]Replica, error) {
	inbox := b.nc.NewRespInbox()
	answers, err := b.nc.SubscribeSync(inbox)
	if err != nil {
		return nil, fmt.Errorf("ask the workers for their versions: %w", err)
	}
	defer func() { _ = answers.Unsubscribe() }()
	subject, err := micro.ControlSubject(micro.InfoVerb, serviceName, "")
	if err == nil {
		err = b.nc.PublishRequest(subject, inbox, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("ask the workers for their versions: %w", err)
	}
	var list []Replica
	for {
		wait, cancel := context.WithTimeout(ctx, replicaWait)
		msg, err := answers.NextMsgWithContext(wait)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrNoResponders):
			return list, nil
		case err != nil:
			return nil, fmt.Errorf("ask the workers for their versions: %w", err)
		}
		var info micro.Info
		if err := json.Unmarshal(msg.Data, &info); err == nil {
			list = append(list, Replica{info.ID, info.Version, info.Metadata[canAdopt] != ""})
		}
	}
}
