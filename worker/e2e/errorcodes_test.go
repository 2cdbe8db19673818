package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/nats-io/nats.go"

	contract "papermap-worker/schema/schematest"
)

// refusal is a request and the error of the contract that answers it.
type refusal struct {
	subject, request string
	status, code     string
	retry            bool // the answer says when to try again
}

// refusals are one request at least for each error code of the contract.
var refusals = []refusal{
	{"papermap.rpc.embed-token", `{}`, "400", "INVALID_REQUEST", false},
	{"papermap.rpc.embed-token", `{"tenant_id":"active","workspace_id":"another"}`, "400", "INVALID_REQUEST",
		false},
	{"papermap.rpc.embed-token", `{"tenant_id":"suspended"}`, "403", "TENANT_SUSPENDED", false},
	{"papermap.rpc.embed-token.active", `{"tenant_id":"another"}`, "403", "TENANT_MISMATCH", false},
	{"papermap.rpc.embed-token", `{"tenant_id":"nobody"}`, "404", "TENANT_NOT_FOUND", false},
	{"papermap.rpc.embed-token", `{"tenant_id":"pending"}`, "409", "DASHBOARD_NOT_READY", true},
	{"papermap.rpc.embed-token", `{"tenant_id":"deleted"}`, "410", "TENANT_DELETED", false},
	{"papermap.rpc.embed-token.active", ``, "429", "RATE_LIMITED", true},
	{"papermap.rpc.embed-token", `{"tenant_id":"stray"}`, "503", "UNAVAILABLE", true},
}

// answered is what a client gets to see of an answer.
type answered struct {
	Status, Description string
	Body                jsontext.Value
}

// askInNode makes the requests of its argument, [[subject, body], …], and prints the answers.
const askInNode = `import { connect } from "@nats-io/transport-node";
const nc = await connect({ servers: process.env.NATS_URL });
const answers = [];
for (const [subject, body] of JSON.parse(process.argv[2])) {
  const reply = await nc.request(subject, body, { timeout: 5000 });
  answers.push({
    Status: reply.headers?.get("Nats-Service-Error-Code") ?? "",
    Description: reply.headers?.get("Nats-Service-Error") ?? "",
    Body: reply.json(),
  });
}
console.log(JSON.stringify(answers));
await nc.close();
`

func TestErrorCodesReachGoAndNodeClients(t *testing.T) {
	t.Parallel()
	s, nc := runWorker(t, "EMBED_TOKEN_RATE=0.001", "EMBED_TOKEN_BURST=1")
	// those that are about an unknown tenant make a row without a dashboard
	for tenant, event := range map[string]string{
		"active": "tenant.created", "stray": "tenant.created", "suspended": "tenant.suspended",
		"pending": "tenant.resumed", "deleted": "tenant.deleted",
	} {
		data := `{"tenant_id":"` + tenant + `"}`
		if event == "tenant.created" {
			data = `{"tenant_id":"` + tenant + `","name":"x"}`
		}
		publishStored(t, nc, event, data)
	}
	for _, tenant := range []string{"active", "suspended", "pending", "deleted"} {
		s.status(t, tenant, tenant)
	}
	s.status(t, "stray", "active")
	openSQL(t, s.database).MustExec( // removed from the configuration
		"UPDATE tenant_dashboards SET workspace_id = 'removed' WHERE tenant_id = 'stray'")
	// the one token of its rate
	if reply := ask(t, nc, "papermap.rpc.embed-token.active", ""); reply.Header != nil {
		t.Fatalf("the first token: %v", reply)
	}

	t.Run("Go", func(t *testing.T) {
		var answers []answered
		for _, r := range refusals {
			reply := ask(t, nc, r.subject, r.request)
			answers = append(answers, answered{reply.Header.Get("Nats-Service-Error-Code"),
				reply.Header.Get("Nats-Service-Error"), reply.Data})
		}
		checkRefusals(t, answers)
	})
	t.Run("Node", func(t *testing.T) {
		must(t, os.WriteFile(filepath.Join(nodeExamples(t), "ask.mjs"), []byte(askInNode), 0o600))
		var requests [][2]string
		for _, r := range refusals {
			requests = append(requests, [2]string{r.subject, r.request})
		}
		argument, err := json.Marshal(requests)
		must(t, err)
		out, _, err := example{folder: nodeExamples}.run(t, nc.ConnectedUrl(), []string{"node", "ask.mjs"},
			string(argument))
		must(t, err)
		var answers []answered
		if err := json.Unmarshal([]byte(out), &answers); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		checkRefusals(t, answers)
	})
}

// hasStatus returns nil when the tenant's mapping shows the status.
func hasStatus(nc *nats.Conn, tenant, status string) error {
	reply, err := nc.Request("papermap.rpc.dashboard", []byte(`{"tenant_id":"`+tenant+`"}`), 5*time.Second)
	if err != nil {
		return err
	}
	if !strings.Contains(string(reply.Data), `"status":"`+status+`"`) {
		return errors.New(string(reply.Data))
	}
	return nil
}

func checkRefusals(t *testing.T, answers []answered) {
	t.Helper()
	if len(answers) != len(refusals) {
		t.Fatalf("%d answers to %d requests", len(answers), len(refusals))
	}
	for i, r := range refusals {
		var body struct {
			Code       string `json:"code"`
			Message    string `json:"message"`
			RetryAfter int    `json:"retry_after"`
		}
		a := answers[i]
		contract.Validate(t, "error", a.Body)
		must(t, json.Unmarshal(a.Body, &body))
		if a.Status != r.status || body.Code != r.code || a.Description == "" || body.Message == "" ||
			(body.RetryAfter > 0) != r.retry {
			t.Errorf("%s %s: status %q (%q), %s; want %s %s", r.subject, r.request, a.Status, a.Description,
				a.Body, r.status, r.code)
		}
	}
}
