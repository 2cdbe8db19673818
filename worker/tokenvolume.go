package worker

import (
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	volumeWindow = 10 * time.Minute
	volumeWarmUp = 6  // windows before any is judged
	volumeMemory = 12 // windows over which a tenant's usual number of tokens is averaged

	// A tenant's tokens in a window are unusual if there are at least this many, and this many
	// times its usual number.
	unusualTokens = 300
	unusualTimes  = 10

	volumeLines = 10 // of log about one window
)

// tokenVolume compares the tokens that each tenant gets from this process with the tenant's usual
// number. This reveals a stolen permission to request tokens, whatever is usual for other tenants.
// One goroutine uses it.
type tokenVolume struct {
	unusual prometheus.Counter
	tenants map[string]volume
	end     time.Time // of the window
	windows int       // that have ended
}

// volume is a tenant's number of tokens.
type volume struct{ now, usual float64 }

func newTokenVolume(unusual prometheus.Counter) *tokenVolume {
	return &tokenVolume{unusual: unusual, tenants: map[string]volume{}}
}

// add counts tokens of a tenant. Once the maximum number of tenants is in memory, new ones are not
// counted.
func (v *tokenVolume) add(tenantID string, n int64) {
	one, known := v.tenants[tenantID]
	if !known && len(v.tenants) >= maxTenants {
		return
	}
	one.now += float64(n)
	v.tenants[tenantID] = one
}

// judge counts and logs the tenants with unusually many tokens, when a window has ended.
func (v *tokenVolume) judge(now time.Time, log *slog.Logger) {
	if v.end.IsZero() {
		v.end = now.Add(volumeWindow)
	}
	if now.Before(v.end) {
		return
	}
	v.end = now.Add(volumeWindow)
	v.windows++
	lines := 0
	for id, one := range v.tenants {
		if v.windows > volumeWarmUp && one.now >= unusualTokens && one.now >= unusualTimes*one.usual {
			v.unusual.Inc()
			if lines++; lines <= volumeLines {
				log.Warn("a tenant got unusually many tokens", "tenant_id", id, "tokens", one.now,
					"usual", int(one.usual), "within", volumeWindow)
			}
		}
		one.usual += (one.now - one.usual) / float64(min(v.windows, volumeMemory))
		if one.now = 0; one.usual < 0.5 {
			delete(v.tenants, id)
			continue
		}
		v.tenants[id] = one
	}
}
