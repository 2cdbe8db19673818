package e2e

import (
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/nats-io/nats-server/v2/server"
	"gopkg.in/yaml.v3"
)

func loadCompose(t *testing.T, environment map[string]string) *types.Project {
	t.Helper()
	const name = "docker-compose.yml"
	details := types.ConfigDetails{
		WorkingDir: ".", Environment: environment,
		ConfigFiles: []types.ConfigFile{{Filename: name, Content: []byte(readFile(t, name))}},
	}
	project, err := loader.LoadWithContext(t.Context(), details)
	if err != nil {
		t.Fatalf("docker-compose.yml: %v", err)
	}
	return project
}

func TestComposeWorkerStartsAfterItsDependencies(t *testing.T) {
	t.Parallel()
	project := loadCompose(t, nil)
	worker, err := project.GetService("worker")
	must(t, err)
	for _, name := range []string{"nats", "postgres", "simulator"} {
		service, err := project.GetService(name)
		must(t, err)
		if service.HealthCheck == nil || len(service.HealthCheck.Test) < 2 {
			t.Errorf("%s has no health check", name)
		}
		if d := worker.DependsOn[name]; d.Condition != types.ServiceConditionHealthy {
			t.Errorf("worker waits for %s until %q, not until it is healthy", name, d.Condition)
		}
	}
	if got := strings.Join(worker.HealthCheck.Test, " "); got != "CMD /papermap-worker health" {
		t.Errorf("the worker's health check is %q: its image has no shell", got)
	}
}

// A server that is given the compose file's configuration, as it stands there.
func TestComposeNATSKeepsEventsThroughPowerCut(t *testing.T) {
	t.Parallel()
	project := loadCompose(t, nil)
	nats, err := project.GetService("nats")
	must(t, err)
	if c := nats.Configs[0]; c.Source != "nats" ||
		!slices.Equal(nats.Command, []string{"--config", c.Target}) {
		t.Errorf("the server is started with %v, its configuration %q is at %q", nats.Command, c.Source,
			c.Target)
	}
	file := tempFile(t, "nats.conf", project.Configs["nats"].Content)
	o, err := server.ProcessConfigFile(file)
	must(t, err)
	if !slices.ContainsFunc(nats.Volumes,
		func(v types.ServiceVolumeConfig) bool { return v.Type == "volume" && v.Target == o.StoreDir }) {
		t.Errorf("events are stored in %q, which is on no volume", o.StoreDir)
	}
	s := startNATS(t, file, func(o *server.Options) {
		o.HTTPHost, o.HTTPPort = "127.0.0.1", server.RANDOM_PORT
	})
	if v, err := s.Varz(nil); err != nil || v.JetStream.Config == nil || !v.JetStream.Config.SyncAlways {
		t.Errorf("JetStream as the server has it: %+v, %v", v.JetStream.Config, err)
	}
	check, err := url.Parse(nats.HealthCheck.Test[len(nats.HealthCheck.Test)-1])
	must(t, err)
	if check.Port() != strconv.Itoa(o.HTTPPort) || check.Hostname() != "127.0.0.1" {
		t.Errorf("the health check asks %s, the server answers on port %d", check.Host, o.HTTPPort)
	}
	answer, text, err := read(http.Get("http://" + s.MonitorAddr().String() + check.RequestURI()))
	if err != nil || answer.StatusCode != http.StatusOK || !strings.Contains(text, `"ok"`) {
		t.Errorf("the health check gets %v, %s (%v)", answer, text, err)
	}
}

func TestComposeWorkerScales(t *testing.T) {
	t.Parallel()
	worker, err := loadCompose(t, nil).GetService("worker")
	must(t, err)
	if worker.ContainerName != "" {
		t.Error("a container name allows one worker only")
	}
	for _, port := range worker.Ports {
		if port.Published != "" && !strings.Contains(port.Published, "-") {
			t.Errorf("port %s of the host can be taken by one worker only", port.Published)
		}
		if port.HostIP != "127.0.0.1" {
			t.Errorf("port %s is open to the network", port.Published)
		}
	}
}

func TestComposeSettingsAreValid(t *testing.T) {
	t.Parallel()
	worker, err := loadCompose(t, nil).GetService("worker")
	must(t, err)
	settings := map[string]string{}
	for name, value := range worker.Environment {
		if name != "HTTPS_PROXY" && name != "NO_PROXY" { // every program reads those
			settings[name] = *value
		}
	}
	accepts(t, settings)
}

// instruction is one of a Dockerfile.
type instruction struct{ name, rest string }

// dockerfile reads the instructions of each stage.
func dockerfile(t *testing.T) (stages [][]instruction) {
	t.Helper()
	text := readFile(t, "Dockerfile")
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name == "" || name[0] == '#' {
			continue
		}
		if name == "FROM" {
			stages = append(stages, nil)
		}
		if len(stages) > 0 { // ARG may stand before
			last := len(stages) - 1
			stages[last] = append(stages[last], instruction{name, strings.TrimSpace(rest)})
		}
	}
	return stages
}

func TestImageHasOnlyProgramAndCertificates(t *testing.T) {
	t.Parallel()
	stages := dockerfile(t)
	last := stages[len(stages)-1]
	rest := func(name string) (list []string) {
		for _, i := range last {
			if i.name == name {
				list = append(list, i.rest)
			}
		}
		return list
	}
	for name, want := range map[string][]string{
		"FROM":       {"scratch"}, // no shell, no package manager
		"RUN":        nil,
		"ADD":        nil,
		"ENTRYPOINT": {`["/papermap-worker"]`},
		"CMD":        {`["serve"]`},
		"SHELL":      nil,
	} {
		if got := rest(name); !slices.Equal(got, want) {
			t.Errorf("%s %q, want %q", name, got, want)
		}
	}
	// a name would need /etc/passwd
	if user := rest("USER"); len(user) != 1 ||
		!regexp.MustCompile(`^[1-9]\d*:[1-9]\d*$`).MatchString(user[0]) {
		t.Errorf("USER %q, want numbers that are not root's", user)
	}
	copied := map[string]string{}
	for _, line := range rest("COPY") {
		flag := func(word string) bool { return strings.HasPrefix(word, "--") }
		words := slices.DeleteFunc(strings.Fields(line), flag)
		if !strings.HasPrefix(line, "--from=build ") || len(words) != 2 {
			t.Errorf("COPY %s: not one thing from the stage that builds", line)
			continue
		}
		copied[words[1]] = words[0]
	}
	const certificates = "/etc/ssl/certs/ca-certificates.crt" // where Go looks first
	if copied[certificates] != certificates || copied["/papermap-worker"] == "" {
		t.Errorf("the image has %v, and not the program and %s", copied, certificates)
	}
	if check := rest("HEALTHCHECK"); len(check) != 1 ||
		!strings.HasSuffix(check[0], ` CMD ["/papermap-worker", "health"]`) {
		t.Errorf("HEALTHCHECK %q", check)
	}
	environment := map[string]string{}
	for _, line := range rest("ENV") {
		for _, pair := range strings.Fields(line) {
			name, value, ok := strings.Cut(pair, "=")
			if !ok {
				t.Errorf("ENV %s is no NAME=value", pair)
			}
			if !slices.Contains(variables(t), name) {
				t.Errorf("the program knows no setting %s", name)
			}
			environment[name] = value
		}
	}
	if _, port, err := net.SplitHostPort(environment["HTTP_ADDR"]); err != nil ||
		!slices.Equal(rest("EXPOSE"), []string{port}) {
		t.Errorf("EXPOSE %q, and HTTP is served at %q", rest("EXPOSE"), environment["HTTP_ADDR"])
	}
}

func TestEnvExampleNamesComposeVariables(t *testing.T) {
	t.Parallel()
	example := readFile(t, ".env.example")
	compose := readFile(t, "docker-compose.yml")
	taken, given := named(`\$\{([A-Z_]+)`, compose), named(`(?m)^#?([A-Z_]+)=`, example)
	if !slices.Equal(taken, given) {
		t.Errorf("docker-compose.yml takes %v\n.env.example names %v", taken, given)
	}
}

func TestComposeObservabilityProfileIsComplete(t *testing.T) {
	t.Parallel()
	project := loadCompose(t, nil)
	for _, name := range []string{"prometheus", "grafana"} {
		if _, err := project.GetService(name); err == nil {
			t.Errorf("%s starts without the profile", name)
		}
	}
	project, err := project.WithProfiles([]string{"observability"})
	must(t, err)
	targets := map[string]map[string]string{} // where files are mounted, by service
	for _, name := range []string{"prometheus", "grafana"} {
		service, err := project.GetService(name)
		must(t, err)
		if !regexp.MustCompile(`:v?\d+\.\d+\.\d+$`).MatchString(service.Image) {
			t.Errorf("%s is of no fixed version: %s", name, service.Image)
		}
		if len(service.Ports) != 1 || service.Ports[0].HostIP != "127.0.0.1" {
			t.Errorf("%s is open to the network, or not at all: %v", name, service.Ports)
		}
		targets[name] = map[string]string{}
		for _, v := range service.Volumes {
			if v.Type != types.VolumeTypeBind {
				continue
			}
			if info, err := os.Stat(v.Source); err != nil || !info.Mode().IsRegular() || !v.ReadOnly {
				t.Errorf("%s mounts %s: %v, read-only %v", name, v.Source, err, v.ReadOnly)
			}
			targets[name][v.Target] = v.Source
		}
	}

	// What is mounted is where it is looked for.
	var prometheus struct {
		Rules  []string `yaml:"rule_files"`
		Scrape []struct {
			Job string `yaml:"job_name"`
			DNS []struct {
				Names []string
				Port  int
			} `yaml:"dns_sd_configs"`
		} `yaml:"scrape_configs"`
	}
	readYAML(t, targets["prometheus"]["/etc/prometheus/prometheus.yml"], &prometheus)
	for _, file := range prometheus.Rules {
		if targets["prometheus"][file] == "" {
			t.Errorf("Prometheus reads rules from %s, where nothing is mounted", file)
		}
	}
	worker, err := project.GetService("worker")
	must(t, err)
	scrape := prometheus.Scrape[0]
	if scrape.Job != "papermap-worker" || scrape.DNS[0].Names[0] != "worker" ||
		uint32(scrape.DNS[0].Port) != worker.Ports[0].Target {
		t.Errorf("Prometheus scrapes %+v", scrape)
	}
	var dashboards struct {
		Providers []struct{ Options struct{ Path string } }
	}
	readYAML(t, targets["grafana"]["/etc/grafana/provisioning/dashboards/papermap.yml"], &dashboards)
	home, err := project.GetService("grafana")
	must(t, err)
	path := *home.Environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
	if targets["grafana"][path] == "" || filepath.Dir(path) != dashboards.Providers[0].Options.Path {
		t.Errorf("Grafana reads dashboards from %s and begins with %s; mounted: %v",
			dashboards.Providers[0].Options.Path, path, targets["grafana"])
	}
	var sources struct{ Datasources []struct{ URL string } }
	readYAML(t, targets["grafana"]["/etc/grafana/provisioning/datasources/papermap.yml"], &sources)
	if len(sources.Datasources) != 1 || sources.Datasources[0].URL != "http://prometheus:9090" {
		t.Errorf("Grafana asks %+v", sources)
	}
}

func readYAML(t *testing.T, path string, into any) {
	t.Helper()
	must(t, yaml.Unmarshal([]byte(readFile(t, path)), into))
}
