package worker

import (
	"cmp"
	"context"
	"log/slog"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"papermap-worker/events"
	"papermap-worker/papermap"
)

// workspace is a configured Papermap workspace with its client, circuit breaker and signer of
// tokens.
type workspace struct {
	papermap.Workspace
	api     *papermap.Client
	breaker *breaker
	minter  *papermap.Minter

	embedJSON []byte // EmbedURL with the query up to the token, as the beginning of a JSON string
}

// workspaces are the configured workspaces, in the order of the configuration.
type workspaces struct {
	list []*workspace
	byID map[string]*workspace
}

// newWorkspaces makes the workspaces' clients. embedURL is for those without their own. resumed is
// signaled when a breaker permits more calls.
func newWorkspaces(
	list []papermap.Workspace, options papermap.ClientOptions, embedURL string, resumed chan<- struct{},
	log *slog.Logger,
) workspaces {
	all := workspaces{byID: map[string]*workspace{}}
	for _, w := range list {
		w.EmbedURL = cmp.Or(w.EmbedURL, embedURL)
		// Only invalid UTF-8 is an error.
		quoted, _ := jsontext.AppendQuote(nil, w.EmbedURL+"?embedded-token=")
		api := papermap.NewClient(w, options)
		ws := &workspace{
			w, api, newBreaker(api.Probe, resumed, log.With("workspace_id", w.ID)),
			papermap.NewMinter(w.EmbedKey, w.ID), quoted[:len(quoted)-1],
		}
		all.list, all.byID[w.ID] = append(all.list, ws), ws
	}
	return all
}

// find returns a workspace by its id. An empty id means the default one, which is the first.
func (all workspaces) find(id string) (*workspace, bool) {
	if id == "" {
		return all.list[0], true
	}
	ws, ok := all.byID[id]
	return ws, ok
}

const codeUnknownWorkspace = "UNKNOWN_WORKSPACE" // of dead letters

// ofEvent is find for an event: an unknown workspace is the publisher's mistake.
func (all workspaces) ofEvent(id string) (*workspace, error) {
	ws, ok := all.find(id)
	if !ok {
		return nil, permanent(codeUnknownWorkspace, "workspace %q is not configured: "+
			"set PAPERMAP_WORKSPACE_ID or PAPERMAP_WORKSPACES_FILE, or correct the event", id)
	}
	return ws, nil
}

// MaxClockSkew is the largest difference between the host's and Papermap's clock at which tokens
// are minted, because they expire by that clock. From WarnClockSkew on, State and the log warn.
const (
	MaxClockSkew  = 300 * time.Second
	WarnClockSkew = 60 * time.Second
)

// The maximum age of the newest reading of Papermap's clock: while the clock is right, and while it
// is off or unknown, so that a correction is noticed. A worker that sends no other request asks for
// the first reading after clockFirst.
const (
	clockFine  = 5 * time.Minute
	clockOff   = 30 * time.Second
	clockFirst = 5 * time.Second
)

// checkClock returns an error while the host's clock is so wrong that tokens would expire much
// earlier or later than they claim.
func (ws *workspace) checkClock() error {
	if skew, known := ws.api.ClockSkew(); known && skew.Abs() > MaxClockSkew {
		return serviceError(503, "UNAVAILABLE", 60, "the worker's clock is wrong, so no tokens are minted")
	}
	return nil
}

// watchClock asks for Papermap's time until ctx ends, when no other request has shown it for long,
// or one contradicts the known difference.
func (ws *workspace) watchClock(ctx context.Context, log *slog.Logger) {
	var warned logOnce
	asked := time.Now().Add(clockFirst - clockOff)
	for events.Sleep(ctx, time.Second) {
		skew, known := ws.api.ClockSkew()
		off := known && skew.Abs() > WarnClockSkew
		if warned.begins(off) {
			log.Error("the host's clock is off: set it; beyond 5 minutes no tokens are minted",
				"workspace_id", ws.ID, "skew", skew.Round(time.Second).String(),
				"found", checkSkew(skew).Found)
		}
		maxAge := clockFine
		if off || !known {
			maxAge = clockOff
		}
		read, doubtful := ws.api.ClockReading()
		if !doubtful && (time.Since(read) < maxAge || time.Since(asked) < maxAge) {
			continue
		}
		asked = time.Now()
		if err := ws.api.Probe(ctx); err != nil {
			log.Debug("cannot ask Papermap for its time", "workspace_id", ws.ID, "error", err)
		}
	}
}
