package worker

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"

	"papermap-worker/repo"
)

// usageTurn lets the usage runs of one workspace take turns. Two runs over the same rows could
// write an older total over a newer one. So a run of all tenants is exclusive, and runs of single
// tenants run concurrently, each of another tenant.
//
// Across replicas the turn is the workspace's lease. The runs of this process share it: the first
// to enter takes it, and the last to leave drops it.
type usageTurn struct {
	db          *repo.DB
	workspaceID string

	lock    chan struct{}   // has an element while the fields below are used
	tenants map[string]bool // whose runs have entered; "" is a run of all tenants
	holder  string          // of the lease; empty: this process does not have it
	retryAt time.Time       // until then another process has the lease

	running chan struct{} // an element for each run of a tenant; full: a run of all tenants
}

var errTurnTaken = errors.New("another usage run of the workspace is running")

// turnRetry is how long a process that did not get the lease waits before it asks again.
const turnRetry = time.Second

func newUsageTurn(db *repo.DB, workspaceID string, concurrent int) *usageTurn {
	return &usageTurn{
		db: db, workspaceID: workspaceID, lock: make(chan struct{}, 1), tenants: map[string]bool{},
		running: make(chan struct{}, concurrent),
	}
}

// enter waits for the turn of a run, behind at most a few others; with more, it returns
// errTurnTaken. A run that has entered must leave.
func (t *usageTurn) enter(ctx context.Context, tenantID string) (holder string, err error) {
	t.lock <- struct{}{}
	holder, err = t.admit(ctx, tenantID)
	<-t.lock
	if err != nil {
		return "", err
	}
	for range t.places(tenantID) {
		t.running <- struct{}{}
	}
	return holder, nil
}

func (t *usageTurn) admit(ctx context.Context, tenantID string) (string, error) {
	switch {
	case t.tenants[""], t.tenants[tenantID], tenantID != "" && len(t.tenants) >= 2*cap(t.running),
		t.holder == "" && time.Now().Before(t.retryAt):
		return "", errTurnTaken
	case t.holder == "":
		holder := uuid.NewString()
		taken, err := t.db.TakeRunLease(ctx, t.workspaceID, holder)
		if err != nil {
			return "", err
		}
		if !taken {
			t.retryAt = time.Now().Add(turnRetry)
			return "", errTurnTaken
		}
		t.holder = holder
	}
	t.tenants[tenantID] = true
	return t.holder, nil
}

// places is how many elements of running a run takes.
func (t *usageTurn) places(tenantID string) int {
	if tenantID == "" {
		return cap(t.running)
	}
	return 1
}

// leave ends the turn of a run, with its error. After a run has lost the lease, later runs take it
// under a new holder, so that it does not pass to runs that believe they still have it.
func (t *usageTurn) leave(ctx context.Context, tenantID, holder string, err error) error {
	for range t.places(tenantID) {
		<-t.running
	}
	t.lock <- struct{}{}
	defer func() { <-t.lock }()
	delete(t.tenants, tenantID)
	lost := errors.Is(err, repo.ErrRunLost)
	if t.holder != holder || len(t.tenants) > 0 && !lost {
		return nil
	}
	t.holder = ""
	return t.db.DropRunLease(context.WithoutCancel(ctx), t.workspaceID, holder)
}
