package cli

import (
	"fmt"
	"net/url"

	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
)

// simulateCmd serves package simulator until it is interrupted, and prints the settings of a worker
// that uses it. Faults are rules such as "on=create status=503 rate=0.1": see simulator.ParseFault.
type simulateCmd struct {
	Addr        string   `default:"127.0.0.1:8090" help:"Address to listen on."`
	Fault       []string `sep:"none" help:"Fault rule, such as 'status=503 rate=0.1'. Repeatable."`
	WorkspaceID string   `default:"ws-local" help:"Workspace to accept."`
	KeyID       string   `name:"api-key-id" default:"ak_local" help:"API key id to accept."`
	SecretKey   string   `env:"SIMULATOR_SECRET_KEY" default:"sk_local_0123456789" help:"Its secret."`
	Nested      bool     `help:"Answer with the dashboard id at data.data.dashboard_id, as in the guide."`
}

func (c *simulateCmd) Run(a *app) error {
	if err := a.parser().err(); err != nil {
		return err
	}
	options := simulator.Options{NestedAnswer: c.Nested, Workspaces: []papermap.Workspace{{
		ID: c.WorkspaceID, Key: papermap.KeyPair{ID: c.KeyID, Secret: papermap.NewSecret(c.SecretKey)},
	}}}
	for _, text := range c.Fault {
		fault, err := simulator.ParseFault(text)
		if err != nil {
			return usageErrorf("%v", err)
		}
		options.Faults = append(options.Faults, fault)
	}
	server, err := simulator.Serve(simulator.New(options), c.Addr)
	if err != nil {
		return err
	}
	defer server.Close()
	fmt.Fprintf(a.stdout, "Papermap simulator at %s\n\n"+
		"  export PAPERMAP_API_URL=%[1]s PAPERMAP_EMBED_URL=%[1]s/embedded/dashboard "+
		"PAPERMAP_WORKSPACE_ID=%s PAPERMAP_API_KEY_ID=%s PAPERMAP_SECRET_KEY=%s\n\n"+
		"State: %[1]s/simulator/state\n"+
		"Set usage: curl -X PUT '%[1]s/simulator/usage?workspace=%[5]s' -d '{\"tenants\":20000}'\n",
		server.URL, c.WorkspaceID, c.KeyID, c.SecretKey, url.QueryEscape(c.WorkspaceID))
	<-a.ctx.Done()
	return nil
}
