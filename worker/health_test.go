package worker_test

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"papermap-worker/worker/workertest"
)

// What doctor calls fatal keeps the worker from being ready, in the same words, and readiness returns
// when it is repaired.
func TestStateReportsWhatCheckCallsFatal(t *testing.T) {
	workertest.Virtual(t, workertest.Options{}, func(t *testing.T, w *workertest.World) {
		i := w.Workers[0]
		stream, err := w.JS.Stream(t.Context(), "PAPERMAP")
		w.Must(err)
		right := stream.CachedInfo().Config
		wrong := right
		wrong.MaxMsgsPerSubject = 5 // which loses events
		for _, step := range []struct {
			config jetstream.StreamConfig
			ready  bool
		}{{wrong, false}, {right, true}} {
			_, err := w.JS.UpdateStream(t.Context(), step.config)
			w.Must(err)
			time.Sleep(30 * time.Second) // a check every 10 s, and a consumer that builds itself again
			s := i.State()
			if s.Ready != step.ready {
				t.Fatalf("ready is %v with at most %d messages per subject: %v", s.Ready,
					step.config.MaxMsgsPerSubject, s.Reasons)
			}
			for _, f := range i.Bus.CheckTopology(t.Context()) {
				if f.Fatal && !strings.Contains(strings.Join(s.Reasons, "\n"), f.String()) {
					t.Errorf("readiness lacks %q: %v", f, s.Reasons)
				}
			}
		}
	})
}
