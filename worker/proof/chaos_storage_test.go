package proof_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"papermap-worker/events"
	"papermap-worker/worker/proof"
)

// duplicateWindow is that of both streams. It is short, so that a worker can sleep past it.
func duplicateWindow() time.Duration {
	if short() {
		return time.Second
	}
	return 10 * time.Second
}

// forgetSoon gives both streams the short duplicate window.
func (c *chaos) forgetSoon(ctx context.Context) error {
	short := func(s *jetstream.StreamConfig) { s.Duplicates = duplicateWindow() }
	for _, name := range []string{"PAPERMAP", "PAPERMAP_DEAD"} {
		if err := c.edit(ctx, name, short); err != nil {
			return err
		}
	}
	return nil
}

func (c *chaos) edit(ctx context.Context, name string, change func(*jetstream.StreamConfig)) error {
	stream, err := c.js.Stream(ctx, name)
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", name, err)
	}
	config := stream.CachedInfo().Config
	change(&config)
	if _, err := c.js.UpdateStream(ctx, config); err != nil {
		return fmt.Errorf("edit stream %s: %w", name, err)
	}
	return nil
}

// destroy deletes consumers and streams, and fills disks, each in turn.
func (c *chaos) destroy(ctx context.Context, random *rand.Rand) {
	wait := min(*chaosTime/3, 12*time.Second)
	ways := []func(context.Context, *rand.Rand) error{c.deleteConsumer, c.rebuildStream}
	if c.disks {
		ways = append(ways, c.fillNATS)
		if c.replicas == 1 {
			ways = append(ways, c.fillDatabase)
		}
	}
	var bag []func(context.Context, *rand.Rand) error
	for sleep(ctx, wait+time.Duration(random.Int64N(int64(wait)))) {
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		err := drawFrom(&bag, ways, random)(after, random)
		cancel()
		if err != nil {
			c.t.Errorf("%s: %v", c.name, err)
			return
		}
	}
}

// deleteConsumer deletes a consumer. A worker has to make it again, from the oldest event.
func (c *chaos) deleteConsumer(ctx context.Context, random *rand.Rand) error {
	c.turn.Lock()
	defer c.turn.Unlock()
	name := []string{events.MainConsumer, events.AccessConsumer}[random.IntN(2)]
	err := waitFor(ctx, time.Minute, func() error {
		err := c.js.DeleteConsumer(ctx, "PAPERMAP", name)
		if errors.Is(err, jetstream.ErrConsumerNotFound) { // deleted by a try that got no answer
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("delete consumer %s: %w", name, err)
	}
	c.count(consumerDeleted)
	return nil
}

// rebuildStream deletes the stream of events with everything in it, also what waits. It is made
// again at once, or in the long form perhaps by a worker; then what it had is published again.
func (c *chaos) rebuildStream(ctx context.Context, random *rand.Rand) error {
	c.turn.Lock()
	defer c.turn.Unlock()
	l := c.load
	l.gate.Lock()
	defer l.gate.Unlock()
	if _, err := c.db.Unsent(ctx, 1); err != nil {
		return nil // no worker has migrated the database yet, or it is away: next time
	}
	// Sealed, it takes no event from workers either, of which nothing would be known.
	seal := func() error {
		return c.edit(ctx, "PAPERMAP", func(s *jetstream.StreamConfig) { s.Sealed = true })
	}
	if err := waitFor(ctx, time.Minute, seal); err != nil {
		return err
	}
	l.mu.Lock()
	l.archive.Published = l.published
	l.mu.Unlock()
	var archive proof.History
	var lost []proof.Published
	err := waitFor(ctx, time.Minute, func() (err error) { // PostgreSQL may be starting
		archive, lost, err = proof.Archive(ctx, c.view(), l.archive)
		return err
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.archive, l.published = archive, archive.Published
	l.mu.Unlock()
	if err := c.js.DeleteStream(ctx, "PAPERMAP"); err != nil {
		return fmt.Errorf("delete the stream: %w", err)
	}
	if !short() && random.IntN(2) == 0 {
		_ = waitFor(ctx, 10*time.Second, func() error { // the workers may all be dead or cut off
			_, err := c.js.Stream(ctx, "PAPERMAP")
			return err
		})
	}
	err = c.withBus(func(ctx context.Context, b *events.Bus) error { return b.EnsureStreams(ctx) })
	if err != nil {
		return err
	}
	if err := c.forgetSoon(ctx); err != nil {
		return err
	}
	lost = lastCopies(lost)
	for _, p := range lost {
		msg := &nats.Msg{Subject: subjects.Event(p.Type), Header: p.Header, Data: p.Data}
		p.Sequence, p.StoredAt, p.Header, p.Lost = 0, time.Time{}, nil, false
		store := func() error { return l.store(ctx, event{msg, p}) }
		if err := waitFor(ctx, time.Minute, store); err != nil { // the server may be slow
			return fmt.Errorf("publish again: %w", err)
		}
	}
	c.count(streamRebuilt)
	c.total.add(c.name+": events lost with a stream and published again", len(lost))
	return nil
}

// lastCopies drops events of which there is a later copy, and usage.sync without an id: those would
// read all usage again. The newest event of each kind decides what a tenant is.
func lastCopies(list []proof.Published) []proof.Published {
	seen := map[string]bool{}
	var last []proof.Published
	for _, p := range slices.Backward(list) {
		key := p.Type + " " + p.EventID
		if p.EventID != "" && seen[key] || p.EventID == "" && p.Type == events.TypeUsageSync {
			continue
		}
		seen[key] = true
		last = append(last, p)
	}
	slices.Reverse(last)
	return last
}

// fillNATS leaves the NATS server no room until it says so. Then it is killed and started again, as an
// operator would do.
func (c *chaos) fillNATS(ctx context.Context, _ *rand.Rand) error {
	c.turn.Lock()
	defer c.turn.Unlock()
	full, err := c.fill(ctx, "node0", "node0.log", "no space left on device")
	if err != nil {
		return err
	}
	if full {
		c.count(natsFull)
	}
	return c.nats[0].restart(0)
}

// fillDatabase leaves SQLite no room until a worker says so. A worker may not be able to start without.
func (c *chaos) fillDatabase(ctx context.Context, _ *rand.Rand) error {
	c.away.Store(math.MaxInt64)
	defer func() { c.away.Store(time.Now().Add(3 * time.Second).UnixNano()) }()
	full, err := c.fill(ctx, "database", "worker0.log", "database or disk is full")
	if full {
		c.count(databaseFull)
	}
	return err
}

// mount gives a folder of the system a small disk of its own.
func (s *system) mount(name string) {
	s.t.Helper()
	dir := filepath.Join(s.dir, name)
	s.must(os.Mkdir(dir, 0o700))
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256m"); err != nil {
		s.t.Fatalf("mount a disk to be filled (it needs root): %v", err)
	}
	s.t.Cleanup(func() {
		if s.t.Failed() {
			if err := os.CopyFS(dir+"-kept", os.DirFS(dir)); err != nil {
				s.t.Log(err)
			}
		}
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			s.t.Error(err)
		}
	})
}

// fill leaves a disk no room, also when something on it is deleted, and ends a few seconds after the
// log says so. It reports whether it did.
func (c *chaos) fill(ctx context.Context, disk, log, says string) (full bool, err error) {
	logged, err := os.Stat(filepath.Join(c.dir, log))
	if err != nil {
		return false, err
	}
	file, err := os.Create(filepath.Join(c.dir, disk, "filler"))
	if err != nil {
		return false, err
	}
	defer file.Close()
	defer os.Remove(file.Name())
	chunk := make([]byte, 64<<10)
	end := time.Now().Add(30 * time.Second)
	for ; time.Now().Before(end); sleep(ctx, 100*time.Millisecond) {
		if c.replicas == 1 { // the log that SQLite writes ahead has room for a while
			_, _ = c.sql.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)") // it fails while others write
		}
		for size := len(chunk); size > 0; {
			if _, err := file.Write(chunk[:size]); errors.Is(err, syscall.ENOSPC) {
				size /= 2
			} else if err != nil {
				return full, err
			}
		}
		text, err := tailOf(filepath.Join(c.dir, log), logged.Size())
		if err != nil {
			return full, err
		}
		if !full && strings.Contains(text, says) {
			full, end = true, time.Now().Add(5*time.Second)
		}
	}
	return full, nil
}

// tailOf reads a file from an offset on.
func tailOf(path string, from int64) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	text, err := io.ReadAll(io.NewSectionReader(file, from, math.MaxInt64-from))
	return string(text), err
}
