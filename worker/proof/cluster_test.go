package proof_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"papermap-worker/papermap/simulator"
	"papermap-worker/worker/proof"
)

// TestAClusterThatLosesItsLeaderLosesNoEvent runs a worker on three NATS servers with three copies of each stream. While a few
// hundred tenants are published, the server that leads the stream is killed and started again, and then the next one.
func TestAClusterThatLosesItsLeaderLosesNoEvent(t *testing.T) {
	t.Parallel()
	p := build(t)
	dir := t.TempDir()
	var servers []*natsServer
	var routes []string
	for i := range 3 {
		n := newNATS(t, p, dir, fmt.Sprintf("node%d", i))
		port, err := freePort()
		if err != nil {
			t.Fatal(err)
		}
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", port))
		servers = append(servers, n)
	}
	for i, n := range servers {
		n.more = []string{"-n", fmt.Sprintf("node%d", i), "--cluster_name", "proof", "--cluster", routes[i], "--routes", strings.Join(routes, ",")}
	}
	s := newSystem(t, "cluster", p, servers, dir, "", 1, "WORKER_CONCURRENCY=16", "NATS_STREAM_REPLICAS=3")
	worker, err := s.startWorker("worker0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		worker.kill()
		if t.Failed() {
			t.Logf("the end of the worker's log:\n%s", tail(filepath.Join(dir, "worker0.log"), 6000))
		}
	})
	eventually(t, 30*time.Second, func() error {
		for _, name := range []string{"PAPERMAP", "PAPERMAP_DEAD"} {
			stream, err := s.js.Stream(t.Context(), name)
			if err != nil {
				return err
			}
			if n := stream.CachedInfo().Config.Replicas; n != 3 {
				t.Fatalf("stream %s has %d copies", name, n)
			}
		}
		return nil
	})

	s.sim.SetUsage(workspace.ID, simulator.Usage{Tenants: usageTenants})
	l := &load{s: s, random: rand.New(rand.NewPCG(1, 1))}
	ctx, end := context.WithTimeout(t.Context(), 9*time.Second)
	defer end()
	var doers sync.WaitGroup
	var history proof.History
	doers.Go(func() { history.Tokens = l.tokens(ctx, rand.New(rand.NewPCG(2, 2))) })
	doers.Go(func() { history.Commits = l.commits(ctx) })
	doers.Go(func() {
		if err := l.run(ctx, 150); err != nil {
			t.Error(err)
		}
	})
	var killed []string
	for range 2 {
		sleep(ctx, time.Second)
		var leader string
		eventually(t, time.Minute, func() error {
			stream, err := s.js.Stream(t.Context(), "PAPERMAP")
			if err != nil {
				return err
			}
			info := stream.CachedInfo().Cluster
			for _, replica := range info.Replicas {
				if !replica.Current {
					return fmt.Errorf("%s is not up to date", replica.Name)
				}
			}
			if leader = info.Leader; leader == "" {
				return errors.New("no leader")
			}
			return nil
		})
		var node int
		if _, err := fmt.Sscanf(leader, "node%d", &node); err != nil {
			t.Fatalf("leader %q: %v", leader, err)
		}
		killed = append(killed, leader)
		if err := servers[node].restart(1500 * time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	doers.Wait()
	t.Logf("killed %v while %d events of %d tenants were published", killed, len(l.published), len(l.tenants))
	quiet := time.Now()
	if err := waitFor(t.Context(), 40*time.Second, s.quiet); err != nil {
		t.Errorf("still not quiet: %v", err)
	}
	t.Logf("quiet after %v", time.Since(quiet).Round(100*time.Millisecond))
	if info := s.consumerInfo("papermap-worker"); info.Config.Replicas != 0 && info.Config.Replicas != 3 {
		t.Errorf("the consumer has %d copies", info.Config.Replicas)
	}
	worker.signal(syscall.SIGTERM)
	select {
	case <-worker.done:
		if _, code := worker.ended(); code != 0 {
			t.Errorf("exit code %d after SIGTERM", code)
		}
	case <-time.After(30 * time.Second):
		t.Error("still running after SIGTERM")
	}
	history.Published = l.published
	if history.Reported, err = l.reported(); err != nil {
		t.Fatal(err)
	}
	s.check(history)
}

func (s *system) consumerInfo(name string) *jetstream.ConsumerInfo {
	s.t.Helper()
	c, err := s.js.Consumer(s.t.Context(), "PAPERMAP", name)
	if err != nil {
		s.t.Fatal(err)
	}
	return c.CachedInfo()
}
