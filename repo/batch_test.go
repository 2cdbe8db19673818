package repo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// openBatches opens a migrated SQLite file and returns its path.
func openBatches(t *testing.T) (db *DB, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "test.db")
	db = openFile(t, path)
	if _, err := db.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	return db, path
}

// written is a job that writes a row of this name, then does what else is wanted.
func written(name string, then func(*tx) error) *job {
	return &job{ctx: ctx, done: make(chan struct{}), do: func(_ context.Context, t *tx) error {
		if err := t.exec(ctx, "INSERT INTO leases (name, holder, until) VALUES (?, 'h', ?)", name,
			t.now); err != nil {
			return err
		}
		return then(t)
	}}
}

func ok(*tx) error { return nil }

// rows lists the names of the rows that were written.
func rows(t *testing.T, db *DB) (names []string) {
	t.Helper()
	must(t, db.read.SelectContext(ctx, &names, "SELECT name FROM leases ORDER BY name"))
	return names
}

// failures gives each job's error as text.
func failures(group []*job) (list []string) {
	for _, j := range group {
		list = append(list, strings.TrimPrefix(fmt.Sprint(j.err), "<nil>"))
	}
	return list
}

func TestBatchRollsBackAFailedJobAlone(t *testing.T) {
	db, _ := openBatches(t)
	group := []*job{
		written("a", ok),
		written("b", func(*tx) error { return errors.New("no") }),
		written("c", ok),
		written("d", func(*tx) error { panic("oh") }),
		written("e", func(t *tx) error { return t.exec(ctx, "INSERT INTO leases (name) VALUES ('a')") }),
		written("f", func(*tx) error { var m *Mapping; m.deriveStatus(); return nil }),
		written("g", ok),
	}
	db.batches.write(group, false, func() {})
	same(t, "errors", failures(group), []string{
		"", "no", "", "panic in a transaction: oh", "NOT NULL constraint failed: leases.holder",
		"panic in a transaction: runtime error: invalid memory address or nil pointer dereference", "",
	})
	same(t, "rows", rows(t, db), []string{"a", "c", "g"})
}

func TestBatchFailsAllJobsWhenCommitFails(t *testing.T) {
	db, _ := openBatches(t)
	db.write.MustExec(`CREATE TABLE parent (id INTEGER PRIMARY KEY);
		CREATE TABLE child (parent INTEGER REFERENCES parent DEFERRABLE INITIALLY DEFERRED)`)
	// refused at COMMIT, and not before
	orphan := func(t *tx) error { return t.exec(ctx, "INSERT INTO child VALUES (1)") }
	group := []*job{written("a", ok), written("b", orphan), written("c", ok)}
	db.batches.write(group, false, func() {})
	for _, text := range failures(group) {
		if !strings.Contains(text, "commit: FOREIGN KEY") {
			t.Fatalf("commit gave %q", text)
		}
	}
	same(t, "rows", rows(t, db), []string(nil))

	// The same through update, and the connection is usable after it.
	if err := db.transact(ctx, written("d", orphan).do); err == nil {
		t.Fatal("a commit that failed was reported as done")
	}
	must(t, db.transact(ctx, written("e", ok).do))
	same(t, "rows", rows(t, db), []string{"e"})
}

func TestOutboxIsRolledBackWithTheCommit(t *testing.T) {
	db, _ := openBatches(t)
	c := claim(t, db, "a")
	before := mapping(t, db, "a")
	db.write.MustExec(`CREATE TABLE child (
		tenant TEXT REFERENCES leases (name) DEFERRABLE INITIALLY DEFERRED);
		CREATE TRIGGER spoil AFTER INSERT ON outbox BEGIN INSERT INTO child VALUES ('none'); END`)
	if _, err := db.Finish(ctx, c, dashboard(c), 200, announce("n")); err == nil {
		t.Fatal("a commit that failed was reported as done")
	}
	same(t, "events out", unsent(t, db, 10), []string(nil))
	same(t, "the mapping", mapping(t, db, "a"), before)
	same(t, "attempts", outcomes(t, db, "a"), []Outcome{OutcomeSent})
	db.write.MustExec("DROP TRIGGER spoil")
	same(t, "recorded at the second try", finish(t, db, c), true)
}

func TestBatchOnAFullDiskWritesOrFails(t *testing.T) {
	db, _ := openBatches(t)
	db.write.MustExec("PRAGMA max_page_count = 200") // of 4 KiB
	fill := func(size int) func(*tx) error {
		return func(t *tx) error {
			return t.exec(ctx, `INSERT INTO outbox (event_id, tenant_id, type, data, created_at)
				VALUES (hex(randomblob(8)), '', '', zeroblob(?), '')`, size)
		}
	}
	group := []*job{
		written("a", fill(10)), written("b", fill(1<<20)), written("c", fill(10)),
		written("d", fill(450_000)), written("e", fill(450_000)), written("f", fill(10)),
	}
	db.batches.write(group, false, func() {})
	var want []string
	for i, j := range group {
		if j.err == nil {
			want = append(want, string(rune('a'+i)))
		}
	}
	same(t, "rows", rows(t, db), want)
	if group[1].err == nil || group[4].err == nil {
		t.Fatalf("the disk was not full: %q", failures(group))
	}

	e := created("big", 10, "m")
	e.Description = strings.Repeat("x", 1<<20)
	if _, err := db.Begin(ctx, e, false); err == nil {
		t.Fatal("a description of 1 MiB was written to a full disk")
	}
	same(t, "the tenant that did not fit", mapping(t, db, "big"), Mapping{})
	db.write.MustExec("PRAGMA max_page_count = 100000")
	same(t, "once there is room", begin(t, db, e).Step, StepCreate)
}

func TestBatchFinishesWhatACancelledCallerBegan(t *testing.T) {
	db := openTest(t)
	leaving, leave := context.WithCancel(ctx)
	now := db.now
	db.now = func() time.Time { leave(); return now() } // the write has started
	c, err := db.Begin(leaving, created("a", 10, "m"), false)
	if err != nil {
		t.Fatalf("a write that had started was given up: %v", err)
	}
	same(t, "the claim", c.Mapping, mapping(t, db, "a"))
	for name, write := range map[string]func() error{
		"Finish": func() error { _, err := db.Finish(leaving, c, "d", 200, announce("n")); return err },
		"Change": func() error {
			_, err := db.Change(leaving, Change{TenantID: "b", To: Suspended, EventTime: minute(1)})
			return err
		},
		"MarkSent":  func() error { return db.MarkSent(leaving, []int64{1}) },
		"TakeLease": func() error { _, err := db.TakeLease(leaving, "l", "h", time.Hour); return err },
		"DropLease": func() error { return db.DropLease(leaving, "l", "h") },
	} {
		leaving, leave = context.WithCancel(ctx)
		if err := write(); err != nil {
			t.Errorf("%s that had started was given up: %v", name, err)
		}
	}
	leave()
}

func TestBatchSkipsACallerCancelledBeforeItsTurn(t *testing.T) {
	db, _ := openBatches(t)
	leaving, leave := context.WithCancel(ctx)
	started, end := make(chan struct{}), make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		err := db.transact(ctx, written("a", func(*tx) error { close(started); <-end; return nil }).do)
		if err != nil {
			t.Error(err)
		}
	})
	<-started
	leave()
	if _, err := db.Begin(leaving, created("b", 10, "m"), false); !errors.Is(err, context.Canceled) {
		t.Errorf("leaving while another group was being written gave %v", err)
	}
	close(end)
	group.Wait()
	same(t, "the tenant of the caller who left", mapping(t, db, "b"), Mapping{})
}

func TestBatchKeepsEveryAcknowledgedWrite(t *testing.T) {
	db, path := openBatches(t)
	const writers, tenants = 64, 8
	want := make([]map[string]string, writers)
	var group sync.WaitGroup
	for w := range writers {
		want[w] = map[string]string{}
		group.Go(func() {
			for i := range tenants {
				tenant := fmt.Sprintf("tenant-%d-%d", w, i)
				c, err := db.Begin(ctx, created(tenant, 10, "m"), false)
				if err == nil {
					_, err = db.Finish(ctx, c, dashboard(c), 200, announce(tenant))
				}
				if err != nil {
					t.Error(err)
				}
				want[w][tenant] = dashboard(c)
			}
		})
	}
	group.Wait()
	must(t, db.Close())

	db = openFile(t, path)
	got := map[string]string{}
	list, err := db.Mappings(ctx, Active, "", writers*tenants+1)
	must(t, err)
	for _, m := range list {
		got[m.TenantID] = m.DashboardID
	}
	all := map[string]string{}
	for _, m := range want {
		maps.Copy(all, m)
	}
	same(t, "dashboards after reopening", got, all)
	same(t, "events out after reopening", len(unsent(t, db, writers*tenants+1)), writers*tenants)
}

func TestCloseDuringWritesLeavesACommitOrAnError(t *testing.T) {
	for round := range 5 {
		db, path := openBatches(t)
		const writers = 64
		committed := make([][]string, writers) // what each writer was committed is written
		var count atomic.Int64
		enough := make(chan struct{})
		var group sync.WaitGroup
		for w := range writers {
			group.Go(func() {
				for i := 0; ; i++ {
					name := fmt.Sprintf("%02d-%04d", w, i)
					if err := db.transact(ctx, written(name, ok).do); err != nil {
						if !errors.Is(err, errClosed) {
							t.Errorf("after Close: %v", err)
						}
						return
					}
					committed[w] = append(committed[w], name)
					if count.Add(1) == int64(100*(round+1)) {
						close(enough)
					}
				}
			})
		}
		<-enough
		for range 2 { // twice does no harm
			group.Go(func() {
				if err := db.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		same(t, "rows after reopening", rows(t, openFile(t, path)),
			slices.Sorted(slices.Values(slices.Concat(committed...))))
	}
}

func TestCloseWaitsForTheWriteInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db, path := openBatches(t)
		started, end := make(chan struct{}), make(chan struct{})
		var wrote, closed error = errors.New("not yet"), errors.New("not yet")
		go func() {
			wrote = db.transact(ctx, written("a", func(*tx) error { close(started); <-end; return nil }).do)
		}()
		<-started
		go func() { closed = db.Close() }()
		synctest.Wait()
		same(t, "Close has returned while a write was in flight", closed == nil, false)
		close(end)
		synctest.Wait()
		must(t, errors.Join(wrote, closed))
		same(t, "rows after reopening", rows(t, openFile(t, path)), []string{"a"})
	})
}
