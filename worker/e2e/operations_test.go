package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"
)

// fence is the commands of docs/operations.md under a name.
func fence(t *testing.T, name string) string {
	t.Helper()
	data := readFile(t, "docs/operations.md")
	_, text, ok := strings.Cut(data, "\n```sh "+name+"\n")
	text, _, closed := strings.Cut(text, "\n```\n")
	if !ok || !closed {
		t.Fatalf("docs/operations.md has no commands %s", name)
	}
	return text
}

// host is where documented commands run: folders of its own in place of the real ones, no users, no
// systemd.
type host struct {
	lib, backups string
	env          []string
}

func newHost(t *testing.T, lib string, env []string, programs ...string) host {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			without(t, "%s is not installed", p)
		}
	}
	h := host{lib: lib, backups: t.TempDir()}
	bin := t.TempDir()
	for name, script := range map[string]string{
		"systemctl": `echo "$@" >> "` + h.backups + `/systemctl"`, "chown": "exit 0",
		"install": `cp "${@:(-2)}"`,
	} {
		must(t, os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/bash\n"+script+"\n"), 0o700))
	}
	h.env = append([]string{"PATH=" + bin + ":" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir()}, env...)
	return h
}

// run runs documented commands and returns what they print. Each must succeed.
func (h host) run(t *testing.T, name string) string {
	t.Helper()
	script := strings.NewReplacer("/var/lib/papermap", h.lib, "/var/backups/papermap",
		h.backups).Replace(fence(t, name))
	cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", script)
	cmd.Env = h.env
	output, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, output)
	}
	return string(output)
}

// backUpAndRestore loses a database after a backup, and expects the documented commands to bring
// all of it back.
func backUpAndRestore(t *testing.T, s *system, h host, backup, restore string, lose func()) {
	t.Helper()
	env := s.env
	publish := func(args ...string) {
		t.Helper()
		run(t, env, append([]string{"publish"}, args...)...)
	}
	shows := func(pattern string) string { // without times
		t.Helper()
		text := prints(t, pattern, env, "tenants", "list")
		return regexp.MustCompile(` 20\d\d-\S+ \S+ `).ReplaceAllString(text, " ")
	}
	s.jetStream(t) // has the streams, before the worker
	run(t, env, "migrate")
	worker := start(t, env, "serve")
	publish("tenant-created", "before", "--name", "Before")
	publish("tenant-created", "leaves", "--name", "Leaves")
	shows("(?s)before +active.*leaves +active")
	h.run(t, backup)
	publish("tenant-created", "after", "--name", "After")
	publish("tenant-created", "adopts", "--dashboard-id", "d-adopted")
	publish("tenant-deleted", "leaves")
	want := shows("(?s)adopts +active.*after +active.*leaves +deleted")
	worker.stop(t)
	lose()
	output := h.run(t, restore)
	if !strings.Contains(output, "recorded 2 dashboards that the database did not know") {
		t.Errorf("the restore printed\n%s", output)
	}
	worker = start(t, env, "serve")
	if got := shows("(?s)adopts +active.*after +active.*leaves +deleted"); got != want {
		t.Errorf("restored\n%s\nwas\n%s", got, want)
	}
	var adopted []string
	must(t, openSQL(t, s.database).Select(&adopted,
		"SELECT tenant_id FROM tenant_dashboards WHERE dashboard_origin = 'adopted'"))
	if !slices.Equal(adopted, []string{"adopts"}) {
		t.Errorf("adopted %q, want adopts", adopted)
	}
	if n := len(s.sim.Dashboards()); n != 3 {
		t.Errorf("Papermap has %d dashboards, want 3", n)
	}
	worker.stop(t)
}

func TestBackupAndRestoreOfSQLite(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	h := newHost(t, filepath.Dir(s.db), s.env, "bash")
	backUpAndRestore(t, s, h, "backup-sqlite", "restore-sqlite", func() {
		must(t, os.WriteFile(s.db, bytes.Repeat([]byte("damaged "), 1000), 0o600))
	})
	if asked, err := os.ReadFile(filepath.Join(h.backups, "systemctl")); err != nil ||
		string(asked) != "stop papermap-worker\nstart papermap-worker\n" {
		t.Errorf("systemctl was asked %q, %v", asked, err)
	}
}

func TestBackupAndRestoreOfPostgreSQL(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.usePostgres(t)
	h := newHost(t, filepath.Dir(s.db), s.env, "bash", "pg_dump", "pg_restore")
	backUpAndRestore(t, s, h, "backup-postgres", "restore-postgres", func() {
		openSQL(t, s.database).MustExec("DROP TABLE tenant_dashboards; DELETE FROM provision_attempts")
	})
}

// accepts checks that the worker takes these settings, after every file that they name was replaced
// by one of ours. With another setting wrong on purpose, doctor checks all of them and contacts
// nothing else.
func accepts(t *testing.T, settings map[string]string) {
	t.Helper()
	known := variables(t)
	const wrong = "PAPERMAP_TIMEOUT"
	env := []string{wrong + "=never"}
	for name, value := range settings {
		if !slices.Contains(known, name) {
			t.Errorf("the program knows no setting %s", name)
		}
		if strings.HasSuffix(name, "_FILE") {
			value = tempFile(t, "secret", value)
		}
		env = append(env, name+"="+value)
	}
	code, text := doctor(t, env)
	if code != 2 || strings.Count(text, "ERROR") != 1 || !matches("ERROR +configuration +"+wrong, text) {
		t.Errorf("exit code %d; the worker would refuse its settings:\n%s", code, text)
	}
}

// settingsIn are the lines NAME=value of a text.
func settingsIn(form, text string) map[string]string {
	settings := map[string]string{}
	for _, m := range regexp.MustCompile(form).FindAllStringSubmatch(text, -1) {
		settings[m[1]] = m[2]
	}
	return settings
}

func TestSystemdUnitFitsTheWorker(t *testing.T) {
	t.Parallel()
	unit := readFile(t, "docs/deploy/papermap-worker.service")
	plain := readFile(t, "docs/deploy/worker.env")
	settings := settingsIn(`(?m)^([A-Z_]+)=(.*)$`, plain)
	secrets := settingsIn(`(?m)^LoadCredential=([a-z-]+):(/etc/papermap/secrets/.+)$`, unit)
	for name, value := range settingsIn(`(?m)^Environment=([A-Z_]+)=(.*)$`, unit) {
		if secrets[strings.TrimPrefix(value, "%d/")] == "" {
			t.Errorf("%s: no credential %s is loaded", name, value)
		}
		settings[name] = "sk_something_secret"
	}
	accepts(t, settings)

	settings = settingsIn(`(?m)^([A-Za-z]+)=(.*)$`, unit)
	// SHUTDOWN_GRACE's default
	if stop, err := time.ParseDuration(settings["TimeoutStopSec"]); err != nil || stop <= 25*time.Second {
		t.Errorf("systemd kills it after %v (%v)", stop, err)
	}
	if !strings.HasSuffix(settings["ExecStart"], "/papermap-worker serve") ||
		settings["EnvironmentFile"] != "/etc/papermap/worker.env" {
		t.Errorf("it runs %q with %q", settings["ExecStart"], settings["EnvironmentFile"])
	}
	if state := "/var/lib/" + settings["StateDirectory"]; settings["WorkingDirectory"] != state ||
		!strings.Contains(plain, "sqlite:"+state+"/") {
		t.Error("the database is not in the folder that the service may write to")
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		return // what it would find is a mistake of systemd's grammar
	}
	program := tempFile(t, "papermap-worker", "#!/bin/sh\n")
	must(t, os.Chmod(program, 0o700))
	file := tempFile(t, "papermap-worker.service",
		strings.Replace(unit, "/usr/local/bin/papermap-worker", program, 1))
	output, err := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", file).CombinedOutput()
	for line := range strings.Lines(string(output)) {
		if strings.Contains(line, "papermap-worker.service") {
			t.Errorf("systemd-analyze verify: %s (%v)", line, err)
		}
	}
}

// manifest is what this test reads of a Kubernetes object.
type manifest struct {
	Kind     string
	Metadata struct{ Name string }
	Data     map[string]string `yaml:"stringData"`
	Spec     struct {
		Selector yaml.Node
		Ports    []struct {
			TargetPort string `yaml:"targetPort"`
		}
		Template struct {
			Metadata struct {
				Labels, Annotations map[string]string
			}
			Spec struct {
				Grace      int `yaml:"terminationGracePeriodSeconds"`
				Containers []container
				Volumes    []struct {
					Name   string
					Secret struct {
						Name string `yaml:"secretName"`
					}
				}
			}
		}
	}
}

type container struct {
	Args  []string
	Env   []struct{ Name, Value string }
	Ports []struct {
		Name string
		Port int `yaml:"containerPort"`
	}
	Startup   probe `yaml:"startupProbe"`
	Liveness  probe `yaml:"livenessProbe"`
	Readiness probe `yaml:"readinessProbe"`
	Mounts    []struct {
		Name string
		Path string `yaml:"mountPath"`
	} `yaml:"volumeMounts"`
}

type probe struct {
	Get struct{ Path, Port string } `yaml:"httpGet"`
}

func TestKubernetesManifestFitsTheWorker(t *testing.T) {
	t.Parallel()
	objects := map[string]manifest{}
	for part := range strings.SplitSeq(readFile(t, "docs/deploy/kubernetes.yml"), "\n---\n") {
		var m manifest
		must(t, yaml.Unmarshal([]byte(part), &m))
		objects[m.Kind] = m
	}
	pod, secret := objects["Deployment"].Spec.Template, objects["Secret"]
	worker := pod.Spec.Containers[0]
	mount := worker.Mounts[0]
	if !slices.Equal(worker.Args, []string{"serve"}) || pod.Spec.Volumes[0].Name != mount.Name ||
		pod.Spec.Volumes[0].Secret.Name != secret.Metadata.Name {
		t.Errorf("it runs %v with %+v", worker.Args, pod.Spec.Volumes)
	}
	settings := map[string]string{}
	for _, e := range worker.Env {
		settings[e.Name] = e.Value
		if strings.HasSuffix(e.Name, "_FILE") {
			key, ok := strings.CutPrefix(e.Value, mount.Path+"/")
			if settings[e.Name] = secret.Data[key]; !ok || settings[e.Name] == "" {
				t.Errorf("%s: the Secret has no %s", e.Name, e.Value)
			}
		}
	}
	if !strings.Contains(settings["DATABASE_URL_FILE"], "sslmode=verify-full&") ||
		!strings.HasPrefix(settings["NATS_URL_FILE"], "tls://") || secret.Data["ca.crt"] == "" {
		t.Errorf("connections are not verified: %s, %s", settings["DATABASE_URL_FILE"],
			settings["NATS_URL_FILE"])
	}
	authority := filepath.Join(t.TempDir(), "ca.crt")
	must(t, makeCertificate(authority, filepath.Join(t.TempDir(), "key")))
	for name, value := range settings {
		settings[name] = strings.ReplaceAll(value, mount.Path+"/ca.crt", authority)
	}
	accepts(t, settings)
	for i, setting := range []string{"HTTP_ADDR", "METRICS_ADDR"} {
		if !strings.HasSuffix(settings[setting], fmt.Sprintf(":%d", worker.Ports[i].Port)) {
			t.Errorf("ports %+v, %s %s", worker.Ports, setting, settings[setting])
		}
	}
	if pod.Metadata.Annotations["prometheus.io/port"] != fmt.Sprint(worker.Ports[1].Port) {
		t.Errorf("Prometheus scrapes port %s", pod.Metadata.Annotations["prometheus.io/port"])
	}
	for name, is := range map[string]bool{
		"startup": worker.Startup.Get.Path == "/healthz", "liveness": worker.Liveness.Get.Path == "/healthz",
		"readiness": worker.Readiness.Get.Path == "/readyz",
		"their port": worker.Startup.Get.Port == "metrics" && worker.Liveness.Get.Port == "metrics" &&
			worker.Readiness.Get.Port == "metrics" && worker.Ports[1].Name == "metrics",
		"the service's port": objects["Service"].Spec.Ports[0].TargetPort == "http" &&
			worker.Ports[0].Name == "http",
		"the grace": pod.Spec.Grace > 25,
	} {
		if !is {
			t.Errorf("%s: not as the worker has it", name)
		}
	}
	for _, kind := range []string{"Deployment", "Service", "PodDisruptionBudget"} {
		var selector struct {
			MatchLabels map[string]string `yaml:"matchLabels"`
			Name        string            `yaml:"app.kubernetes.io/name"`
		}
		node := objects[kind].Spec.Selector
		must(t, node.Decode(&selector))
		const name = "app.kubernetes.io/name"
		if selector.Name+selector.MatchLabels[name] != pod.Metadata.Labels[name] {
			t.Errorf("%s does not select the workers", kind)
		}
	}
}
