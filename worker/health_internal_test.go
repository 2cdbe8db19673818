package worker

import (
	"log/slog"
	"strings"
	"testing"
)

func TestHealthLogsATroubleOnceAndItsEnd(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	h := &health{log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == "do" {
				return slog.Attr{}
			}
			return a
		},
	}))}
	full := Finding{Check: databaseCheck, Found: "full", Fix: "make room", Fatal: true}
	stream := Finding{Check: "stream", Found: "missing", Fix: "make it", Fatal: true}
	warning := Finding{Check: "consumer", Found: "changed", Fix: "restart"}
	for _, step := range []struct {
		name      string
		found     []Finding
		connected bool
		want      string
	}{
		{"all is well", nil, true, ""},
		{"a warning", []Finding{warning}, true, ""},
		{"full", []Finding{full}, true,
			`level=ERROR msg="worker is not ready" check=database found=full`},
		{"still full", []Finding{full, warning}, true, ""},
		{"a stream is missing, too", []Finding{full, stream}, true,
			`level=ERROR msg="worker is not ready" check=stream found=missing`},
		{"room was made, and the stream cannot be seen", nil, false,
			`level=INFO msg="problem resolved" check=database`},
		{"it is still missing", []Finding{stream}, true, ""},
		{"it was made", []Finding{}, true, `level=INFO msg="problem resolved" check=stream`},
		{"all is well", nil, true, ""},
	} {
		log.Reset()
		h.report(step.found, step.connected)
		if got := strings.TrimSpace(log.String()); got != step.want {
			t.Errorf("%s: logged %q, want %q", step.name, got, step.want)
		}
	}
}
