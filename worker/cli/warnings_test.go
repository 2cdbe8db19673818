package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestUnsafeSettingsAreWarnedOf(t *testing.T) {
	open, own := filepath.Join(t.TempDir(), "open.db"), filepath.Join(t.TempDir(), "own.db")
	must(t, os.WriteFile(open, nil, 0o600))
	must(t, os.Chmod(open, 0o644))
	must(t, os.WriteFile(own, nil, 0o600))
	const man, clear, reach, mode = "man in the middle", "in the clear",
		"reachable from other hosts", "chmod 600"
	for setting, warnings := range map[string]map[string]string{
		"DATABASE_URL": {
			"postgres://u:CANARY@db/x": man, "postgres://u:CANARY@db/x?sslmode=require": man,
			"postgres://u:CANARY@db/x?sslmode=prefer": man, "postgres://u:CANARY@db/x?sslmode=disable": man,
			"postgres://u:CANARY@127.0.0.1,db/x?sslmode=disable": man,
			"postgres://u:CANARY@db/x?sslmode=verify-full":       "",
			"postgres://u:CANARY@localhost/x":                    "", "postgres://u:CANARY@[::1]:5432/x": "",
			"postgres:///x?host=/run/postgresql": "", "sqlite:" + own: "", "sqlite:" + open: mode,
			"sqlite:/nowhere/x.db": "",
		},
		"NATS_URL": {
			"nats://u:CANARY@h:4222": clear, "nats://CANARY@h": clear, "nats://h": "", "tls://u:CANARY@h": "",
			"nats://u:CANARY@localhost": "", "tls://u:CANARY@h,nats://u:CANARY@g": clear,
			"ws://u:CANARY@h": clear, "wss://u:CANARY@h": "",
		},
		"HTTP_ADDR": {":8080": reach, "0.0.0.0:8080": reach, "10.0.0.1:80": reach, "[::]:80": reach,
			"127.0.0.1:80": "", "localhost:80": "", "[::1]:80": "", "off": ""},
		"METRICS_ADDR": {":9090": "METRICS_ADDR is " + reach, "127.0.0.1:9090": ""},
	} {
		for value, want := range warnings {
			cfg, p := configure(t, map[string]string{setting: value})
			if len(p) > 0 {
				t.Fatal(p)
			}
			text := strings.Join(unsafe(cfg), "\n")
			if (text != "") != (want != "") || !strings.Contains(text, want) ||
				strings.Contains(text, "CANARY") {
				t.Errorf("%s=%s: %q, want %q", setting, value, text, want)
			}
		}
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(ca, nil, 0o600))
	for _, more := range []map[string]string{
		{"NATS_URL": "nats://h", "NATS_USER": "u", "NATS_PASSWORD": "CANARY"},
		{"NATS_URL": "nats://h", "NATS_USER": "u", "NATS_PASSWORD": "CANARY", "NATS_TLS_CA": ca},
	} {
		cfg, _ := configure(t, more)
		if got := len(unsafe(cfg)) == 1; got != (more["NATS_TLS_CA"] == "") {
			t.Errorf("%v: %q", more, unsafe(cfg))
		}
	}
}
