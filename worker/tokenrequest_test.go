package worker_test

import (
	"errors"
	"fmt"
	"html"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
	"papermap-worker/worker/workertest"
)

func TestTenantSubjectGivesItsTokenOnly(t *testing.T) {
	virtual(t, options{}, func(t *testing.T, w *world) {
		subjects := map[string]string{
			"org-1": "org-1", "org.1": "org%2E1", "Acme Corp": "Acme%20Corp", "100%": "100%25",
			"100%2E": "100%252E", "a*b>c": "a%2Ab%3Ec", "müller 🙂": "müller%20🙂",
			"a\u00a0b": "a%C2%A0b", "mu\u0308ller": "mu\u0308ller", "embed-token": "embed-token",
			// the longest that a subject can get
			"x" + strings.Repeat("\u3000", 253) + "x": "x" + strings.Repeat("%E3%80%80", 253) + "x",
		}
		for tenant := range subjects {
			w.Create(tenant)
		}
		for tenant, subject := range subjects {
			w.Eventually(w.Are(repo.Active, tenant))
			for range 4 { // from the database and from memory, on every replica
				for _, body := range []string{
					``, object("tenant_id", tenant), object("tenant_id", tenant, "workspace_id", "ws-a"),
					`{"ttl_seconds":60}`, `{}`, `{"tenant_id":"","other":1}`,
				} {
					token := w.TokenOn("embed-token."+subject, body)
					claims := w.Claims(token)
					if token.TenantID != tenant || claims.TenantID != tenant ||
						claims.DashboardID != w.Mapping(tenant).DashboardID {
						t.Errorf("subject %s, body %s: a token of tenant %q, %+v", subject, body,
							token.TenantID, claims)
					}
				}
				other := "org-1"
				if tenant == other {
					other = "org.1"
				}
				for _, body := range []string{
					object("tenant_id", other), object("tenant_id", "unknown"),
					`{"tenant_id":"\u006frg-nobody"}`, object("tenant_id", strings.ToUpper(tenant)+"X"),
				} {
					w.Refused("embed-token."+subject, body, 403, "TENANT_MISMATCH")
				}
				for _, body := range []string{
					object("tenant_id", tenant, "workspace_id", "ws-b"), `{"ttl_seconds":0}`,
					`{"tenant_id":7}`, `null`, ` `, `{"tenant_id":"` + tenant + `"}{}`,
				} {
					w.Refused("embed-token."+subject, body, 400, "INVALID_REQUEST")
				}
			}
			w.Opens(w.TokenOn("embed-token."+subject, ""), html.EscapeString("Dashboard - "+tenant))
		}
		for _, subject := range []string{
			"org%2e1", "org%2D1", "%6Frg-1", "org-1%", "org-1%2", "m%C3%BCller%20🙂", "müller%20%F0%9F%99%82",
			"a\u00a0b", "a%C2", "100%",
		} {
			w.Refused("embed-token."+subject, "", 400, "INVALID_REQUEST")
			w.Refused("embed-token."+subject, object("tenant_id", "org-1"), 400, "INVALID_REQUEST")
		}
		// encoded well, but no tenant ids
		for _, subject := range []string{"%20org-1", "org-1%0A", "%00", strings.Repeat("x", 256)} {
			w.Refused("embed-token."+subject, "", 400, "INVALID_REQUEST")
		}
		w.Refused("embed-token.org-2", "", 404, "TENANT_NOT_FOUND")
		for _, subject := range []string{"org.1", "org-1.x"} {
			if _, err := w.Conn.Request("papermap.rpc.embed-token."+subject, nil,
				5*time.Second); !errors.Is(err, nats.ErrNoResponders) {
				t.Errorf("a subject of two tokens, %s: %v", subject, err)
			}
		}
	})
}

func TestTenantSubjectCapsTheTokensLife(t *testing.T) {
	virtual(t, options{}, func(t *testing.T, w *world) {
		w.Create("t")
		w.Eventually(w.Are(repo.Active, "t"))
		for asked, want := range map[string]int64{"1": 1, "7200": 7200, "7201": 7200, "999999999": 7200,
			"1000000000": 7200, "9223372036854775807": 7200, "99999999999999999999": 7200} {
			before := time.Now().Unix()
			if life := w.TokenOn("embed-token.t",
				`{"tenant_id":"t","ttl_seconds":`+asked+`}`).ExpiresAt - before; life < want ||
				life > want+10 {
				t.Errorf("asked for %s, got %d s, want %d", asked, life, want)
			}
		}
	})
}

func TestTokenRateIsPerTenantAndSurvivesACacheMiss(t *testing.T) {
	var clock atomic.Int64
	clock.Store(time.Now().UnixNano())
	virtual(t, options{NoWorker: true, Config: func(c *worker.Config) {
		c.TokenRate, c.TokenBurst = 0.5, 3
		c.Clock = func() time.Time { return time.Unix(0, clock.Load()) }
	}}, func(t *testing.T, w *world) {
		w.StartWorker() // one: each process counts for itself
		w.Create("a", "b")
		w.Eventually(w.Are(repo.Active, "a", "b"))

		limited := func(tenant string, after int) {
			t.Helper()
			for _, endpoint := range []string{"embed-token", "embed-token." + tenant} {
				if got := w.Refused(endpoint, object("tenant_id", tenant), 429,
					"RATE_LIMITED"); got != after {
					t.Errorf("%s: retry_after is %d, want %d", tenant, got, after)
				}
			}
		}
		w.Token("a")
		w.TokenOn("embed-token.a", "") // both subjects count together
		w.TokenFor(object("tenant_id", "a", "workspace_id", "ws-a"))
		limited("a", 2)
		// a refusal costs nothing
		limited("a", 2)
		// and comes after the request's own faults
		w.Refused("embed-token", `{"tenant_id":"a","ttl_seconds":0}`, 400, "INVALID_REQUEST")
		for range 3 {
			w.Token("b")
		}
		limited("b", 2)

		w.Must(w.Conn.Publish("papermap.changed", []byte("a"))) // a mapping has changed: it is read anew
		w.Must(w.Conn.Flush())
		for range 10 {
			limited("a", 2)
		}
		for _, change := range []struct{ eventType, status string }{{events.TypeTenantSuspended, "403"},
			{events.TypeTenantResumed, "429"}} {
			w.Publish(change.eventType, object("tenant_id", "a"))
			w.Eventually(func() error { // the worker forgets it a moment after the commit
				reply := w.Request("embed-token", object("tenant_id", "a"))
				if got := workertest.Refusal(reply); got != change.status {
					return fmt.Errorf("after %s: %q %s", change.eventType, got, reply.Data)
				}
				return nil
			})
		}
		limited("a", 2)

		clock.Add(int64(1500 * time.Millisecond))
		limited("a", 1)
		clock.Add(int64(500 * time.Millisecond))
		w.Token("a")
		limited("a", 2)
		clock.Add(int64(time.Hour)) // no more than the burst is saved up
		for range 3 {
			w.Token("a")
		}
		limited("a", 2)

		// What is in memory expires after 4 s and is read again.
		began := time.Now()
		w.Eventually(func() error {
			limited("a", 2)
			if time.Since(began) < 5*time.Second {
				return errors.New("it has not expired")
			}
			return nil
		})
	})
}

func TestTokenRefusalsSayWhy(t *testing.T) {
	onBoth(t, options{
		Config: func(c *worker.Config) { c.Hold = true },
		Faults: []string{
			"tenant=pending status=503 retry-after=900", "tenant=creating delay=1m", "tenant=held drop=after",
			"tenant=failed status=400",
		},
	}, func(t *testing.T, w *world) {
		w.Create("active", "pending", "held", "failed", "suspended", "deleted")
		w.Publish(events.TypeTenantSuspended, object("tenant_id", "suspended"))
		w.Publish(events.TypeTenantDeleted, object("tenant_id", "deleted"))
		w.Publish(events.TypeTenantResumed, object("tenant_id", "resumed alone"))
		for _, status := range []repo.Status{repo.Active, repo.Held, repo.Failed, repo.Suspended,
			repo.Deleted} {
			w.Eventually(w.Are(status, string(status)))
		}
		w.Eventually(w.Are(repo.Pending, "resumed alone"))
		w.Eventually(func() error {
			if got := w.Outcomes("pending"); got != "refused" {
				return fmt.Errorf("attempts %q", got)
			}
			return w.Are(repo.Pending, "pending")()
		})

		for _, body := range []string{
			``, ` `, `null`, `[]`, `"active"`, `{}`, `{"tenant_id":null}`, `{"tenant_id":7}`,
			`{"tenant_id":""}`, `{"tenant_id":" active"}`,
			`{"tenant_id":"a\u0007"}`, `{"tenant_id":"` + strings.Repeat("x", 256) + `"}`,
			"{\"tenant_id\":\"active\xff\"}", `{"Tenant_ID":"active"}`,
			`{"tenant_id":"active","tenant_id":"active"}`, `{"tenant_id":"active"}{}`,
			`{"tenant_id":"active","ttl_seconds":0}`,
			`{"tenant_id":"active","ttl_seconds":-1}`, `{"tenant_id":"active","ttl_seconds":1.5}`,
			`{"tenant_id":"active","ttl_seconds":"60"}`,
			`{"tenant_id":"active","ttl_seconds":-99999999999999999999}`,
			`{"tenant_id":"active","workspace_id":"ws-b"}`, `{"tenant_id":"active","workspace_id":7}`,
		} {
			w.Refused("embed-token", body, 400, "INVALID_REQUEST")
			if !strings.Contains(body, "ttl_seconds") {
				w.Refused("dashboard", body, 400, "INVALID_REQUEST")
			}
		}
		w.Create("creating")
		w.Eventually(w.Are(repo.Creating, "creating"))
		w.Refused("embed-token", object("tenant_id", "unknown"), 404, "TENANT_NOT_FOUND")
		w.Refused("dashboard", object("tenant_id", "unknown"), 404, "TENANT_NOT_FOUND")
		w.Refused("embed-token", object("tenant_id", "Active"), 404, "TENANT_NOT_FOUND")
		w.Refused("embed-token", object("tenant_id", "suspended"), 403, "TENANT_SUSPENDED")
		w.Refused("embed-token", object("tenant_id", "deleted"), 410, "TENANT_DELETED")
		for _, tenant := range []string{"pending", "creating", "held", "failed", "resumed alone"} {
			if after := w.Refused("embed-token", object("tenant_id", tenant), 409,
				"DASHBOARD_NOT_READY"); after < 1 {
				t.Errorf("%s: no retry_after", tenant)
			}
		}
		for _, status := range []repo.Status{repo.Active, repo.Pending, repo.Creating, repo.Held, repo.Failed,
			repo.Suspended, repo.Deleted} {
			var d map[string]any
			w.Must(json.Unmarshal(w.Request("dashboard",
				object("tenant_id", string(status), "workspace_id", "ws-a")).Data, &d))
			m := w.Mapping(string(status))
			var id any
			if m.DashboardID != "" {
				id = m.DashboardID
			}
			if d["tenant_id"] != m.TenantID || d["status"] != string(status) || d["dashboard_id"] != id ||
				d["workspace_id"] != "ws-a" ||
				d["title"] != m.Title || d["created_at"] == nil || d["updated_at"] == nil || len(d) != 7 {
				t.Errorf("the mapping is answered as %v, want %+v", d, m)
			}
		}
		w.Token("active")

		for _, i := range w.Workers { // and without a database, once what is in memory has expired
			w.Must(i.DB.Close())
		}
		w.Eventually(func() error {
			for range 40 { // whichever worker answers: both
				if reply := w.Request("embed-token",
					object("tenant_id", "active")); workertest.Refusal(reply) == "" {
					return errors.New("a token all the same")
				}
			}
			return nil
		})
		w.Refused("embed-token", object("tenant_id", "active"), 503, "UNAVAILABLE")
	})
}

func TestRepliesGoToInboxesOnly(t *testing.T) {
	o := options{Workers: 2, Config: func(c *worker.Config) { c.ReplyPrefixes = []string{"answers.here"} }}
	virtual(t, o, func(t *testing.T, w *world) {
		w.Create("t")
		w.Eventually(w.Are(repo.Active, "t"))
		w.Eventually(w.Relayed)
		before, err := w.JS.Stream(t.Context(), "PAPERMAP")
		w.Must(err)

		seen, err := w.Conn.SubscribeSync(">")
		w.Must(err)
		body := []byte(object("tenant_id", "t"))
		for _, reply := range []string{
			"papermap.events.tenant.created", "papermap.events.usage.sync", "$JS.API.STREAM.DELETE.PAPERMAP",
			"$JS.API.STREAM.PURGE.PAPERMAP",
			"_INBOX", "_INBOXES.x", "answers.hereafter", "papermap.rpc.embed-token",
		} {
			for _, endpoint := range []string{"embed-token", "dashboard"} {
				for _, data := range [][]byte{body, nil} { // errors are answers, too
					w.Must(w.Conn.PublishRequest("papermap.rpc."+endpoint, reply, data))
				}
			}
		}
		w.Must(w.Conn.Publish("papermap.rpc.embed-token", body))
		// One that is answered, after all those: they share one queue, which is worked off by
		// several, so ask a few times.
		for range 100 {
			w.Must(w.Conn.PublishRequest("papermap.rpc.dashboard", "answers.here.x", body))
			w.Request("dashboard", string(body))
		}
		answered := 0
		for {
			msg, err := seen.NextMsg(200 * time.Millisecond)
			if err != nil {
				break
			}
			switch first, _, _ := strings.Cut(msg.Subject, "."); {
			case msg.Subject == "answers.here.x":
				answered++
			case strings.HasPrefix(msg.Subject, "_INBOX."):
			case strings.HasPrefix(msg.Subject, "papermap.rpc.") && len(msg.Header) == 0 &&
				(len(msg.Data) == 0 || string(msg.Data) == string(body)): // ours
			case first == "$JS" && !strings.HasPrefix(msg.Subject, "$JS.API.STREAM."): // pulls and acks
			case strings.HasPrefix(msg.Subject, "$JS.API.STREAM.INFO.") && msg.Reply != "":
			default:
				t.Errorf("an answer to %s: %s", msg.Subject, msg.Data)
			}
		}
		if answered != 100 {
			t.Errorf("%d answers under a configured prefix, want 100", answered)
		}
		after, err := w.JS.Stream(t.Context(), "PAPERMAP")
		w.Must(err)
		if b, a := before.CachedInfo(), after.CachedInfo(); a.State.LastSeq != b.State.LastSeq ||
			a.State.Msgs != b.State.Msgs || !a.Created.Equal(b.Created) {
			t.Errorf("the stream was changed: %+v before, %+v after", b.State, a.State)
		}
	})
}
