package cli

import (
	"cmp"
	"fmt"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"

	"papermap-worker/worker"
)

// Build is what a release was built from, as its linker set it.
type Build = worker.Build

// programBuild returns what a release was built from. What is missing there is what Go recorded of
// the repository; without a version, it is 0.0.0-dev.
func programBuild(release Build) Build {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	recorded := map[string]string{}
	for _, s := range info.Settings {
		recorded[s.Key] = s.Value
	}
	build := Build{Version: semanticVersion(release.Version, info.Main.Version), Commit: release.Commit,
		Date: release.Date}
	if build.Commit == "" {
		build.Commit, build.Date = recorded["vcs.revision"], recorded["vcs.time"]
		if recorded["vcs.modified"] == "true" {
			build.Commit += "-dirty"
		}
	}
	return build
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
	_, err := fmt.Fprintf(a.stdout, "%s\ncommit %s\ndate %s\n%s %s/%s\n", a.build.Version,
		cmp.Or(a.build.Commit, "unknown"), cmp.Or(a.build.Date, "unknown"), runtime.Version(), runtime.GOOS,
		runtime.GOARCH)
	return err
}
