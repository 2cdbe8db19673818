package cli

import (
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Without an endpoint nothing is checked: the variables are other programs' too.
func TestTracingSettingsAreChecked(t *testing.T) {
	const endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT"
	invalid := []string{
		"collector:4318", "grpc://h", "https://", "https://u:CANARY@h", "https://h?key=CANARY",
		"http://h:port",
	}
	for name, values := range map[string]struct{ valid, invalid []string }{
		endpoint:                             {[]string{"http://collector:4318", "https://h/base"}, invalid},
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": {[]string{"http://h/v1/traces"}, invalid},
		"OTEL_TRACES_EXPORTER":               {[]string{"otlp"}, []string{"zipkin"}},
		"OTEL_SDK_DISABLED":                  {[]string{"false"}, nil},
	} {
		check := func(value string, more ...string) (bool, []string) {
			settings := map[string]string{endpoint: "http://h", name: value}
			for i := 0; i < len(more); i += 2 {
				settings[more[i]] = more[i+1]
			}
			setEnvironment(t, settings)
			p := (&app{}).parser()
			return p.tracing(), p.problems
		}
		for _, value := range values.valid {
			if on, problems := check(value); !on || len(problems) > 0 {
				t.Errorf("%s=%s: %v, %v", name, value, on, problems)
			}
		}
		for _, value := range values.invalid {
			_, problems := check(value)
			if len(problems) != 1 || !strings.HasPrefix(problems[0], name+": ") ||
				strings.Contains(problems[0], "CANARY") {
				t.Errorf("%s=%s: %q, want one problem that names the variable", name, value, problems)
			}
			if on, problems := check(value, "OTEL_SDK_DISABLED", "true"); on || len(problems) > 0 {
				t.Errorf("%s=%s and disabled: %v, %v", name, value, on, problems)
			}
		}
	}
	setEnvironment(t, map[string]string{"OTEL_TRACES_EXPORTER": "zipkin",
		"OTEL_EXPORTER_OTLP_HEADERS": "CANARY"})
	p := (&app{}).parser()
	if on := p.tracing(); on || len(p.problems) > 0 {
		t.Errorf("without an endpoint: %v, %v", on, p.problems)
	}
}

// OpenTelemetry's library handles these by its defaults. It must not print them: they can hold
// keys.
func TestTracingSettingsThatTheLibraryRefusesAreNotPrinted(t *testing.T) {
	if os.Getenv("START_TRACING") != "" { // in a process of its own, for the library's stderr
		_, _, stop, err := startTracing(true, Build{}, slog.New(slog.NewTextHandler(os.Stderr, nil)))
		if err != nil {
			t.Fatal(err)
		}
		stop()
		return
	}
	c := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+t.Name()+"$")
	c.Env = []string{
		"START_TRACING=1", "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1",
		"OTEL_EXPORTER_OTLP_HEADERS=CANARY,a b=CANARY",
		"OTEL_EXPORTER_OTLP_TRACES_HEADERS=a=%zCANARY", "OTEL_EXPORTER_OTLP_TIMEOUT=CANARY",
		"OTEL_EXPORTER_OTLP_PROTOCOL=CANARY", "OTEL_EXPORTER_OTLP_CERTIFICATE=/CANARY",
		"OTEL_TRACES_SAMPLER=CANARY",
		"OTEL_TRACES_SAMPLER_ARG=CANARY", "OTEL_RESOURCE_ATTRIBUTES=CANARY",
	}
	output, err := c.CombinedOutput()
	if err != nil || strings.Contains(string(output), "CANARY") {
		t.Errorf("%v: %s", err, output)
	}
	t.Logf("%s", output)
}
