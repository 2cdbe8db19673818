package worker

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"papermap-worker/repo"
)

// What was not published because the database failed is not said to be under way.
func TestMissingTenantIsPublishedOnceTheDatabaseAnswersAgain(t *testing.T) {
	t.Parallel()
	db, err := repo.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "test.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil { // it fails from now on
		t.Fatal(err)
	}
	m := newMissingTenants(db, nil, time.Now)
	all := workspaces{list: []*workspace{{}}}
	request := TokenRequest{TenantID: "t", Name: "T", CreateMissing: true}
	for n := range 2 {
		if err := m.create(t.Context(), request, all); err == nil || errors.Is(err, errBeingCreated) {
			t.Errorf("request %d while the database fails: %v", n+1, err)
		}
	}
	if publish, err := m.admit("t", time.Now()); !publish {
		t.Errorf("the next one is not published: %v", err)
	}
}
