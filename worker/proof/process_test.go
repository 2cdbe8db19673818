package proof_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"papermap-worker/worker/workertest"
)

// process is a running program. Its output is appended to a file.
type process struct {
	cmd  *exec.Cmd
	log  *os.File
	from int64         // where its output begins in the file
	done chan struct{} // closed when it has ended
}

func launch(log, program string, env []string, args ...string) (*process, error) {
	file, err := os.OpenFile(log, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(program, args...), log: file, done: make(chan struct{})}
	if p.from, err = file.Seek(0, io.SeekEnd); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir()}, env...)
	p.cmd.Stdout, p.cmd.Stderr = file, file
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", program, err), file.Close())
	}
	go func() {
		_ = p.cmd.Wait() // how it ended is in ProcessState
		close(p.done)
	}()
	return p, nil
}

// kill ends the process as `kill -9` does, and returns when it has ended.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

// wait reports whether the process ended within d. It returns false earlier if ctx is done.
func (p *process) wait(ctx context.Context, d time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	select {
	case <-p.done:
		return true
	case <-ctx.Done():
		return false
	}
}

// exit returns how the process ended: by which signal, or 0 and with which code.
func (p *process) exit() (syscall.Signal, int) {
	if status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return status.Signal(), -1
	}
	return 0, p.cmd.ProcessState.ExitCode()
}

// terminate sends SIGTERM and expects the process to drain and exit with code 0.
func (p *process) terminate(t testing.TB) {
	t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	if !p.wait(context.Background(), 45*time.Second) {
		t.Errorf("still running 45 s after SIGTERM; end of its log:\n%s", p.tail(3000))
	} else if signal, code := p.exit(); signal != 0 || code != 0 {
		t.Errorf("after SIGTERM: signal %v, code %d", signal, code)
	}
}

// output returns what the process has written so far.
func (p *process) output() string {
	text, err := os.ReadFile(p.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(text[min(p.from, int64(len(text))):])
}

func (p *process) tail(limit int) string {
	out := p.output()
	return out[max(0, len(out)-limit):]
}

// stopped returns nil when the process was stopped by SIGSTOP.
func (p *process) stopped() error {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return err
	}
	_, state, _ := strings.Cut(string(stat), ") ") // behind the program's name
	if !strings.HasPrefix(state, "T") {
		return errors.New("not stopped")
	}
	return nil
}

// natsServer is a NATS server with JetStream in a process, on the same port and store at each
// start.
type natsServer struct {
	program, dir string
	port         int
	cluster      []string // its arguments
	process      *process
}

func (n *natsServer) url() string { return fmt.Sprintf("nats://127.0.0.1:%d", n.port) }

func (n *natsServer) start() (err error) {
	args := append([]string{"-a", "127.0.0.1", "-p", fmt.Sprint(n.port), "-js", "-sd", n.dir}, n.cluster...)
	n.process, err = launch(n.dir+".log", n.program, nil, args...)
	return err
}

// restart kills the server and starts it again after a while.
func (n *natsServer) restart(after time.Duration) error {
	n.process.kill()
	time.Sleep(after)
	return n.start()
}

// newServers prepares NATS servers in dir, which form a cluster if there are several. They are not
// started.
func newServers(t testing.TB, dir string, count int) []*natsServer {
	t.Helper()
	servers, ports := make([]*natsServer, count), make([]int, 2*count)
	for i := range ports {
		var err error
		if ports[i], err = workertest.FreePort(); err != nil {
			t.Fatal(err)
		}
	}
	var routes []string
	for _, port := range ports[count:] {
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", port))
	}
	for i := range servers {
		name := fmt.Sprintf("node%d", i)
		servers[i] = &natsServer{program: build(t).nats, dir: filepath.Join(dir, name), port: ports[i]}
		if count > 1 {
			servers[i].cluster = []string{
				"-n", name, "--cluster_name", "proof", "--cluster", routes[i], "--routes",
				strings.Join(routes, ","),
			}
		}
	}
	return servers
}

// proxy passes connections on to the simulator or to a NATS server. It can close, refuse and delay them.
type proxy struct {
	listener net.Listener
	to       string
	refuse   atomic.Bool  // new connections are closed at once
	delay    atomic.Int64 // nanoseconds, before anything is passed on
	running  sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool
}

func startProxy(t testing.TB, to string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	to = strings.TrimPrefix(strings.TrimPrefix(to, "http://"), "nats://")
	p := &proxy{listener: listener, to: to, conns: map[net.Conn]bool{}}
	p.running.Go(p.accept)
	t.Cleanup(func() {
		_ = listener.Close()
		p.cut()
		p.running.Wait()
	})
	return p
}

func (p *proxy) url() string { return "http://" + p.listener.Addr().String() }

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return // closed
		}
		if p.refuse.Load() {
			_ = client.Close()
			continue
		}
		server, err := net.Dial("tcp", p.to)
		if err != nil {
			_ = client.Close()
			continue
		}
		p.mu.Lock()
		p.conns[client], p.conns[server] = true, true
		p.mu.Unlock()
		p.running.Go(func() { p.pass(client, server) })
		p.running.Go(func() { p.pass(server, client) })
	}
}

// pass copies one direction and closes both connections when it ends.
func (p *proxy) pass(from, to net.Conn) {
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, c := range []net.Conn{from, to} {
			_ = c.Close()
			delete(p.conns, c)
		}
	}()
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		time.Sleep(time.Duration(p.delay.Load()))
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// cut closes all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}
