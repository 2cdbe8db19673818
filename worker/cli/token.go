package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"

	"papermap-worker/events"
	"papermap-worker/worker"
)

// tokenCmd requests a token as a backend would, over NATS. It needs a running worker.
type tokenCmd struct {
	TenantID string        `arg:"" name:"tenant" help:"Tenant id."`
	TTL      time.Duration `name:"ttl" help:"Lifetime; the worker caps it."`
	URL      bool          `name:"url" help:"Print the iframe address alone."`
	jsonFlag
	natsSettings `group:"NATS"`
}

func (c *tokenCmd) Run(a *app, bus *events.Bus) error {
	ctx, cancel := context.WithTimeout(a.ctx, 10*time.Second)
	defer cancel()
	token, err := requestToken(ctx, bus, c.TenantID, c.TTL)
	if err != nil {
		return err
	}
	if c.URL {
		_, err = fmt.Fprintln(a.stdout, token.EmbedURL)
		return err
	}
	return c.print(a.stdout, token, table{
		{"tenant", token.TenantID}, {"workspace", token.WorkspaceID}, {"dashboard", token.DashboardID},
		{"expires", unixTime(token.ExpiresAt)}, {"refresh after", unixTime(token.RefreshAfter)},
		{"token", token.Token}, {"address", token.EmbedURL},
	})
}

// requestToken requests a tenant's token from the worker, which chooses the lifetime if ttl is 0.
func requestToken(ctx context.Context, bus *events.Bus, tenantID string, ttl time.Duration) (
	token worker.EmbedToken, err error) {
	fields := map[string]any{"tenant_id": tenantID}
	if ttl != 0 {
		fields["ttl_seconds"] = int64(ttl / time.Second)
	}
	err = request(ctx, bus, "embed-token", fields, &token)
	return token, err
}

// request sends a request to an endpoint of the worker, and decodes the answer. A refusal is an
// *events.ServiceError.
func request(ctx context.Context, bus *events.Bus, endpoint string, body, answer any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	reply, err := bus.Request(ctx, endpoint, data)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(reply, answer); err != nil {
		return fmt.Errorf("decode answer: %w", err)
	}
	return nil
}
