//go:build failpoints

package failpoint

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// Enabled reports whether this build has failpoints.
const Enabled = true

var (
	place, action, nth = parse(os.Getenv("PAPERMAP_FAILPOINT"))
	hits               atomic.Int64
)

var watcher atomic.Pointer[func(place string)]

// Watch calls f at each place that is hit from now on, before Hit does anything. It is for tests in
// this process, where no signal can end one worker of several.
func Watch(f func(place string)) { watcher.Store(&f) }

// Hit does what PAPERMAP_FAILPOINT asks for at this place. After a kill it does not return; after a
// stop it returns when the process is continued.
func Hit(name string) {
	if f := watcher.Load(); f != nil {
		(*f)(name)
	}
	if name != place || hits.Add(1) != nth {
		return
	}
	fmt.Fprintf(os.Stderr, "failpoint %s: %v\n", name, action)

	// The signal may take effect on another thread first, so the caller waits here in both cases:
	// nothing that follows this place may run before the process has ended or been continued.
	continued := make(chan os.Signal, 1)
	signal.Notify(continued, syscall.SIGCONT)
	defer signal.Stop(continued)
	if err := syscall.Kill(os.Getpid(), action); err != nil {
		panic(err)
	}
	<-continued
}

// parse reads a setting like "recorded=kill@3". An empty one names no place.
func parse(text string) (place string, action syscall.Signal, nth int64) {
	if text == "" {
		return "", 0, 0
	}
	place, rest, _ := strings.Cut(text, "=")
	verb, count, _ := strings.Cut(rest, "@")
	action = map[string]syscall.Signal{"kill": syscall.SIGKILL, "stop": syscall.SIGSTOP}[verb]
	nth, err := strconv.ParseInt(count, 10, 64)
	if action == 0 || err != nil || nth < 1 {
		panic(fmt.Sprintf("PAPERMAP_FAILPOINT=%q: want PLACE=kill@N or PLACE=stop@N, N at least 1", text))
	}
	return place, action, nth
}
