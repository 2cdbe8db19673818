package papermap

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// dialTimeout bounds each step to a connection: TCP, the proxy's CONNECT, TLS.
const dialTimeout = 5 * time.Second

// dialer connects to the host of an address. It reaches an https host through a proxy of the
// environment (HTTPS_PROXY, NO_PROXY; never for loopback) by CONNECT, so that the proxy sees no
// request. http uses no proxy, which could misuse the signatures that it would see.
//
// If it fails, nothing of the request was sent.
type dialer struct {
	address *url.URL
	network func(ctx context.Context, network, address string) (net.Conn, error)
	proxy   func(*http.Request) (*url.URL, error)
	tls     *tls.Config
}

func (d *dialer) dial(ctx context.Context) (*conn, error) {
	proxy, err := d.proxyURL()
	if err != nil {
		return nil, err
	}
	first := d.address
	if proxy != nil {
		first = proxy
	}
	tcp, err := d.network(ctx, "tcp", hostPort(first))
	if err != nil {
		return nil, named(proxy, "connecting", err)
	}
	raw := &countingConn{Conn: tcp}
	c := net.Conn(raw)
	if proxy != nil {
		c, err = d.connect(ctx, raw, proxy)
	}
	if err == nil && d.address.Scheme == "https" {
		c, err = d.startTLS(ctx, c, d.address.Hostname())
	}
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	return newConn(c, raw), nil
}

// proxyURL returns the proxy on the way to the address; nil: none.
func (d *dialer) proxyURL() (*url.URL, error) {
	if d.address.Scheme != "https" {
		return nil, nil
	}
	proxy, err := d.proxy(&http.Request{URL: d.address})
	switch {
	case err != nil: // not quoted: it may hold a password
		return nil, errors.New("the proxy's address in HTTPS_PROXY is not valid")
	case proxy != nil && proxy.Scheme != "http" && proxy.Scheme != "https":
		return nil, fmt.Errorf("the proxy's scheme %q in HTTPS_PROXY is not supported: use http or https",
			proxy.Scheme)
	}
	return proxy, nil
}

// named adds the proxy, if there is one, to an error.
func named(proxy *url.URL, what string, err error) error {
	if proxy == nil {
		return err
	}
	return fmt.Errorf("proxy %s: %s: %w", hostPort(proxy), what, err)
}

// hostPort returns the host and port of an address.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

func (d *dialer) startTLS(ctx context.Context, c net.Conn, host string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	config := d.tls.Clone()
	config.ServerName = host
	encrypted := tls.Client(c, config)
	if err := encrypted.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return encrypted, nil
}

// connect asks the proxy at the other end of c for a connection to the address.
func (d *dialer) connect(ctx context.Context, c net.Conn, proxy *url.URL) (net.Conn, error) {
	if proxy.Scheme == "https" {
		var err error
		if c, err = d.startTLS(ctx, c, proxy.Hostname()); err != nil {
			return nil, named(proxy, "connecting", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(longAgo) })
	err := requestTunnel(c, proxy.User, hostPort(d.address))
	if !stop() { // the deadline has come
		err = ctx.Err()
	}
	if err != nil {
		return nil, named(proxy, "CONNECT", err)
	}
	return c, nil
}

// requestTunnel sends CONNECT, and reads the answer to its end.
func requestTunnel(c net.Conn, user *url.Userinfo, target string) error {
	req := &http.Request{
		Method: http.MethodConnect, URL: &url.URL{Opaque: target}, Host: target, Header: http.Header{},
	}
	if user != nil {
		password, _ := user.Password()
		pair := base64.StdEncoding.EncodeToString([]byte(user.Username() + ":" + password))
		req.Header.Set("Proxy-Authorization", "Basic "+pair)
	}
	if err := req.Write(c); err != nil {
		return err
	}
	r := bufio.NewReader(io.LimitReader(c, maxHeader))
	resp, err := http.ReadResponse(r, req)
	switch {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusOK: // its text is not ours to log
		return fmt.Errorf("status %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	case r.Buffered() > 0:
		return errors.New("data before the TLS handshake")
	}
	return nil
}
