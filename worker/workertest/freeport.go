package workertest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"syscall"
)

const firstPort, ports = 20000, 10000

// Ports are counted up from a random one, so that none is returned twice in a process.
var (
	offset = rand.IntN(ports)
	drawn  atomic.Int64
)

// FreePort returns a port of the loopback interface without a listener, below those that the system
// hands out by itself, so that it stays free.
func FreePort() (int, error) {
	for {
		port := firstPort + (offset+int(drawn.Add(1)))%ports
		listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			return 0, err
		}
		return port, listener.Close()
	}
}
