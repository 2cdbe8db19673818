package proof_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"papermap-worker/papermap"
)

// roleVariable makes this test binary one of the processes that the benchmarks compare with the
// worker.
const roleVariable = "PROOF_ROLE"

// playRole runs a role, whose arguments follow its name, until it is done or killed, and returns an
// exit code.
func playRole(role string) int {
	args := strings.Split(role, "|")
	play := map[string]func([]string) error{"micro": bareMicro, "http": bareHTTP, "flood": flood}[args[0]]
	if err := play(args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, args[0]+":", err)
		return 1
	}
	return 0
}

// bareMicro answers as fast as a micro service can: at once, with bytes that are ready. args are
// the address of the NATS server and the size of an answer.
func bareMicro(args []string) error {
	size, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	answer := append([]byte(`{"token":"`), bytes.Repeat([]byte("x"), size-10)...)
	nc, err := nats.Connect(args[0])
	if err != nil {
		return err
	}
	service, err := micro.AddService(nc, micro.Config{Name: "bare", Version: "1.0.0"})
	if err != nil {
		return err
	}
	handler := micro.HandlerFunc(func(r micro.Request) { _ = r.Respond(answer) })
	if err := service.AddEndpoint("bare", handler, micro.WithEndpointSubject("bench.bare")); err != nil {
		return err
	}
	if err := nc.Flush(); err != nil {
		return err
	}
	fmt.Println("ready ")
	select {}
}

// bareHTTP does the worker's work behind net/http: it decodes the request, finds the tenant in
// memory, signs and answers. args are the number of tenants.
func bareHTTP(args []string) error {
	tenants, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	type mapping struct{ dashboardID, query string }
	mappings := make(map[string]mapping, tenants)
	for i := range tenants {
		id := fmt.Sprintf("b4a7a2f8-1c55-4a6e-8f0e-%012d", i)
		mappings[fmt.Sprintf("org-%07d", i)] = mapping{
			id, string(papermap.AppendEmbedQuery(nil, workspace.ID, id)),
		}
	}
	minter := papermap.NewMinter(workspace.EmbedKey, workspace.ID)
	mint := func(body io.Reader) ([]byte, error) {
		var q struct {
			TenantID string `json:"tenant_id"`
		}
		if err := json.UnmarshalRead(io.LimitReader(body, 64<<10), &q); err != nil {
			return nil, err
		}
		m, known := mappings[q.TenantID]
		if !known {
			return nil, errors.New("unknown tenant")
		}
		now := time.Now().Truncate(time.Second)
		token, err := minter.AppendToken(nil, q.TenantID, m.dashboardID, now.Add(time.Hour))
		if err != nil {
			return nil, err
		}
		embed := "https://papermap.ai/embedded/dashboard?embedded-token=" +
			strings.ReplaceAll(string(token), "=", "%3D") + m.query
		return json.Marshal(struct {
			Token        string `json:"token"`
			TenantID     string `json:"tenant_id"`
			WorkspaceID  string `json:"workspace_id"`
			DashboardID  string `json:"dashboard_id"`
			ExpiresAt    int64  `json:"expires_at"`
			RefreshAfter int64  `json:"refresh_after"`
			EmbedURL     string `json:"embed_url"`
		}{
			string(token), q.TenantID, workspace.ID, m.dashboardID,
			now.Add(time.Hour).Unix(), now.Add(48 * time.Minute).Unix(), embed,
		})
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("ready http://%s/\n", listener.Addr())
	return http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, err := mint(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(text)
	}))
}

// flood publishes requests for tokens at a steady rate and reads no answers. args are the address
// of the NATS server, the rate per second and the duration.
func flood(args []string) error {
	rate, err := strconv.ParseFloat(args[1], 64)
	duration, durationErr := time.ParseDuration(args[2])
	if err := errors.Join(err, durationErr); err != nil {
		return err
	}
	nc, err := nats.Connect(args[0])
	if err != nil {
		return err
	}
	fmt.Println("ready ")
	inbox, start := nats.NewInbox(), time.Now()
	for sent := 0; time.Since(start) < duration; time.Sleep(time.Millisecond) {
		for due := int(rate * time.Since(start).Seconds()); sent < due; sent++ {
			if err := nc.PublishRequest(subjects.RPC("embed-token"), inbox, tokenRequest(0)); err != nil {
				return err
			}
		}
	}
	return nc.FlushTimeout(30 * time.Second)
}
