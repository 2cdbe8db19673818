//go:build unix

package papermap

import (
	"net"
	"syscall"
)

// silent reports whether nothing waits to be read from c: no byte, no end, no error. It does not wait.
// Of what is no socket it knows nothing.
func silent(c net.Conn) bool {
	socket, ok := c.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return false
	}
	var peeked error
	err = raw.Read(func(fd uintptr) bool { // Go's sockets do not block
		_, _, peeked = syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK)
		return true
	})
	return err == nil && (peeked == syscall.EAGAIN || peeked == syscall.EINTR)
}
