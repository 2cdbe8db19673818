package proof

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
)

const revocation = 5 * time.Second

func (c *checker) tokens() {
	commits := map[string][]Commit{}
	for _, m := range c.Mappings { // a row that was never changed again shows when it became what it is
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
			c.report(TokenSigned, t.Tenant, "the token answered at %s: %v", t.Answered.Format(time.RFC3339Nano), err)
			continue
		}
		c.tokenSigned(t, claims)
		c.tokenMapping(t, claims)
		until := time.Unix(claims.ValidUntil, 0)
		if !until.After(t.Asked) || until.After(t.Answered.Add(c.LongestLife)) {
			c.report(TokenLife, t.Tenant, "the token asked for at %s and answered at %s is valid until %s; the longest life is %v",
				t.Asked.Format(time.RFC3339Nano), t.Answered.Format(time.RFC3339Nano), until.Format(time.RFC3339), c.LongestLife)
		}
		for _, commit := range commits[t.Tenant] {
			if t.Asked.After(commit.At.Add(revocation+c.Clocks)) && !c.undone(commit, t.Answered) {
				c.report(TokenRevoked, t.Tenant, "a token was minted %v after the tenant was seen %s, and nothing had made it active again",
					t.Answered.Sub(commit.At), commit.Status)
				break
			}
		}
	}
}

func (c *checker) tokenSigned(t Token, claims papermap.Claims) {
	signed := slices.ContainsFunc(c.Workspaces, func(w papermap.Workspace) bool {
		key := w.EmbedKey
		if key.ID == "" {
			key = w.Key
		}
		return w.ID == claims.WorkspaceID && key.ID == claims.APIKeyID && papermap.Sign(key.Secret, w.ID, claims.ValidUntil) == claims.Signature
	})
	if !signed || len(strconv.FormatInt(claims.ValidUntil, 10)) != 10 {
		c.report(TokenSigned, t.Tenant, "the token for workspace %s, key %s, until %d is not signed with that workspace's embed key, or the time has not ten digits",
			claims.WorkspaceID, claims.APIKeyID, claims.ValidUntil)
	}
}

func (c *checker) tokenMapping(t Token, claims papermap.Claims) {
	if claims.TenantID != t.Tenant || claims.WorkspaceID != t.Workspace || claims.DashboardID != t.Dashboard || claims.ValidUntil != t.Expires {
		c.report(TokenMapping, t.Tenant, "the token is for tenant %q, workspace %s, dashboard %s until %d; its answer says workspace %s, dashboard %s, until %d",
			claims.TenantID, claims.WorkspaceID, claims.DashboardID, claims.ValidUntil, t.Workspace, t.Dashboard, t.Expires)
		return
	}
	made := func(a repo.Attempt) bool { return a.Outcome == repo.Made }
	i := slices.IndexFunc(c.attempts[t.Tenant], func(a repo.Attempt) bool {
		return made(a) && a.DashboardID == claims.DashboardID && a.WorkspaceID == claims.WorkspaceID && !c.after(a.FinishedAt.Time, t.Answered)
	})
	if i < 0 {
		c.report(TokenMapping, t.Tenant, "a token was minted at %s for workspace %s and dashboard %q, which no attempt had made by then",
			t.Answered.Format(time.RFC3339Nano), claims.WorkspaceID, claims.DashboardID)
		return
	}
	old := c.attempts[t.Tenant][i]
	for _, a := range c.attempts[t.Tenant] {
		if made(a) && a.Generation > old.Generation && c.after(t.Asked, a.FinishedAt.Add(revocation)) {
			c.report(TokenMapping, t.Tenant, "a token was minted for dashboard %s of generation %d, %v after generation %d had %s",
				old.DashboardID, old.Generation, t.Asked.Sub(a.FinishedAt.Time), a.Generation, a.DashboardID)
		}
	}
}

// undone says whether events that were stored by then can have made the tenant active after the commit. Which of them
// the worker had seen is not known, so the best case counts.
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
	return slices.ContainsFunc(list, func(p Published) bool { // deleted, and made anew
		return later(events.TypeTenantDeleted, commit.Event, true)(p) && slices.ContainsFunc(list, later(events.TypeTenantCreated, p.when().UnixNano(), false))
	})
}

// secrets looks for planted secrets, the workspaces' own, and tokens and their signatures, in every text but the
// publishers' and the answers with the tokens.
func (c *checker) secrets() {
	type needle struct{ what, text string }
	var needles []needle
	canaries := slices.Clone(c.Canaries)
	for _, w := range c.Workspaces {
		canaries = append(canaries, w.Key.Secret.Reveal(), w.EmbedKey.Secret.Reveal())
	}
	for i, canary := range canaries {
		if canary == "" {
			continue
		}
		for form, text := range forms(canary) {
			needles = append(needles, needle{fmt.Sprintf("secret no. %d (%s)", i+1, form), text})
		}
	}
	slices.SortFunc(needles, func(a, b needle) int { return strings.Compare(a.what, b.what) })

	var texts haystack
	texts.add("Texts", reflect.ValueOf(c.Texts))
	for _, part := range []struct {
		name string
		list any
	}{
		{"Requests", c.Requests}, {"Dashboards", c.Dashboards}, {"Mappings", c.Mappings}, {"Attempts", c.Attempts},
		{"Outbox", c.Outbox}, {"Usage", c.Usage}, {"Out", c.Out}, {"Dead", c.Dead},
	} {
		texts.add(part.name, reflect.ValueOf(part.list))
	}
	all := texts.text.String()
	for _, n := range needles {
		if n.text == "" {
			continue
		}
		if i := strings.Index(all, n.text); i >= 0 {
			c.report(NoSecret, "", "%s is in %s", n.what, texts.at(i))
		}
	}
	minted := map[string]string{} // too many to be looked for one by one in everything: only in what is long enough for one
	for i, t := range c.Tokens {
		if claims, err := papermap.ParseToken(t.Text); err == nil && t.Text != "" {
			minted[strings.TrimRight(t.Text, "=")] = fmt.Sprintf("token no. %d", i+1)
			minted[claims.Signature] = fmt.Sprintf("the signature of token no. %d", i+1)
		}
	}
	for word, place := range longWords(all) {
		for text, what := range minted {
			if i := strings.Index(word, text); i >= 0 {
				c.report(NoSecret, "", "%s is in %s", what, texts.at(place+i))
			}
		}
	}
}

// longWords are the stretches of a text in which a token or a signature could be, each once, with where it is.
func longWords(text string) map[string]int {
	words := map[string]int{}
	for from, to := 0, 0; to <= len(text); to++ {
		if to < len(text) && (text[to] == '-' || text[to] == '_' || text[to] >= '0' && text[to] <= '9' || text[to]|0x20 >= 'a' && text[to]|0x20 <= 'z') {
			continue
		}
		if word := text[from:to]; len(word) >= 2*sha256.Size {
			words[word] = from
		}
		from = to + 1
	}
	return words
}

// haystack is many texts in one, to be searched at once.
type haystack struct {
	text   strings.Builder
	starts []int
	names  []string
}

// add takes every string and byte slice in v, whatever it is made of.
func (h *haystack) add(name string, v reflect.Value) {
	keep := func(text string) {
		h.starts, h.names = append(h.starts, h.text.Len()), append(h.names, name)
		h.text.WriteString(text + "\x00")
	}
	switch v.Kind() {
	case reflect.String:
		keep(v.String())
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				h.add(name+"."+f.Name, v.Field(i))
			}
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			keep(string(v.Bytes()))
			return
		}
		for i := range v.Len() {
			h.add(fmt.Sprintf("%s[%d]", name, i), v.Index(i))
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			h.add(name+" (a key)", k)
			h.add(fmt.Sprintf("%s[%q]", name, k), v.MapIndex(k))
		}
	}
}

// at names the text at a place.
func (h *haystack) at(place int) string {
	return h.names[sort.SearchInts(h.starts, place+1)-1]
}

// forms are the ways in which a secret could stand in a text.
func forms(secret string) map[string]string {
	f := map[string]string{
		"raw": secret, "hex": hex.EncodeToString([]byte(secret)), "upper-case hex": strings.ToUpper(hex.EncodeToString([]byte(secret))),
		"in a query": url.QueryEscape(secret), "in a path": url.PathEscape(secret),
	}
	quoted := strconv.Quote(secret)
	f["quoted"] = quoted[1 : len(quoted)-1]
	// In base64 three bytes are four characters, so what stands before the secret shifts it. Only the characters that
	// are the secret's alone are looked for.
	for shift, own := range []int{0, 2, 3} {
		shifted := append(make([]byte, shift), secret...)
		for name, encoding := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "URL-safe base64": base64.RawURLEncoding} {
			text := encoding.EncodeToString(shifted)
			if len(shifted)%3 != 0 {
				text = text[:len(text)-1]
			}
			f[fmt.Sprintf("%s, shifted by %d", name, shift)] = text[min(own, len(text)):]
		}
	}
	return f
}
