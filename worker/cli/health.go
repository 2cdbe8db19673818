package cli

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

// healthCmd asks the worker that runs on this host whether it is ready, for containers that have no
// shell or curl. It finds the worker by the same settings: a worker that listens on all addresses
// is asked on loopback.
type healthCmd struct {
	httpSettings `group:"REST and console"`
}

func (c healthCmd) Run(a *app) error {
	if err := a.parser().err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(a.ctx, 5*time.Second)
	defer cancel()
	status, body, err := c.request(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.stdout, "%s", body)
	if status != http.StatusOK {
		return fmt.Errorf("the worker is not ready (status %d)", status)
	}
	return nil
}

// request asks the worker on this host whether it is ready.
func (c healthCmd) request(ctx context.Context) (status int, body []byte, err error) {
	host, port, err := net.SplitHostPort(c.healthAddr())
	if err != nil {
		return 0, nil, usageErrorf("HTTP_ADDR is not host:port, so health is not served")
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	client, scheme := http.DefaultClient, "http"
	if c.HTTPCert != "" {
		if client, err = clientOf(c.HTTPCert); err != nil {
			return 0, nil, usageErrorf("HTTP_TLS_CERT: %v", err)
		}
		scheme = "https"
	}
	status, body, err = httpGet(ctx, client, scheme+"://"+net.JoinHostPort(host, port)+"/readyz")
	if err != nil {
		return 0, nil, fmt.Errorf("request health: %w", err)
	}
	return status, body, nil
}

// readiness is what the worker on this host says about itself.
func (c healthCmd) readiness(ctx context.Context) (body []byte, err error) {
	_, body, err = c.request(ctx)
	return body, err
}

// clientOf returns a client for a server on this host that has the certificate of a file, whatever
// name that is for.
func clientOf(path string) (*http.Client, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s has no PEM block", path)
	}
	verify := func(s tls.ConnectionState) error {
		if !bytes.Equal(s.PeerCertificates[0].Raw, block.Bytes) {
			return errors.New("the server has another certificate")
		}
		return nil
	}
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, VerifyConnection: verify},
	}}, nil
}

// httpGet returns the status, and at most 4 KiB of the body.
func httpGet(ctx context.Context, client *http.Client, address string) (status int, body []byte, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return 0, nil, err
	}
	answer, err := client.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer answer.Body.Close()
	body, err = io.ReadAll(io.LimitReader(answer.Body, 4096))
	return answer.StatusCode, body, err
}
