// Package embedded runs a NATS server with JetStream inside the process, for demo, dev and tests.
package embedded

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Server is a running NATS server on the loopback interface.
type Server struct{ s *server.Server }

// Start runs a server on 127.0.0.1, with JetStream's files in dir. port 0 means one that is free.
func Start(dir string, port int) (*Server, error) {
	if port == 0 {
		port = server.RANDOM_PORT
	}
	return start(server.Options{Host: "127.0.0.1", Port: port, StoreDir: dir})
}

func start(o server.Options) (*Server, error) {
	o.ServerName, o.JetStream, o.NoSigs, o.NoLog = "papermap-embedded", true, true, true
	s, err := server.NewServer(&o)
	if err != nil {
		return nil, fmt.Errorf("create the embedded NATS server: %w", err)
	}
	go s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		s.Shutdown()
		return nil, errors.New("the embedded NATS server did not start: is its port taken?")
	}
	return &Server{s}, nil
}

// StartInProcess runs a server that does not listen and is reached only by [Server.InProcessConn],
// because a testing/synctest bubble cannot wait for sockets. Call ats.Register
// (nats-server/v2/server/ats) before the bubble and ats.Unregister after it, because one goroutine
// of the server waits on a channel that was made outside.
func StartInProcess(dir string) (*Server, error) {
	return start(server.Options{DontListen: true, StoreDir: dir})
}

// InProcessConn returns a new connection to the server. It implements nats.InProcessConnProvider.
func (s *Server) InProcessConn() (net.Conn, error) { return s.s.InProcessConn() }

// URL is the address for clients.
func (s *Server) URL() string { return s.s.ClientURL() }

// Close stops the server and returns when it has written its files.
func (s *Server) Close() {
	s.s.Shutdown()
	s.s.WaitForShutdown()
}
