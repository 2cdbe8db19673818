// Papermap-worker gives each tenant of a SaaS company its Papermap dashboard.
//
// It consumes tenant events from NATS JetStream, creates dashboards at Papermap, records them in SQL,
// and answers requests for embed tokens over NATS. `papermap-worker --help` lists the commands.
package main

import (
	"os"

	"papermap-worker/worker/cli"
)

// version is set when a release is built: -ldflags "-X main.version=1.2.3".
var version = ""

func main() {
	os.Exit(cli.Run(version, os.Args[1:], os.Stdout, os.Stderr))
}
