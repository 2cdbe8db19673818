package worker_test

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
	"papermap-worker/worker"
	"papermap-worker/worker/workertest"
)

// The vectors were computed by other programs in other languages.
func TestTokensMatchTheGoldenVectors(t *testing.T) {
	text, err := os.ReadFile("../papermap/testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		Tokens []struct {
			KeyID      string `json:"api_key_id"`
			Secret     string `json:"secret_key"`
			Workspace  string `json:"workspace_id"`
			Tenant     string `json:"tenant_id"`
			Dashboard  string `json:"dashboard_id"`
			ValidUntil int64  `json:"valid_until"`
			Token      string `json:"token"`
			EmbedURL   string `json:"embed_url"`
		} `json:"tokens"`
	}
	if err := json.Unmarshal(text, &vectors); err != nil || len(vectors.Tokens) == 0 {
		t.Fatal(err, "no vectors read")
	}
	for i, v := range vectors.Tokens {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			virtual(t, options{NoWorker: true, Config: func(c *worker.Config) {
				c.Workspaces = []papermap.Workspace{{
					ID: v.Workspace, APIURL: c.Workspaces[0].APIURL, Key: workertest.WorkspaceA.Key,
					EmbedKey: papermap.KeyPair{ID: v.KeyID, Secret: papermap.NewSecret(v.Secret)},
				}}
				c.EmbedURL = "https://papermap.ai/embedded/dashboard"
				// fractions are cut
				c.Clock = func() time.Time { return time.Unix(v.ValidUntil, 999_999_999).Add(-c.TokenTTL) }
			}}, func(t *testing.T, w *world) {
				w.API.Intercept(func(rw http.ResponseWriter, _ *http.Request) {
					rw.Header().Set("Content-Type", "application/json")
					fmt.Fprintf(rw, `{"success":true,"message":"","data":{"dashboard_id":%q}}`, v.Dashboard)
				})
				w.StartWorker()
				w.Create(v.Tenant)
				w.Eventually(w.Are(repo.Active, v.Tenant))
				defer func() { // the simulator's books know nothing of the vector's dashboard
					w.Workers[0].Stop()
					_, err := w.SQL.Exec("DELETE FROM tenant_dashboards")
					w.Must(err)
				}()
				for _, token := range []worker.EmbedToken{
					w.Token(v.Tenant), w.Token(v.Tenant),
					w.TokenOn("embed-token."+events.EncodeTenant(v.Tenant), ""),
				} {
					want := worker.EmbedToken{
						Token: v.Token, TenantID: v.Tenant, WorkspaceID: v.Workspace,
						DashboardID: v.Dashboard, ExpiresAt: v.ValidUntil,
						RefreshAfter: v.ValidUntil - 720, ExpiresIn: 3600,
						EmbedURL: v.EmbedURL,
					}
					if token != want {
						t.Errorf("got  %+v\nwant %+v", token, want)
					}
				}
			})
		})
	}
}

func TestTokensOfAReplacedKeyStayValidUntilItIsRevoked(t *testing.T) {
	virtual(t, options{Workers: 2}, func(t *testing.T, w *world) {
		w.Create("t")
		w.Eventually(w.Are(repo.Active, "t"))
		old := w.Token("t")
		refusedByPapermap := func(token worker.EmbedToken) {
			t.Helper()
			answer, err := w.HTTP.Get(token.EmbedURL)
			w.Must(err)
			if answer.Body.Close(); answer.StatusCode != http.StatusUnauthorized {
				t.Errorf("status %d, want 401", answer.StatusCode)
			}
		}

		next := papermap.KeyPair{ID: "ak_a_embed_2", Secret: papermap.NewSecret("sk_canary_embed_a_2")}
		w.Simulator.AddKey("ws-a", next) // Papermap has both now
		w.Config.Workspaces[0].EmbedKey = next
		for _, replaced := range slices.Clone(w.Workers) { // one after the other: one always answers
			w.StartWorker()
			replaced.Stop()
			w.Token("t")
		}
		for range 10 {
			fresh := w.Token("t")
			claims := w.Claims(fresh)
			if claims.APIKeyID != next.ID {
				t.Errorf("signed with %s", claims.APIKeyID)
			}
			w.Opens(fresh, "Dashboard - t")
		}
		w.Opens(old, "Dashboard - t")

		w.Simulator.RevokeKey(workertest.WorkspaceA.EmbedKey.ID)
		refusedByPapermap(old)
		w.Opens(w.Token("t"), "Dashboard - t")
		w.Create("after") // the API's own pair is another, and works on
		w.Eventually(w.Are(repo.Active, "after"))
	})
}

func TestTokensAreSignedWithTheirWorkspacesKey(t *testing.T) {
	virtual(t, options{Workers: 2}, func(t *testing.T, w *world) {
		tenants := map[string]papermap.Workspace{}
		for n, tenant := range names("org", 20) {
			tenants[tenant] = []papermap.Workspace{workertest.WorkspaceA, workertest.WorkspaceB}[n%2]
			w.Publish(events.TypeTenantCreated,
				object("tenant_id", tenant, "name", tenant, "workspace_id", tenants[tenant].ID))
		}
		for tenant := range tenants {
			w.Eventually(w.Are(repo.Active, tenant))
		}
		for range 5 { // interleaved, so that most expire in the same second
			for tenant, ws := range tenants {
				claims := w.Claims(w.Token(tenant))
				if err := claims.Verify(ws.EmbedKey, time.Now()); err != nil || claims.WorkspaceID != ws.ID ||
					claims.TenantID != tenant || claims.DashboardID != w.Mapping(tenant).DashboardID {
					t.Errorf("%s of %s: %v, %+v", tenant, ws.ID, err, claims)
				}
			}
		}
		for tenant := range tenants {
			w.Opens(w.Token(tenant), "Dashboard - "+tenant)
		}
	})
}

func TestTokenOpensItsTenantsDashboardOnly(t *testing.T) {
	onBoth(t, options{}, func(t *testing.T, w *world) {
		w.Publish(events.TypeTenantCreated, `{"tenant_id":"in a","name":"A"}`)
		w.Publish(events.TypeTenantCreated, `{"tenant_id":"in b/ü.*>","name":"B","workspace_id":"ws-b"}`)
		w.Eventually(w.Are(repo.Active, "in a", "in b/ü.*>"))
		for _, c := range []struct {
			tenant, title string
			workspace     papermap.Workspace
		}{
			{"in a", "Dashboard - A", workertest.WorkspaceA},
			{"in b/ü.*>", "Dashboard - B", workertest.WorkspaceB},
		} {
			before := time.Now().Unix()
			token := w.TokenFor(object("tenant_id", c.tenant, "workspace_id", c.workspace.ID))
			claims := w.Claims(token)
			m := w.Mapping(c.tenant)
			if err := claims.Verify(c.workspace.EmbedKey, time.Now()); err != nil {
				t.Error(err)
			}
			if claims.TenantID != c.tenant || claims.WorkspaceID != c.workspace.ID ||
				claims.DashboardID != m.DashboardID || claims.ValidUntil != token.ExpiresAt ||
				token.TenantID != c.tenant || token.WorkspaceID != c.workspace.ID ||
				token.DashboardID != m.DashboardID {
				t.Errorf("token %+v, claims %+v, mapping %+v", token, claims, m)
			}
			if life := token.ExpiresAt - before; life < 3600 || life > 3610 ||
				token.RefreshAfter != token.ExpiresAt-720 {
				t.Errorf("expires after %d s, refresh %d s before that; want 3600 and 720", life,
					token.ExpiresAt-token.RefreshAfter)
			}
			w.Opens(token, c.title)
		}
		if n := len(w.Requests("create")); n != 2 || len(w.Requests("usage")) > 0 {
			t.Errorf("minting called the API: %+v", w.Simulator.Log())
		}
	})
}

func TestTokenLifeIsAsAskedUpToTheMaximum(t *testing.T) {
	virtual(t, options{}, func(t *testing.T, w *world) {
		w.Create("t")
		w.Eventually(w.Are(repo.Active, "t"))
		for asked, want := range map[string]int64{"1": 1, "10": 10, "3601": 3601, "7200": 7200, "7201": 7200,
			"9223372036854775807": 7200} {
			before := time.Now().Unix()
			token := w.TokenFor(`{"tenant_id":"t","ttl_seconds":` + asked + `}`)
			if life := token.ExpiresAt - before; life < want || life > want+10 {
				t.Errorf("asked for %s, got %d s, want %d", asked, life, want)
			}
			// when 80 % are over
			if refresh := token.ExpiresAt - token.RefreshAfter; refresh < want/5 || refresh > want/5+1 {
				t.Errorf("asked for %s: refresh %d s before the end of %d", asked, refresh, want)
			}
		}
	})
}

func TestTokensCarryTheAddressOfTheirWorkspace(t *testing.T) {
	own := "https://eu.example.com/embedded/dashboard"
	virtual(t, options{Config: func(c *worker.Config) { c.Workspaces[1].EmbedURL = own }},
		func(t *testing.T, w *world) {
			w.Publish(events.TypeTenantCreated, `{"tenant_id":"a","name":"A"}`)
			w.Publish(events.TypeTenantCreated, `{"tenant_id":"b","name":"B","workspace_id":"ws-b"}`)
			w.Eventually(w.Are(repo.Active, "a", "b"))
			for tenant, address := range map[string]string{"a": w.Config.EmbedURL, "b": own} {
				// the second one is from memory
				for _, token := range []worker.EmbedToken{w.Token(tenant), w.Token(tenant)} {
					if !strings.HasPrefix(token.EmbedURL, address+"?embedded-token=") {
						t.Errorf("tenant %s: %s, want %s", tenant, token.EmbedURL, address)
					}
				}
			}
			if diff := cmp.Diff([]string{w.Config.EmbedURL, own}, w.Workers[0].EmbedURLs()); diff != "" {
				t.Errorf("addresses (-want +got):\n%s", diff)
			}
		})
}
