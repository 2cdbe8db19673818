package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
)

// Credentials of the one workspace.
const (
	workspaceID = "ws-race"
	keyID       = "ak_race"
	secretKey   = "sk_race_0123456789"
)

const createPath = "/api/v1/external/dashboards"

// serveAPI imitates Papermap's create: it answers after t.Delay, with a new id each time. It
// checks that a request is signed but not the signature, and costs as little as it can, because
// it shares the machine with those that are measured.
func serveAPI(t task) error {
	var created atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+createPath, func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, 64<<10))
		signed := len(r.Header.Get("X-Signature")) == hex.EncodedLen(sha256.Size)
		if err != nil || !signed || r.Header.Get("X-Tenant-ID") == "" {
			http.Error(w, "not a signed request for a tenant", http.StatusUnauthorized)
			return
		}
		time.Sleep(time.Duration(t.Delay))
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"success":true,"data":{"dashboard_id":"dash-%08d"}}`, created.Add(1))
	})
	mux.HandleFunc("GET /created", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, created.Load())
	})
	mux.HandleFunc("GET /", func(w http.ResponseWriter, _ *http.Request) {
		// papermap-worker probes the API at start.
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"success":true,"data":[],"meta":{"total":0}}`)
	})
	l, err := net.Listen("tcp", t.Address)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	return http.Serve(l, mux)
}

// created asks the API how many dashboards it has created.
func created(ctx context.Context, api string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, api+"/created", nil)
	if err != nil {
		return 0, fmt.Errorf("ask the API: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, fmt.Errorf("ask the API: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, fmt.Errorf("ask the API: %w", err)
	}
	n, err := strconv.Atoi(string(body))
	if err != nil {
		return 0, fmt.Errorf("ask the API: %w", err)
	}
	return n, nil
}

// tenant is a job: the data of papermap-worker's tenant.created.
type tenant struct {
	ID   string `json:"tenant_id"`
	Name string `json:"name"`
}

// Kind names River's jobs.
func (tenant) Kind() string { return "tenant.created" }

func tenants(n int) []tenant {
	list := make([]tenant, n)
	for i := range list {
		list[i] = tenant{ID: fmt.Sprintf("tenant-%06d", i+1), Name: fmt.Sprintf("Tenant %d", i+1)}
	}
	return list
}

// rival does the task as most would write it: one call, one INSERT.
type rival struct {
	url    string
	client *http.Client
	record func(ctx context.Context, t tenant, dashboardID string) error
}

// newRival's HTTP client keeps as many connections as papermap-worker's, with the same timeouts.
func newRival(api string, record func(context.Context, tenant, string) error) *rival {
	return &rival{url: api + createPath, record: record, client: &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{MaxIdleConnsPerHost: 256, IdleConnTimeout: 4 * time.Second},
	}}
}

// provision creates the tenant's dashboard and records it.
func (r *rival) provision(ctx context.Context, t tenant) error {
	id, err := r.create(ctx, t)
	if err != nil {
		return fmt.Errorf("create a dashboard for %s: %w", t.ID, err)
	}
	if err := r.record(ctx, t, id); err != nil {
		return fmt.Errorf("record the dashboard of %s: %w", t.ID, err)
	}
	return nil
}

func (r *rival) create(ctx context.Context, t tenant) (string, error) {
	body, err := json.Marshal(map[string]string{"workspace_id": workspaceID, "title": t.Name})
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	validUntil := strconv.FormatInt(time.Now().Add(5*time.Minute).Unix(), 10)
	mac := hmac.New(sha256.New, []byte(secretKey))
	mac.Write([]byte(workspaceID + validUntil))
	for name, value := range map[string]string{
		"Content-Type": "application/json", "X-API-Key-ID": keyID, "X-Workspace-ID": workspaceID,
		"X-Valid-Until": validUntil, "X-Signature": hex.EncodeToString(mac.Sum(nil)), "X-Tenant-ID": t.ID,
	} {
		req.Header.Set(name, value)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return "", err
	}
	var answer struct {
		Data struct {
			DashboardID string `json:"dashboard_id"`
		} `json:"data"`
	}
	if err := json.Unmarshal(text, &answer); err != nil || answer.Data.DashboardID == "" {
		return "", fmt.Errorf("%s: no dashboard id in %q", resp.Status, text)
	}
	return answer.Data.DashboardID, nil
}
