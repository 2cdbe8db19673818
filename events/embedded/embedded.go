// Package embedded runs a NATS server with JetStream inside the process, for demo, dev and tests.
package embedded

import (
	"errors"
	"fmt"
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
	s, err := server.NewServer(&server.Options{
		ServerName: "papermap-embedded", Host: "127.0.0.1", Port: port,
		JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true,
	})
	if err != nil {
		return nil, fmt.Errorf("making the embedded NATS server: %w", err)
	}
	go s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		s.Shutdown()
		return nil, errors.New("the embedded NATS server did not start: is its port taken?")
	}
	return &Server{s}, nil
}

// URL is the address for clients.
func (s *Server) URL() string { return s.s.ClientURL() }

// Close stops the server and returns when it has written its files.
func (s *Server) Close() {
	s.s.Shutdown()
	s.s.WaitForShutdown()
}
