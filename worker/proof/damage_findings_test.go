package proof_test

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
)

// warnings are the first ones in the log of a NATS server.
func warnings(p *process) string {
	var b strings.Builder
	for line := range strings.Lines(p.output()) {
		if strings.Contains(line, "[WRN]") || strings.Contains(line, "[ERR]") {
			b.WriteString(line)
		}
	}
	return b.String()[:min(1500, b.Len())]
}

// findings are what doctor and the worker's log say beyond what they say without damage.
func (d *damagedRun) findings() (found []string) {
	ctx, cancel := context.WithTimeout(d.t.Context(), time.Minute)
	defer cancel()
	doctor := exec.CommandContext(ctx, build(d.t).worker, "doctor", "--json")
	doctor.Env = append(os.Environ(), d.env...)
	out, _ := doctor.Output() // the exit code is 1 after an error
	var list []struct{ Status, Check, Found string }
	if err := json.Unmarshal(out, &list, json.MatchCaseInsensitiveNames(true)); err != nil {
		found = append(found, "doctor: "+err.Error()+string(out))
	}
	for _, f := range list {
		about, _, _ := strings.Cut(f.Check, " ")
		if f.Status != "ok" && slices.Contains([]string{"stream", "consumer", "JetStream"}, about) {
			found = append(found, "doctor "+f.Status+": "+f.Check+": "+f.Found)
		}
	}
	for _, says := range []string{
		"stream was recreated", "created a stream", "stream is misconfigured", "cannot consume",
	} {
		if strings.Contains(d.worker.output(), says) {
			found = append(found, "log: "+says)
		}
	}
	return found
}
