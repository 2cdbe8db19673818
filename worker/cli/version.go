package cli

import (
	"cmp"
	"fmt"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
)

// programVersion returns the version that a release was built with, else the one that Go recorded,
// else 0.0.0-dev.
func programVersion(release string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return semanticVersion(release, info.Main.Version)
	}
	return semanticVersion(release)
}

var semanticForm = regexp.MustCompile(`^[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)

// semanticVersion is the first candidate that is a semantic version, without the v that Go puts
// before it: micro services have no other kind.
func semanticVersion(candidates ...string) string {
	for _, c := range candidates {
		if c = strings.TrimPrefix(c, "v"); semanticForm.MatchString(c) {
			return c
		}
	}
	return "0.0.0-dev"
}

// versionCmd prints the version alone on the first line, then what the program was built from.
type versionCmd struct{}

func (versionCmd) Run(a *app) error {
	if err := a.parser().err(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.stdout, "%s\ncommit %s\n%s %s/%s\n", a.version, commit(), runtime.Version(),
		runtime.GOOS, runtime.GOARCH)
	return err
}

// commit is what Go recorded of the repository.
func commit() string {
	settings := map[string]string{}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			settings[s.Key] = s.Value
		}
	}
	text := cmp.Or(settings["vcs.revision"], "unknown")
	if when := settings["vcs.time"]; when != "" {
		text += " of " + when
	}
	if settings["vcs.modified"] == "true" {
		text += ", modified"
	}
	return text
}
