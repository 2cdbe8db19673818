//go:build failpoints

package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// Enabled says whether this build has failpoints.
const Enabled = true

var (
	place, signal, nth = parse(os.Getenv("PAPERMAP_FAILPOINT"))
	hits               atomic.Int64
)

// Hit does what PAPERMAP_FAILPOINT asks for at this place.
func Hit(name string) {
	if name != place || hits.Add(1) != nth {
		return
	}
	fmt.Fprintf(os.Stderr, "failpoint %s: %v\n", name, signal)
	if err := syscall.Kill(os.Getpid(), signal); err != nil {
		panic(err)
	}
	if signal == syscall.SIGKILL {
		select {} // it comes at once, and nothing may happen before it
	}
}

func parse(text string) (place string, signal syscall.Signal, nth int64) {
	if text == "" {
		return "", 0, 0
	}
	place, rest, _ := strings.Cut(text, "=")
	action, count, _ := strings.Cut(rest, "@")
	signal = map[string]syscall.Signal{"kill": syscall.SIGKILL, "stop": syscall.SIGSTOP}[action]
	nth, err := strconv.ParseInt(count, 10, 64)
	if signal == 0 || err != nil || nth < 1 {
		panic(fmt.Sprintf("PAPERMAP_FAILPOINT=%q is not like recorded=kill@3", text))
	}
	return place, signal, nth
}
