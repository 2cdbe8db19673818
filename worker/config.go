package worker

import (
	"context"
	"net"
	"time"

	"golang.org/x/time/rate"

	"papermap-worker/papermap"
)

// Config configures a worker.
type Config struct {
	Workspaces    []papermap.Workspace // the first is the default
	EmbedURL      string               // of Papermap's page for iframes, unless the workspace has its own
	Timeout       time.Duration        // of one API request; at most MaxTimeout
	MaxRPS        float64              // API requests per second; 0: no limit
	Hold          bool                 // hold tenants whose create has an unknown outcome; else create again
	TokenTTL      time.Duration        // of tokens whose request names none
	TokenMaxTTL   time.Duration
	TokenRate     float64 // tokens per second and tenant; 0: no limit
	TokenBurst    int
	CreateMissing bool          // token requests may create a tenant that is unknown
	TokenAudit    int           // maximum log lines about minted tokens per second
	Concurrency   int           // events in flight
	MaxAttempts   int           // counted failures after which an event is a dead letter
	Grace         time.Duration // for events in flight at a stop
	ReplyPrefixes []string      // more reply subjects that may be answered
	Build         Build
	AuditKept     time.Duration // how long entries of the audit log are kept; 0: DefaultAuditKept

	Schedule         *Schedule // of usage; nil: off
	UsageConcurrency int       // pages of usage in flight
	HistoryPath      string    // of one tenant's usage; empty: the client's default

	// Dial connects to Papermap; nil: by TCP. Clock is for the schedule, months and tokens; nil: time.Now.
	Dial  func(ctx context.Context, network, address string) (net.Conn, error)
	Clock func() time.Time
}

// Build is what the program was built from. Date is the commit's; an unknown Commit or Date is empty.
type Build struct{ Version, Commit, Date string }

func (b Build) String() string {
	text := b.Version
	if b.Commit != "" {
		text += ", commit " + b.Commit
	}
	if b.Date != "" {
		text += " of " + b.Date
	}
	return text
}

// withinRate lowers the concurrency to what the limit of API requests can serve. With more than two
// seconds' worth of events in flight, tenants would be claimed without getting a turn within the
// client's budget. Usage must also leave turns for tenants.
func (c Config) withinRate() (Config, rate.Limit) {
	limit := rate.Inf
	if c.MaxRPS > 0 {
		limit = rate.Limit(c.MaxRPS)
		c.Concurrency = min(c.Concurrency, max(2, int(2*c.MaxRPS)))
		c.UsageConcurrency = min(c.UsageConcurrency, int(c.MaxRPS/2))
	}
	c.UsageConcurrency = max(1, c.UsageConcurrency)
	return c, limit
}
