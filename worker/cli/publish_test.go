package cli

import (
	"bytes"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// output is a writer whose text can be read while it is written to.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *output) text() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// A caller that waits for a sync of two workspaces sees how far each is, and waits for both, also
// while the second waits for its turn.
func TestWaitForRunsShowsEveryWorkspace(t *testing.T) {
	t.Parallel()
	db, err := repo.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "test.db"))
	must(t, err)
	defer db.Close()
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	of := func(workspace string) repo.Run {
		return repo.Run{WorkspaceID: workspace, EventID: "e", FromPeriod: "2026-01", ToPeriod: "2026-01"}
	}
	begin := func(workspace string) repo.Run {
		if taken, err := db.TakeRunLease(t.Context(), workspace, "holder"); err != nil || !taken {
			t.Fatal(taken, err)
		}
		run, err := db.StartRun(t.Context(), of(workspace), "holder")
		must(t, err)
		return run
	}
	end := func(run repo.Run, status repo.RunStatus) {
		var err error
		if status == repo.RunDone {
			err = db.CompleteRun(t.Context(), &run, repo.OutboxEvent{EventID: run.ID, Type: "usage.synced"})
		} else {
			err = db.EndRun(t.Context(), &run, status, "")
		}
		must(t, err)
	}
	must(t, db.PlanRuns(t.Context(), []repo.Run{of("ws-a"), of("ws-b")}))

	var screen, file, fileNotes output
	never := func() string { return "" }
	ended := make(chan error, 2)
	go func() {
		ended <- (&waiting{
			notes: notes{w: &screen, terminal: true}, db: db, event: events.Outgoing{ID: "e"}, paused: never,
		}).forRuns(t.Context(), &screen)
	}()
	go func() {
		ended <- (&waiting{
			notes: notes{w: &fileNotes}, db: db, event: events.Outgoing{ID: "e"}, paused: never,
		}).forRuns(t.Context(), &file)
	}()
	shows := func(text string) {
		t.Helper()
		for limit := time.Now().Add(10 * time.Second); !strings.Contains(screen.text(), clearLine+text); {
			if time.Now().After(limit) {
				t.Fatalf("the terminal shows %q, want %q", screen.text(), text)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	shows("ws-")
	run := begin("ws-a")
	shows("ws-a  page 0  0 rows")
	run.Pages = 4
	if err := db.RecordPages(t.Context(), &run,
		[]repo.Page{{Number: 1,
			Rows: []repo.UsageRow{{TenantID: "x", Period: "2026-01", Credits: "1"}}}}, nil); err != nil {
		t.Fatal(err)
	}
	shows("ws-a  ██████                    25 %  1 row")
	end(run, repo.RunDone)
	shows("ws-b  waiting for its turn")
	select {
	case err := <-ended:
		t.Errorf("it ended before the second run: %v\n%s%s", err, screen.text(), file.text())
	default:
	}
	end(begin("ws-b"), repo.RunIncomplete)
	for range 2 {
		if err := <-ended; err == nil || err.Error() != "1 of 2 runs did not read all" {
			t.Errorf("it ended with %v", err)
		}
	}
	const first = "workspace ws-a, 2026-01 to 2026-01: done, 1 row, 1 written,"
	const second = "workspace ws-b, 2026-01 to 2026-01: incomplete, 0 rows,"
	for _, out := range []*output{&screen, &file} {
		if text := out.text(); !strings.Contains(text, first) || !strings.Contains(text, second) {
			t.Errorf("in the end it says %q", text)
		}
	}
	if strings.ContainsAny(file.text()+fileNotes.text(), "\r\x1b█") {
		t.Errorf("what is no terminal gets %q and %q", file.text(), fileNotes.text())
	}
	if !strings.Contains(fileNotes.text(), "waiting: workspace ws-") {
		t.Errorf("without a terminal it says only %q while it waits", fileNotes.text())
	}
}
