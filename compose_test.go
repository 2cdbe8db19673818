package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
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
