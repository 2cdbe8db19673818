package workertest_test

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"papermap-worker/repo"
	"papermap-worker/repo/pgtest"
	"papermap-worker/worker/workertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestVirtualRunsAWholeWorker(t *testing.T) {
	workertest.Virtual(t, workertest.Options{}, func(t *testing.T, w *workertest.World) {
		w.Create("acme")
		w.Eventually(w.Are(repo.Active, "acme"))
		w.Opens(w.Token("acme"), "Dashboard - acme")
		w.Workers[0].Cut()
		w.Create("later")
		time.Sleep(time.Hour)
		w.Workers[0].Restore()
		w.Eventually(w.Are(repo.Active, "later"))
		w.StopNATS()
		time.Sleep(time.Hour)
		w.StartNATS()
		w.Create("latest")
		w.Eventually(w.Are(repo.Active, "latest"))
	})
}

func TestVirtualPostgresFollowsTheBubblesClock(t *testing.T) {
	o := workertest.Options{Postgres: pgtest.ForTest(t), Workers: 2}
	workertest.Virtual(t, o, func(t *testing.T, w *workertest.World) {
		release := w.API.HoldAnswers()
		defer release()
		w.Create("acme")
		w.Eventually(w.Sent(1))
		w.Workers[0].Kill()
		w.Workers[1].Kill()
		w.API.Intercept(nil)
		w.StartWorker()
		w.Eventually(w.Are(repo.Active, "acme"))
	})
}
