// Papermap-worker gives each tenant of a SaaS company its Papermap dashboard.
//
// It consumes tenant events from NATS JetStream, creates dashboards at Papermap, records them in SQL,
// and answers requests for embed tokens over NATS. `papermap-worker --help` lists the commands.
package main

import (
	"os"

	"papermap-worker/worker/cli"
)

// What a release is built from is set when it is built, by -ldflags "-X main.version=1.2.3 …".
var version, commit, date string

func main() {
	build := cli.Build{Version: version, Commit: commit, Date: date}
	os.Exit(cli.Run(build, os.Args[1:], os.Stdout, os.Stderr))
}
