package cli

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// healthCmd asks the worker that runs on this host whether it is ready, for containers that have no
// shell or curl. It finds the worker by the same settings: a worker that listens on all addresses
// is asked on loopback.
type healthCmd struct {
	httpSettings `group:"Worker"`
}

func (c healthCmd) Run(a *app) error {
	host, port, err := net.SplitHostPort(c.healthAddr())
	if err != nil {
		return usageErrorf("HTTP_ADDR is not host:port, so health is not served")
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	ctx, cancel := context.WithTimeout(a.ctx, 5*time.Second)
	defer cancel()
	status, body, err := httpGet(ctx, "http://"+net.JoinHostPort(host, port)+"/readyz")
	if err != nil {
		return fmt.Errorf("request health: %w", err)
	}
	fmt.Fprintf(a.stdout, "%s", body)
	if status != http.StatusOK {
		return fmt.Errorf("the worker is not ready (status %d)", status)
	}
	return nil
}

// httpGet returns the status, and at most 4 KiB of the body.
func httpGet(ctx context.Context, address string) (status int, body []byte, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return 0, nil, err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer answer.Body.Close()
	body, err = io.ReadAll(io.LimitReader(answer.Body, 4096))
	return answer.StatusCode, body, err
}
