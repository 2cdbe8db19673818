package worker

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"papermap-worker/papermap"
)

func TestEmbedTokenIsRefusedInTimeWhileTheDatabaseHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTokenService(workspaces{}, nil, newMetrics(Build{}), tokenLimits{ttl: time.Hour}, nil, 0)
		s.cache.load = func(ctx context.Context, _ string) (*tenant, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		began := time.Now()
		_, err := s.embedToken(t.Context(), TokenRequest{TenantID: "a"})
		if took := time.Since(began); !errors.Is(err, errLateAnswer) || took > 1500*time.Millisecond {
			t.Errorf("%v after %v", err, took)
		}
		known := &tenant{
			id: "known", refused: tokenRefused("suspended"), ws: &workspace{Workspace: papermap.Workspace{}},
		}
		s.cache.setLife(known, time.Now(), time.Second)
		s.cache.known.put("known", known)
		began = time.Now()
		_, err = s.embedToken(t.Context(), TokenRequest{TenantID: "known"})
		if !errors.Is(err, known.refused) || time.Since(began) != 0 {
			t.Errorf("one in memory: %v after %v", err, time.Since(began))
		}
		time.Sleep(tenantLife) // the query ends
	})
}
