package workertest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"

	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
)

// checkBooks compares the database with what the simulator did: promises 2 and 3 of the worker.
func (w *World) checkBooks() {
	w.t.Helper()
	mappings, err := w.DB.Mappings(context.Background(), "", "", 1e6)
	w.Must(err)
	attempts, allowed := map[string]repo.Attempt{}, map[string]int{} // by mark, by tenant
	for _, m := range mappings {
		allowed[m.TenantID] = m.Generation
		for _, a := range w.Attempts(m.TenantID) {
			attempts[a.Mark] = a
			switch a.Outcome {
			case repo.OutcomeSent, repo.OutcomeUnknown, repo.OutcomeOrphaned:
				allowed[m.TenantID]++
			}
		}
	}
	made, count := map[string]simulator.Dashboard{}, map[string]int{}
	for _, d := range w.Simulator.Dashboards() {
		made[d.ID] = d
		if d.Mark == "" {
			continue // it was there before
		}
		count[d.TenantID]++
		a, ok := attempts[d.Mark]
		switch {
		case !ok || a.TenantID != d.TenantID:
			w.t.Errorf("dashboard %s of tenant %q is in no attempt (mark %q)", d.ID, d.TenantID, d.Mark)
		case a.Outcome == repo.OutcomeRefused, a.Outcome == repo.OutcomeCreated && a.DashboardID != d.ID:
			w.t.Errorf("dashboard %s of tenant %q was made by an attempt that says %s %s",
				d.ID, d.TenantID, a.Outcome, a.DashboardID)
		}
	}
	for tenant, n := range count {
		if n > allowed[tenant] {
			w.t.Errorf("tenant %q has %d dashboards, generations and uncertain attempts allow %d", tenant, n,
				allowed[tenant])
		}
	}
	owners := map[string]string{}
	for _, m := range mappings {
		if m.DashboardID == "" {
			continue
		}
		if d, ok := made[m.DashboardID]; !ok || d.TenantID != m.TenantID || d.WorkspaceID != m.WorkspaceID {
			w.t.Errorf("tenant %q is recorded with dashboard %s, which was made for %q",
				m.TenantID, m.DashboardID, d.TenantID)
		} else if a := attempts[d.Mark]; d.Mark != "" &&
			(a.Outcome != repo.OutcomeCreated || a.Generation != m.Generation) {
			w.t.Errorf("tenant %q: dashboard %s is recorded, but its attempt says %s, generation %d",
				m.TenantID, d.ID, a.Outcome, a.Generation)
		}
		if other, taken := owners[m.DashboardID]; taken {
			w.t.Errorf("dashboard %s belongs to %q and %q", m.DashboardID, other, m.TenantID)
		}
		owners[m.DashboardID] = m.TenantID
	}
}

// checkSecrets looks for secrets, signatures and tokens, in every form, in the logs, in the
// database (SQLite's files, PostgreSQL's rows) and in every file of JetStream, where dead letters
// and events out are. The workers have stopped.
func (w *World) checkSecrets() {
	w.t.Helper()
	canaries := map[string]string{"a secret": "sk_canary"}
	for _, token := range w.tokens {
		claims, err := papermap.ParseToken(token)
		w.Must(err)
		canaries["token "+token[:8]] = token
		canaries["the signature of token "+token[:8]] = claims.Signature
	}
	w.API.mu.Lock()
	for s := range w.API.signatures {
		canaries["the signature "+s[:8]] = s
	}
	w.API.mu.Unlock()
	forms := map[string][][]byte{}
	for what, canary := range canaries {
		forms[what] = FormsOf(canary)
	}
	look := func(where string, text []byte) {
		for what, list := range forms {
			if slices.ContainsFunc(list, func(form []byte) bool { return bytes.Contains(text, form) }) {
				w.t.Errorf("%s is in %s", what, where)
			}
		}
	}
	look("the log", []byte(w.Logs.String()))
	if w.Shared() {
		var tables []string
		w.Must(w.SQL.Select(&tables,
			"SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"))
		for _, table := range tables {
			var rows []string
			w.Must(w.SQL.Select(&rows, "SELECT r::text FROM "+table+" r"))
			look("table "+table, []byte(strings.Join(rows, "\n")))
		}
	}
	w.Must(filepath.WalkDir(w.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		look(path, text)
		return err
	}))
}

// FormsOf returns the forms in which a secret could be written somewhere: as it is, in hex, in both
// kinds of base64 wherever it starts within a longer text, percent-encoded, and as JSON.
func FormsOf(secret string) [][]byte {
	quoted, _ := json.Marshal(secret) // a string is never an error
	set := map[string]bool{
		secret: true, string(quoted[1 : len(quoted)-1]): true,
		url.QueryEscape(secret): true, url.PathEscape(secret): true,
		hex.EncodeToString([]byte(secret)): true, strings.ToUpper(hex.EncodeToString([]byte(secret))): true,
	}
	for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
		for before := range 3 { // characters that depend on the neighbours are left out
			text := encoding.EncodeToString([]byte(strings.Repeat("x", before) + secret + "xx"))
			set[text[(8*before+5)/6:(8*(before+len(secret)))/6]] = true
		}
	}
	var list [][]byte
	for form := range set {
		list = append(list, []byte(form))
	}
	return list
}
