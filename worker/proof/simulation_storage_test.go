package proof_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"papermap-worker/events"
	"papermap-worker/worker/proof"
)

// refuseWrites makes the database refuse writes to a table, as with a full disk.
func (s *simulation) refuseWrites(random *rand.Rand, _ time.Duration) (end func()) {
	table, operation := tables[random.IntN(len(tables))], []string{"INSERT", "UPDATE"}[random.IntN(2)]
	name := fmt.Sprint("full_", time.Now().UnixNano())
	create := fmt.Sprintf(`CREATE TRIGGER %s BEFORE %s ON %s BEGIN SELECT RAISE(%s, 'disk full'); END`,
		name, operation, table, []string{"ROLLBACK", "ABORT"}[random.IntN(2)])
	remove := "DROP TRIGGER " + name
	if s.Shared() {
		create = fmt.Sprintf(`CREATE OR REPLACE FUNCTION disk_full() RETURNS trigger LANGUAGE plpgsql AS
			'BEGIN RAISE EXCEPTION ''disk full'' USING ERRCODE = ''53100''; END';
			CREATE TRIGGER %s BEFORE %s ON %s EXECUTE FUNCTION disk_full()`, name, operation, table)
		remove += " ON " + table
	}
	if s.full() {
		return nil
	}
	_, err := s.SQL.Exec(create)
	s.Must(err)
	return func() { s.untilDone(remove) }
}

// untilDone runs a statement, later if the disk is full.
func (s *simulation) untilDone(statement string) {
	if s.full() {
		s.at(time.Now().Add(time.Second), func() { s.untilDone(statement) })
		return
	}
	_, err := s.SQL.Exec(statement)
	s.Must(err)
}

// cutDatabase ends the workers' connections to PostgreSQL.
func (s *simulation) cutDatabase(*rand.Rand, time.Duration) (end func()) {
	s.endSessions()
	return nil
}

// endSessions ends the workers' connections to PostgreSQL, with what they have not committed.
func (s *simulation) endSessions() {
	_, err := s.SQL.Exec(`SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
		WHERE datname = current_database() AND application_name = 'papermap-worker'`)
	if err != nil {
		s.t.Error(err)
	}
}

// drawConsumer draws one of the worker's consumers.
func drawConsumer(random *rand.Rand) string {
	return []string{events.MainConsumer, events.AccessConsumer}[random.IntN(2)]
}

func (s *simulation) deleteConsumer(random *rand.Rand, _ time.Duration) (end func()) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := s.system.js.DeleteConsumer(ctx, "PAPERMAP", drawConsumer(random)); err != nil {
		s.count.add("consumer not deleted, NATS is away", 1)
	}
	return nil
}

func (s *simulation) changeConsumer(random *rand.Rand, _ time.Duration) (end func()) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := s.system.js.Consumer(ctx, "PAPERMAP", drawConsumer(random))
	if err != nil {
		return nil
	}
	config := c.CachedInfo().Config
	switch random.IntN(4) {
	case 0:
		config.AckWait = 2 * time.Second
	case 1:
		config.MaxAckPending = 1
	case 2:
		config.MaxDeliver = 2
	case 3:
		config.FilterSubjects = config.FilterSubjects[:1]
	}
	_, err = s.system.js.UpdateConsumer(ctx, "PAPERMAP", config)
	if err != nil {
		s.count.add("consumer not changed", 1)
	}
	return nil
}

func (s *simulation) changeStream(random *rand.Rand, _ time.Duration) (end func()) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	stream, err := s.system.js.Stream(ctx, "PAPERMAP")
	if err != nil {
		return nil
	}
	config := stream.CachedInfo().Config
	switch random.IntN(3) {
	case 0:
		config.Discard = jetstream.DiscardOld
	case 1:
		n := random.IntN(len(config.Subjects))
		config.Subjects = slices.Delete(slices.Clone(config.Subjects), n, n+1)
	case 2:
		config.Duplicates = 10 * time.Second
	}
	if _, err := s.system.js.UpdateStream(ctx, config); err != nil {
		s.count.add("stream not changed", 1)
		return nil
	}
	return s.resetStream
}

// resetStream gives the stream its settings back, as soon as NATS is there.
func (s *simulation) resetStream() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if _, err := s.system.js.UpdateStream(ctx, s.stream); err != nil {
		s.at(time.Now().Add(time.Second), s.resetStream)
	}
}

// rebuildStream deletes the stream of events with everything in it, also what waits. It is made
// again at once, or perhaps by a worker. Then what it had is published again.
func (s *simulation) rebuildStream(random *rand.Rand, _ time.Duration) (end func()) {
	if s.natsDown {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	js, l := s.system.js, s.load
	l.gate.Lock()
	defer l.gate.Unlock()
	sealed := s.stream
	sealed.Sealed = true // it takes no event from workers either, of which nothing would be known
	if _, err := js.UpdateStream(ctx, sealed); err != nil {
		s.count.add("stream not rebuilt", 1)
		return nil
	}
	l.archive.Published = l.published // who holds the gate may use them
	archive, lost, err := proof.Archive(ctx, s.system.view(), l.archive)
	s.Must(err)
	l.mu.Lock()
	l.archive, l.published = archive, archive.Published
	l.mu.Unlock()
	s.Must(js.DeleteStream(ctx, "PAPERMAP"))
	if random.IntN(2) == 0 {
		_ = waitFor(ctx, 10*time.Second, func() error { // the workers may all be away
			_, err := js.Stream(ctx, "PAPERMAP")
			return err
		})
	}
	_, err = js.CreateStream(ctx, s.stream)
	if err != nil && !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		s.Must(err)
	}
	for _, p := range lastCopies(lost) {
		msg := &nats.Msg{Subject: subjects.Event(p.Type), Header: p.Header, Data: p.Data}
		p.Sequence, p.StoredAt, p.Header, p.Lost = 0, time.Time{}, nil, false
		s.Must(l.store(ctx, event{msg, p}))
		s.count.add("events lost with a stream and published again", 1)
	}
	return nil
}

// deleteDeadStream deletes the stream of dead letters, which is recreated at once or by a worker.
func (s *simulation) deleteDeadStream(random *rand.Rand, _ time.Duration) (end func()) {
	if s.natsDown {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	js, l := s.system.js, s.load
	stream, err := js.Stream(ctx, "PAPERMAP_DEAD")
	if err != nil { // a worker has yet to recreate it
		return nil
	}
	config := stream.CachedInfo().Config
	sealed := config
	sealed.Sealed = true // so that no dead letter is stored after the archive was read
	if _, err := js.UpdateStream(ctx, sealed); err != nil {
		s.count.add("stream of dead letters not deleted", 1)
		return nil
	}
	l.gate.Lock()
	l.archive, err = proof.ArchiveDead(ctx, s.system.view(), l.archive)
	l.gate.Unlock()
	s.Must(err)
	s.Must(js.DeleteStream(ctx, "PAPERMAP_DEAD"))
	if random.IntN(2) == 0 {
		_, err = js.CreateStream(ctx, config)
		if err != nil && !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			s.Must(err)
		}
	}
	return nil
}

// ownDisk reports whether a run has a disk that can be filled, which needs the right to mount.
var ownDisk = sync.OnceValue(func() bool {
	if *simDays == 0 {
		return false
	}
	dir, err := os.MkdirTemp("", "papermap-mount-")
	if err != nil {
		return false
	}
	defer os.Remove(dir)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		return false
	}
	return syscall.Unmount(dir, 0) == nil
})

const diskSize = 256 << 20

func (s *simulation) filler() string { return filepath.Join(s.Dir, "filler") }

func (s *simulation) full() bool {
	_, err := os.Stat(s.filler())
	return err == nil
}

// fillDisk leaves JetStream and SQLite no room. At the end NATS is started again, as an operator
// would do.
func (s *simulation) fillDisk(*rand.Rand, time.Duration) (end func()) {
	if s.natsDown {
		return nil
	}
	file, err := os.Create(s.filler())
	s.Must(err)
	chunk := make([]byte, 64<<10)
	for size := len(chunk); size > 0; {
		if _, err := file.Write(chunk[:size]); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else {
			s.Must(err)
		}
	}
	s.Must(file.Close())
	s.natsDown = true
	return func() {
		s.Must(os.Remove(s.filler()))
		s.StopNATS()
		s.StartNATS()
		s.natsDown = false
	}
}
