package proof_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"papermap-worker/events"
	"papermap-worker/papermap/simulator"
	"papermap-worker/worker/proof"
)

// TestClusterLosesNoEventWithItsLeader runs a worker on three NATS servers with three copies of
// each stream. While a few tenants are published, the leader of the stream is killed and started
// again; in the long form then the next one.
func TestClusterLosesNoEventWithItsLeader(t *testing.T) {
	t.Parallel()
	s := newSystem(t, "cluster", "", 3, 1, "WORKER_CONCURRENCY=16", "NATS_STREAM_REPLICAS=3")
	worker, err := s.startWorker("worker0")
	s.must(err)
	t.Cleanup(worker.kill)
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
	l := newLoad(s, rand.New(rand.NewPCG(1, 1)))
	ctx, end := context.WithCancel(t.Context())
	defer end()
	var group sync.WaitGroup
	var history proof.History
	l.begin(ctx, &group, 100, rand.New(rand.NewPCG(2, 2)), &history)
	kills := 2
	if short() {
		kills = 1
	}
	var killed []string
	for range kills {
		sleep(ctx, time.Second)
		node := s.leader()
		killed = append(killed, fmt.Sprintf("node%d", node))
		s.must(s.nats[node].restart(1500 * time.Millisecond))
	}
	sleep(ctx, time.Second)
	end()
	group.Wait()
	t.Logf("killed %v while %d events of %d tenants were published", killed, len(l.published), len(l.tenants))
	s.expire(t.Context(), false) // events whose acknowledgements were lost
	s.waitQuiet(40 * time.Second)
	consumer, err := s.js.Consumer(t.Context(), "PAPERMAP", events.MainConsumer)
	s.must(err)
	if n := consumer.CachedInfo().Config.Replicas; n != 0 && n != 3 {
		t.Errorf("the consumer has %d copies", n)
	}
	worker.terminate(t)
	l.judge(history)
}

// leader waits until all copies of the stream are up to date, and returns the number of the server
// that leads it.
func (s *system) leader() (node int) {
	s.t.Helper()
	eventually(s.t, time.Minute, func() error {
		stream, err := s.js.Stream(s.t.Context(), "PAPERMAP")
		if err != nil {
			return err
		}
		info := stream.CachedInfo().Cluster
		for _, replica := range info.Replicas {
			if !replica.Current {
				return fmt.Errorf("%s is not up to date", replica.Name)
			}
		}
		if info.Leader == "" {
			return errors.New("no leader")
		}
		_, err = fmt.Sscanf(info.Leader, "node%d", &node)
		return err
	})
	return node
}
