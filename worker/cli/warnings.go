package cli

import (
	"net"
	"net/url"
	"os"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"papermap-worker/events"
)

// unsafe says which settings of serve are allowed, but let others read or change what they should
// not.
func unsafe(cfg serveConfig) (warnings []string) {
	if address, ok := strings.CutPrefix(cfg.database, "sqlite:"); ok {
		if info, err := os.Stat(address); err == nil && info.Mode().Perm()&0o077 != 0 {
			warnings = append(warnings, "other users can read the database file: use `chmod 600`")
		}
	} else if unverifiedDatabase(cfg.database) {
		warnings = append(warnings, "the connection to PostgreSQL is not protected against a man "+
			"in the middle: use sslmode=verify-full in DATABASE_URL")
	}
	if clearPassword(cfg.bus) {
		warnings = append(warnings,
			"the NATS password is sent in the clear: use tls:// in NATS_URL, or NATS_TLS_CA")
	}
	for _, listener := range []struct{ name, addr string }{
		{"HTTP_ADDR", cfg.http.Addr}, {"METRICS_ADDR", cfg.http.MetricsAddr},
	} {
		host, _, err := net.SplitHostPort(listener.addr)
		if err == nil && cfg.http.TLS == nil && !loopback(host) {
			warnings = append(warnings, listener.name+" is reachable from other hosts, without TLS: "+
				"set HTTP_TLS_CERT and HTTP_TLS_KEY, or use a proxy that has TLS")
		}
	}
	return warnings
}

// unverifiedDatabase reports whether a PostgreSQL server beyond this host could be somebody else.
func unverifiedDatabase(address string) bool {
	c, err := pgconn.ParseConfig(address)
	if err != nil {
		return false // the database cannot be opened, which is another message
	}
	hosts := append(c.Fallbacks, &pgconn.FallbackConfig{Host: c.Host, TLSConfig: c.TLSConfig})
	for _, h := range hosts {
		socket := strings.HasPrefix(h.Host, "/") || strings.HasPrefix(h.Host, "@")
		if !socket && !loopback(h.Host) && (h.TLSConfig == nil || h.TLSConfig.InsecureSkipVerify) {
			return true
		}
	}
	return false
}

// clearPassword reports whether a password for NATS leaves this host without TLS.
func clearPassword(o events.Options) bool {
	if o.TLSCA != "" || o.TLSCert != "" { // with these the client requires TLS
		return false
	}
	for server := range strings.SplitSeq(o.URL, ",") {
		u, err := url.Parse(strings.TrimSpace(server))
		if err != nil || u.Scheme == "tls" || u.Scheme == "wss" || loopback(u.Hostname()) {
			continue
		}
		if o.Password != "" || u.User != nil {
			return true
		}
	}
	return false
}
