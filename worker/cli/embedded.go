package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/alecthomas/kong"
	"golang.org/x/sync/errgroup"

	"papermap-worker/events"
	"papermap-worker/events/embedded"
	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
)

// localStack is a NATS server and a Papermap simulator inside this process, and the configuration
// of a worker that uses them. It reads no settings from the environment, and listens and calls on
// loopback only.
type localStack struct {
	nats      *embedded.Server
	server    *simulator.Server
	simulator *simulator.Simulator // that server serves
	config    serveConfig
}

// startLocalStack keeps its data in the folder dir. A port of 0 is any free one. flags are settings
// of serve, which otherwise has its defaults. The stack ends with the command.
func startLocalStack(a *app, dir string, natsPort, simulatorPort int, flags ...string) (*localStack, error) {
	workspace := papermap.Workspace{
		ID:       "ws-local",
		Key:      papermap.KeyPair{ID: "ak_local", Secret: papermap.NewSecret("sk_local_0123456789")},
		EmbedKey: papermap.KeyPair{ID: "ak_local_embed", Secret: papermap.NewSecret("sk_local_embed")},
	}
	sim := simulator.New(simulator.Options{Workspaces: []papermap.Workspace{workspace}})
	api, err := simulator.Serve(sim, fmt.Sprintf("127.0.0.1:%d", simulatorPort))
	if err != nil {
		return nil, err
	}
	a.closers = append(a.closers, api.Close)
	nats, err := embedded.Start(filepath.Join(dir, "jetstream"), natsPort)
	if err != nil {
		return nil, err
	}
	a.closers = append(a.closers, nats.Close)

	var serve serveCmd
	if _, err := kong.Must(&serve).Parse(append([]string{
		"--papermap-api-url=" + api.URL, "--papermap-embed-url=" + api.URL + "/embedded/dashboard",
		"--papermap-workspace-id=" + workspace.ID, "--papermap-api-key-id=" + workspace.Key.ID,
		"--papermap-embed-api-key-id=" + workspace.EmbedKey.ID,
	}, flags...)); err != nil {
		return nil, err
	}
	secrets := map[string]string{
		"PAPERMAP_SECRET_KEY":       workspace.Key.Secret.Reveal(),
		"PAPERMAP_EMBED_SECRET_KEY": workspace.EmbedKey.Secret.Reveal(),
		"NATS_URL":                  nats.URL(),
		"DATABASE_URL":              "sqlite:" + filepath.Join(dir, "papermap.db"),
	}
	p := &parser{getenv: func(name string) string { return secrets[name] }, problems: a.problems}
	config, err := serve.config(p)
	config.worker.Build = a.build
	return &localStack{nats, api, sim, config}, err
}

// run runs a worker until use has returned and, if use succeeded, stay is false. use's context ends
// with the worker, without which use would wait forever.
func (s *localStack) run(a *app, stay bool, use func(context.Context) error) error {
	ctx, stop := context.WithCancel(a.ctx)
	defer stop()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return serve(ctx, s.config, a.log) })
	group.Go(func() error {
		err := use(ctx)
		if !stay {
			stop()
		} else if ctx.Err() != nil {
			return nil // it was interrupted, or the worker's error says why
		}
		return err
	})
	return group.Wait()
}

// connect opens a connection to NATS, until the command ends, and makes sure that the streams
// exist.
func (s *localStack) connect(a *app) (*events.Bus, error) {
	options := s.config.bus
	options.Name = "papermap-worker-cli"
	bus, err := events.Connect(options, a.log)
	if err != nil {
		return nil, err
	}
	a.closers = append(a.closers, func() { closeWithin(2*time.Second, bus.Close) })
	return bus, bus.EnsureStreams(a.ctx)
}
