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

// tokenVolume compares the tokens that each tenant in memory gets from this process with the
// tenant's usual number. This reveals a stolen permission to request tokens, whatever is usual for
// other tenants.
type tokenVolume struct {
	unusual prometheus.Counter
	tenants *tenantCache
	end     time.Time // of the window
	windows int       // that have ended
}

// volume is a tenant's number of tokens.
type volume struct {
	now   uint32 // in this window
	usual float32
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
	type line struct {
		tenantID string
		volume
	}
	var lines []line
	v.tenants.each(func(t *tenant) {
		one, now := &t.volume, float32(t.volume.now)
		if v.windows > volumeWarmUp && now >= unusualTokens && now >= unusualTimes*one.usual {
			v.unusual.Inc()
			if len(lines) < volumeLines {
				lines = append(lines, line{t.id, *one})
			}
		}
		one.usual += (now - one.usual) / float32(min(v.windows, volumeMemory))
		one.now = 0
	})
	for _, l := range lines {
		log.Warn("a tenant got unusually many tokens", "tenant_id", l.tenantID, "tokens", l.now,
			"usual", int(l.usual), "within", volumeWindow)
	}
}
