package proof

import (
	"slices"
	"strconv"
	"time"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
)

// revocation is how long after the commit of a suspension or deletion a token may still be minted.
const revocation = 5 * time.Second

// tokens checks every token that was answered, and promise 6 against the suspensions and deletions
// that were seen: after revocation only an event that may have undone them explains a token.
func (c *checker) tokens() {
	commits := map[string][]Commit{}
	for _, m := range c.Mappings { // a row that was never changed again shows when it got its status
		if commit, ok := Seen(m, m.UpdatedAt.Add(tick)); ok {
			commits[m.TenantID] = append(commits[m.TenantID], commit)
		}
	}
	for _, commit := range c.Commits {
		commits[commit.Tenant] = append(commits[commit.Tenant], commit)
	}
	for _, t := range c.Tokens {
		if t.Text == "" {
			continue
		}
		claims, err := papermap.ParseToken(t.Text)
		if err != nil {
			c.report(TokenSigned, t.Tenant, "the token answered at %s: %v", stamp(t.Answered), err)
			continue
		}
		c.tokenSigned(t, claims)
		c.tokenMapping(t, claims)
		until := time.Unix(claims.ValidUntil, 0)
		if !until.After(t.Asked) || until.After(t.Answered.Add(c.LongestLife)) {
			c.report(TokenLife, t.Tenant,
				"the token asked for at %s and answered at %s is valid until %s; the longest life is %v",
				stamp(t.Asked), stamp(t.Answered), stamp(until), c.LongestLife)
		}
		for _, commit := range commits[t.Tenant] {
			if t.Asked.After(commit.At.Add(revocation+c.Clocks)) && !c.undone(commit, t.Answered) {
				c.report(TokenRevoked, t.Tenant,
					"a token was minted %v after the tenant was seen %s; no event had made it active again",
					t.Answered.Sub(commit.At), commit.Status)
				break
			}
		}
	}
}

// tokenSigned checks the signature with the key that the workspace has for embed tokens.
func (c *checker) tokenSigned(t Token, claims papermap.Claims) {
	signed := slices.ContainsFunc(c.Workspaces, func(w papermap.Workspace) bool {
		key := w.EmbedKey
		if key.ID == "" {
			key = w.Key
		}
		return w.ID == claims.WorkspaceID && key.ID == claims.APIKeyID &&
			papermap.Sign(key.Secret, w.ID, claims.ValidUntil) == claims.Signature
	})
	if !signed || len(strconv.FormatInt(claims.ValidUntil, 10)) != 10 {
		c.report(TokenSigned, t.Tenant,
			"the token for workspace %s, key %s, until %d has a wrong signature or not 10 digits of time",
			claims.WorkspaceID, claims.APIKeyID, claims.ValidUntil)
	}
}

// tokenMapping checks that the token is what its answer says, for a dashboard that the tenant had
// by then and that no later generation had replaced for longer than revocation.
func (c *checker) tokenMapping(t Token, claims papermap.Claims) {
	if claims.TenantID != t.Tenant || claims.WorkspaceID != t.Workspace ||
		claims.DashboardID != t.Dashboard || claims.ValidUntil != t.Expires {
		c.report(TokenMapping, t.Tenant,
			"the token says %q, workspace %s, dashboard %s until %d; the answer %s, %s until %d",
			claims.TenantID, claims.WorkspaceID, claims.DashboardID, claims.ValidUntil,
			t.Workspace, t.Dashboard, t.Expires)
		return
	}
	made := func(a repo.Attempt) bool { return a.Outcome == repo.OutcomeCreated }
	i := slices.IndexFunc(c.attempts[t.Tenant], func(a repo.Attempt) bool {
		return made(a) && a.DashboardID == claims.DashboardID && a.WorkspaceID == claims.WorkspaceID &&
			!c.after(a.FinishedAt.Time, t.Answered)
	})
	if i < 0 && c.adopted(t.Tenant, claims.DashboardID, t.Answered) {
		return
	}
	if i < 0 {
		c.report(TokenMapping, t.Tenant,
			"a token was minted at %s for workspace %s and dashboard %q, which the tenant did not have by then",
			stamp(t.Answered), claims.WorkspaceID, claims.DashboardID)
		return
	}
	old := c.attempts[t.Tenant][i]
	for _, a := range c.attempts[t.Tenant] {
		if made(a) && a.Generation > old.Generation && c.after(t.Asked, a.FinishedAt.Add(revocation)) {
			c.report(TokenMapping, t.Tenant,
				"a token was minted for dashboard %s of generation %d, %v after generation %d had %s",
				old.DashboardID, old.Generation, t.Asked.Sub(a.FinishedAt.Time), a.Generation, a.DashboardID)
		}
	}
}

// undone reports whether events that were stored by then can have made the tenant active after the
// commit. Which of them the worker had seen is not known, so it gets the benefit of the doubt.
func (c *checker) undone(commit Commit, by time.Time) bool {
	later := func(eventType string, than int64, orAt bool) func(Published) bool {
		return func(p Published) bool {
			when := p.when().UnixNano()
			return p.Type == eventType && (when > than || orAt && when == than) && !c.after(p.StoredAt, by)
		}
	}
	list := c.good[commit.Tenant]
	if commit.Status == repo.Deleted {
		return slices.ContainsFunc(list, later(events.TypeTenantCreated, commit.Event, false))
	}
	if slices.ContainsFunc(list, later(events.TypeTenantResumed, commit.Event, false)) {
		return true
	}
	deleted := later(events.TypeTenantDeleted, commit.Event, true)
	return slices.ContainsFunc(list, func(p Published) bool { // deleted, and created again
		created := later(events.TypeTenantCreated, p.when().UnixNano(), false)
		return deleted(p) && slices.ContainsFunc(list, created)
	})
}
