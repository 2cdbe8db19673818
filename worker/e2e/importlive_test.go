package e2e

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

var importLive = flag.Int("import.live", 0, "rows of an import beside which tenants sign up; 0: no such test")

// Tenants that sign up during an import wait at most twice as long as those of an idle worker. The
// test measures time, so it runs with -import.live 10000 alone.
func TestSignUpsDuringAnImportAreNotKeptWaiting(t *testing.T) {
	if *importLive == 0 {
		t.Skip("without -import.live")
	}
	s := newSystem(t, "on=create delay=50ms")
	js := s.jetStream(t)
	startReady(t, s.env)
	db := openRepo(t, s.database)
	signUps := func(prefix string, going func() bool) time.Duration {
		t.Helper()
		var took []time.Duration
		every := time.NewTicker(time.Second)
		defer every.Stop()
		for i := 0; i < 60 && going(); i++ {
			tenant := fmt.Sprintf("%s-%d", prefix, i)
			published := time.Now()
			publishCreated(t, js, tenant)
			s.status(t, tenant, "active")
			attempts, err := db.Attempts(t.Context(), tenant)
			must(t, err)
			took = append(took, attempts[0].FinishedAt.Sub(published))
			<-every.C
		}
		slices.Sort(took)
		t.Logf("%s: %d sign-ups, median %v, longest %v", prefix, len(took), took[len(took)/2],
			took[len(took)-1])
		return took[len(took)-1]
	}
	idle := signUps("idle", func() bool { return true })

	rows := bytes.NewBufferString("tenant_id,name\n")
	for i := range *importLive {
		fmt.Fprintf(rows, "imported-%d,Company %d\n", i, i)
	}
	file := filepath.Join(t.TempDir(), "tenants.csv")
	must(t, os.WriteFile(file, rows.Bytes(), 0o600))
	imported := start(t, s.env, "import", file)
	busy := signUps("import", func() bool {
		select {
		case <-imported.done:
			return false
		default:
			return true
		}
	})
	if busy > 2*idle {
		t.Errorf("a sign-up took %v during the import, and at most %v before", busy, idle)
	}
}
