package proof_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// go test ./worker/proof -run TestStreamFromAnEarlier -v -timeout 1h -args -power.nats 12
var powerNATS = flag.Int("power.nats", 0, "how often a NATS server gets the files of an earlier moment")

// TestStreamFromAnEarlierMomentLosesOnlyItsEvents kills a NATS server and gives it the files that it had
// a while ago, as after a power failure: by default it syncs them every 2 minutes. The worker and
// its database are ahead of the stream then. The events of that while are missing, and published
// again they bring everything to where it was.
func TestStreamFromAnEarlierMomentLosesOnlyItsEvents(t *testing.T) {
	if *powerNATS == 0 {
		t.Skip("run it with -args -power.nats 12")
	}
	for _, interval := range []string{"2m", "always"} {
		var count tally
		for i := range *powerNATS {
			t.Run(fmt.Sprintf("sync_interval=%s/%d", interval, i), func(t *testing.T) {
				powerNATSRun(t, interval, i%2 == 0, &count)
			})
		}
		t.Logf("sync_interval: %s\n%s", interval, count.table())
	}
}

func powerNATSRun(t *testing.T, interval string, workerRuns bool, count *tally) {
	s := &system{t: t, name: "earlier"}
	s.prepare = func(dir string) error {
		s.settings = filepath.Join(dir, "nats.conf")
		text := fmt.Sprintf("jetstream { sync_interval: %s }\n", interval)
		return os.WriteFile(s.settings, []byte(text), 0o600)
	}
	s.start(1, 1, storedSettings(1)...)
	l := &ledger{system: s}
	worker, err := s.startWorker("worker0")
	s.must(err)
	t.Cleanup(func() { worker.kill() })
	eventually(t, time.Minute, func() error { return l.publish(t.Context(), 1, "created", "earlier-0") })
	random := randomOf(uint64(len(t.Name())), t.Name())
	publish := func(name string) {
		for i := range 20 + random.IntN(60) {
			s.must(l.publish(t.Context(), 1, "created", fmt.Sprintf("%s-%d", name, i+1)))
		}
	}
	publish("earlier")
	before := len(l.acked)
	copied := make(chan error)
	earlier := filepath.Join(s.dir, "earlier")
	go func() { copied <- os.CopyFS(earlier, os.DirFS(s.nats[0].dir)) }() // while events are published
	publish("while")
	s.must(<-copied)
	during := len(l.acked)
	publish("later")
	s.must(s.waitHandled(l))

	if !workerRuns {
		worker.kill()
	}
	s.nats[0].process.kill()
	s.must(os.RemoveAll(s.nats[0].dir))
	s.must(os.Rename(earlier, s.nats[0].dir))
	s.must(s.nats[0].start())
	if !workerRuns {
		worker, err = s.startWorker("worker0")
		s.must(err)
	}
	eventually(t, time.Minute, func() error { return l.publish(t.Context(), 2, "created", "after-0") })
	kept := l.kept()
	s.must(s.waitHandled(l))
	for i, e := range l.acked {
		part := "acknowledged before the copy"
		switch {
		case e.phase == 2:
			part = "acknowledged after the restart"
		case i >= during:
			part = "acknowledged after the copy"
		case i >= before:
			part = "acknowledged during the copy"
		}
		count.add(part, 1)
		if !kept[e.id()] {
			count.add(part+", missing", 1)
		}
	}
	if strings.Contains(worker.output(), "stream was recreated or restored") {
		count.add("runs in which the worker's log says so", 1)
	}
	for _, e := range l.acked {
		if !kept[e.id()] {
			s.must(l.publish(t.Context(), 2, e.kind, e.tenant))
		}
	}
	s.waitQuiet(2 * time.Minute)
	s.must(s.waitHandled(l))
	l.secondDashboards()
	count.add(fmt.Sprintf("runs, worker running: %v", workerRuns), 1)
}

// waitHandled waits until every acknowledged event has its effect.
func (s *system) waitHandled(l *ledger) error {
	all := map[string]bool{}
	for _, e := range l.acked {
		all[e.id()] = true
	}
	return waitFor(s.t.Context(), 2*time.Minute, func() error { return l.wrong(all) })
}
