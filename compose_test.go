package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"gopkg.in/yaml.v3"
)

func loadCompose(t *testing.T, environment map[string]string) *types.Project {
	t.Helper()
	data, err := os.ReadFile("docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	details := types.ConfigDetails{
		WorkingDir: ".", Environment: environment, ConfigFiles: []types.ConfigFile{{Filename: "docker-compose.yml", Content: data}},
	}
	project, err := loader.LoadWithContext(t.Context(), details)
	if err != nil {
		t.Fatalf("docker-compose.yml: %v", err)
	}
	return project
}

func TestComposeFileStartsTheWorkerAfterAllThatItNeeds(t *testing.T) {
	project := loadCompose(t, nil)
	worker, err := project.GetService("worker")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"nats", "postgres", "simulator"} {
		service, err := project.GetService(name)
		if err != nil {
			t.Fatal(err)
		}
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
	if config := project.Configs["nats"]; !strings.Contains(config.Content, "sync_interval: always") || !strings.Contains(config.Content, "jetstream") {
		t.Errorf("NATS does not keep acknowledged events through a power cut: %q", config.Content)
	}
}

func TestComposeFileScales(t *testing.T) {
	worker, err := loadCompose(t, nil).GetService("worker")
	if err != nil {
		t.Fatal(err)
	}
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

func TestComposeFileSetsWhatTheProgramKnows(t *testing.T) {
	worker, err := loadCompose(t, nil).GetService("worker")
	if err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile("config.go")
	if err != nil {
		t.Fatal(err)
	}
	for name := range worker.Environment {
		if !strings.Contains(string(config), `"`+name+`"`) {
			t.Errorf("the program knows no setting %s", name)
		}
	}
	for name, value := range worker.Environment {
		t.Setenv(name, *value)
	}
	unsetEmpty()
	var cmd serveCmd
	if _, err := kong.Must(&cmd).Parse(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := cmd.config(nil); err != nil {
		t.Errorf("the worker would refuse its environment: %v", err)
	}
}

func TestEnvExampleNamesWhatTheComposeFileTakes(t *testing.T) {
	example, err := os.ReadFile(".env.example")
	if err != nil {
		t.Fatal(err)
	}
	compose, err := os.ReadFile("docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	names := func(form, text string) []string {
		var list []string
		for _, m := range regexp.MustCompile(form).FindAllStringSubmatch(text, -1) {
			list = append(list, m[1])
		}
		slices.Sort(list)
		return slices.Compact(list)
	}
	taken, given := names(`\$\{([A-Z_]+)`, string(compose)), names(`(?m)^#?([A-Z_]+)=`, string(example))
	if !slices.Equal(taken, given) {
		t.Errorf("docker-compose.yml takes %v\n.env.example names %v", taken, given)
	}
}

func TestComposeProfileShowsTheDashboardAndNothingMoreThanItNeeds(t *testing.T) {
	project := loadCompose(t, nil)
	for _, name := range []string{"prometheus", "grafana"} {
		if _, err := project.GetService(name); err == nil {
			t.Errorf("%s starts without the profile", name)
		}
	}
	project, err := project.WithProfiles([]string{"observability"})
	if err != nil {
		t.Fatal(err)
	}
	targets := map[string]map[string]string{} // where files are mounted, by service
	for _, name := range []string{"prometheus", "grafana"} {
		service, err := project.GetService(name)
		if err != nil {
			t.Fatal(err)
		}
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
	if err != nil {
		t.Fatal(err)
	}
	scrape := prometheus.Scrape[0]
	if scrape.Job != "papermap-worker" || scrape.DNS[0].Names[0] != "worker" || uint32(scrape.DNS[0].Port) != worker.Ports[0].Target {
		t.Errorf("Prometheus scrapes %+v", scrape)
	}
	var dashboards struct {
		Providers []struct{ Options struct{ Path string } }
	}
	readYAML(t, targets["grafana"]["/etc/grafana/provisioning/dashboards/papermap.yml"], &dashboards)
	home, err := project.GetService("grafana")
	if err != nil {
		t.Fatal(err)
	}
	path := *home.Environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
	if targets["grafana"][path] == "" || filepath.Dir(path) != dashboards.Providers[0].Options.Path {
		t.Errorf("Grafana reads dashboards from %s and begins with %s; mounted: %v", dashboards.Providers[0].Options.Path, path, targets["grafana"])
	}
	var sources struct{ Datasources []struct{ URL string } }
	readYAML(t, targets["grafana"]["/etc/grafana/provisioning/datasources/papermap.yml"], &sources)
	if len(sources.Datasources) != 1 || sources.Datasources[0].URL != "http://prometheus:9090" {
		t.Errorf("Grafana asks %+v", sources)
	}
}

func readYAML(t *testing.T, path string, into any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err == nil {
		err = yaml.Unmarshal(data, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}
