package cli

import (
	"fmt"
	"regexp"
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

// versionCmd prints what --version of other programs prints.
type versionCmd struct{}

func (versionCmd) Run(a *app) error {
	_, err := fmt.Fprintln(a.stdout, a.version)
	return err
}
