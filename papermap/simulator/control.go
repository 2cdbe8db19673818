package simulator

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"github.com/go-json-experiment/json"

	"papermap-worker/papermap"
)

// The endpoints under /simulator/, and their methods, to observe and control a simulator.

// Log returns a copy of all API requests so far, in the order of their effects.
func (s *Simulator) Log() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.log)
}

// Dashboards returns a copy of all dashboards made so far, in the order of their creation.
func (s *Simulator) Dashboards() []Dashboard {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.dashboards)
}

// Adopt adds dashboards that another simulator made, so that a restarted one continues from there.
func (s *Simulator) Adopt(list ...Dashboard) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dashboards = append(s.dashboards, list...)
}

// serveState answers with everything, from one moment:
//
//	{"dashboards":[…],"requests":[…],"faults":["…"]}
func (s *Simulator) serveState(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	// Entries never change, so what the slices hold now can be read without the lock.
	dashboards, requests, rules := s.dashboards, s.log, s.rules
	s.mu.Unlock()
	faults := make([]string, len(rules))
	for i, r := range rules {
		faults[i] = r.text
	}
	writeJSON(w, struct {
		Dashboards []Dashboard `json:"dashboards"`
		Requests   []Request   `json:"requests"`
		Faults     []string    `json:"faults"`
	}{dashboards, requests, faults})
}

func (s *Simulator) serveDashboards(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, s.Dashboards())
}

// serveRequests answers with the log, or for ?after=SEQ with the entries after that one.
func (s *Simulator) serveRequests(w http.ResponseWriter, r *http.Request) {
	after := 0
	if text := r.URL.Query().Get("after"); text != "" {
		var err error
		if after, err = strconv.Atoi(text); err != nil || after < 0 {
			writeProblem(w, errors.New("after must be a sequence number"))
			return
		}
	}
	requests := s.Log()
	writeJSON(w, requests[min(after, len(requests)):])
}

// serveFaults replaces the rules with those of a JSON list of texts, and answers 204. If one is
// invalid, nothing changes.
func (s *Simulator) serveFaults(w http.ResponseWriter, r *http.Request) {
	var list []string
	if err := json.UnmarshalRead(http.MaxBytesReader(w, r.Body, maxBody), &list); err != nil {
		writeProblem(w, fmt.Errorf("body must be a JSON list of fault texts: %w", err))
		return
	}
	faults, err := parseFaults(list)
	if err != nil {
		writeProblem(w, err)
		return
	}
	s.SetFaults(faults...)
	w.WriteHeader(http.StatusNoContent)
}

func writeJSON(w http.ResponseWriter, v any) {
	answer{status: http.StatusOK, body: marshal(v)}.write(w)
}

func writeProblem(w http.ResponseWriter, err error) {
	failure(http.StatusBadRequest, err.Error()).write(w)
}

// serveUsage answers with UsageTotals as JSON lines, or for ?checksum=1 with their number and
// checksum.
func (s *Simulator) serveUsage(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	workspace, from, to := query.Get("workspace"), query.Get("from_period"), query.Get("to_period")
	if query.Get("checksum") == "1" {
		rows, err := s.UsageTotals(workspace, from, to)
		if err != nil {
			writeProblem(w, err)
			return
		}
		writeJSON(w, struct {
			Rows     int    `json:"rows"`
			Checksum string `json:"checksum"`
		}{len(rows), UsageChecksum(rows)})
		return
	}
	u, months, err := s.snapshot(workspace, from, to)
	if err != nil {
		writeProblem(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	lines := bufio.NewWriterSize(w, 64<<10)
	u.totals(months, func(r papermap.UsageRow) {
		_, _ = fmt.Fprintf(lines, `{"tenant_id":%s,"period":"%s","credits":"%s","requests":%d}`+"\n",
			appendQuoted(nil, r.TenantID), r.Period, r.Credits, r.Requests)
	})
	_ = lines.Flush()
}

// replaceUsage is SetUsage over HTTP: the body is a Usage in JSON.
func (s *Simulator) replaceUsage(w http.ResponseWriter, r *http.Request) {
	var u Usage
	body := http.MaxBytesReader(w, r.Body, maxBody)
	if err := json.UnmarshalRead(body, &u, json.RejectUnknownMembers(true)); err != nil {
		const example = `{"tenants":20000,"bad_every":100,"style":"meta"}`
		writeProblem(w, fmt.Errorf("body must be a JSON object such as %s: %w", example, err))
		return
	}
	if err := (&usageState{Usage: u}).check(); err != nil {
		writeProblem(w, err)
		return
	}
	s.SetUsage(r.URL.Query().Get("workspace"), u)
	w.WriteHeader(http.StatusNoContent)
}
