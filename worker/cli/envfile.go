package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// secretSettings have no flag. Each can be given as NAME_FILE, too.
var secretSettings = []string{
	"PAPERMAP_SECRET_KEY", "PAPERMAP_EMBED_SECRET_KEY", "NATS_URL", "NATS_PASSWORD", "DATABASE_URL",
	"HTTP_JWT_SECRET", "CONSOLE_TOKEN",
}

// otherVariables are known, but no settings of ours: of simulate, of docker-compose.yml, of proxies.
var otherVariables = []string{
	"SIMULATOR_SECRET_KEY", "HTTP_PROXY", "HTTP_PORTS", "NATS_PORT",
}

// loadEnvFile sets the variables of the file that --env-file names, and of .env for dev. Variables
// that are set already stay as they are.
func loadEnvFile(args []string) error {
	path := ""
	for i, arg := range args {
		value, joined := strings.CutPrefix(arg, "--env-file=")
		switch {
		case arg == "--":
			args = nil
		case joined:
			path = value
		case arg == "--env-file" && i+1 < len(args):
			path = args[i+1]
		}
		if args == nil {
			break
		}
	}
	if path != "" {
		return readEnvFile(path)
	}
	if len(args) > 0 && slices.Contains(args, "dev") {
		if err := readEnvFile(".env"); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// readEnvFile reads lines NAME=value, as the shell, Docker and systemd do: # begins a comment, export
// may stand before a name, quotes around a value are removed.
func readEnvFile(path string) error {
	data, err := readText(path)
	if err != nil {
		return fmt.Errorf("--env-file: %w", err)
	}
	for i, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(strings.TrimPrefix(line, "export "), "=")
		name = strings.TrimSpace(name)
		value, closed := unquote(strings.TrimSpace(value))
		if !ok || !closed || !envName.MatchString(name) || strings.Contains(value, "\x00") {
			// The line may hold a secret.
			return fmt.Errorf("--env-file: line %d of %s is not NAME=value", i+1, path)
		}
		if os.Getenv(name) == "" && value != "" {
			os.Setenv(name, value)
		}
	}
	return nil
}

// unquote removes quotes and a comment behind the value. It returns false if a quote is not closed.
func unquote(text string) (value string, ok bool) {
	if text == "" {
		return "", true
	}
	if quote := text[0]; quote == '"' || quote == '\'' {
		end := strings.IndexByte(text[1:], quote)
		if end < 0 {
			return "", false
		}
		rest := strings.TrimSpace(text[end+2:])
		return text[1 : end+1], rest == "" || rest[0] == '#'
	}
	value, _, _ = strings.Cut(text, " #")
	return strings.TrimSpace(value), true
}

// settingNames are the variables that the program reads.
func settingNames(k *kong.Kong) (names []string) {
	_ = kong.Visit(k.Model, func(v kong.Visitable, next kong.Next) error {
		if flag, ok := v.(*kong.Flag); ok {
			names = append(names, flag.Envs...)
		}
		return next(nil)
	})
	for _, name := range secretSettings {
		names = append(names, name, name+"_FILE")
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// clusterVariable matches what Kubernetes sets for each service, and the NATS command line's own.
var clusterVariable = regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT.*|PORT|PORT_\d+_(TCP|UDP|SCTP).*)$|` +
	`^NATS_(CONTEXT|CA|CERT|KEY|NKEY|TIMEOUT|SOCKS_PROXY|COLOR)$`)

// unknownSettings are variables of the environment that look like settings of ours and are none,
// because they are misspelled, with what to say of each. Values may be secrets.
func unknownSettings(known, environment []string) (warnings []string) {
	const ours = "PAPERMAP_ EMBED_TOKEN_ USAGE_SYNC_ CONSOLE_"
	for _, entry := range environment {
		name, value, _ := strings.Cut(entry, "=")
		if value == "" || slices.Contains(known, name) || slices.Contains(otherVariables, name) ||
			clusterVariable.MatchString(name) || strings.HasPrefix(name, "OTEL_") {
			continue
		}
		nearest, distance := nearestName(name, known)
		isOurs := slices.ContainsFunc(strings.Fields(ours), func(prefix string) bool {
			return strings.HasPrefix(name, prefix)
		})
		first, _, _ := strings.Cut(name, "_")
		sameFirst := slices.ContainsFunc(known,
			func(k string) bool { return strings.HasPrefix(k, first+"_") })
		near := sameFirst && distance <= 4 && 5*distance <= 2*len(name) || distance <= 2 && len(name) >= 9
		switch {
		case near:
			warnings = append(warnings, fmt.Sprintf("%s is not a setting: did you mean %s?", name, nearest))
		case isOurs:
			warnings = append(warnings, fmt.Sprintf("%s is not a setting (the nearest is %s)", name, nearest))
		}
	}
	slices.Sort(warnings)
	return warnings
}

func nearestName(name string, known []string) (nearest string, distance int) {
	distance = len(name) + 100
	for _, k := range known {
		if d := editDistance(name, k); d < distance {
			nearest, distance = k, d
		}
	}
	return nearest, distance
}

// editDistance is the number of characters to insert, delete or replace.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
