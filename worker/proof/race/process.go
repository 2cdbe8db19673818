package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/sys/unix"
)

// Roles of this program's own processes.
const (
	roleAPI       = "api"
	roleServer    = "nats-server"
	roleNATS      = "nats"
	roleRiver     = "river"
	roleWatermill = "watermill"
)

// task is what a process of this program is to do, as the JSON of its second argument.
type task struct {
	Address  string `json:",omitempty"` // a server listens here: host:port
	Folder   string `json:",omitempty"` // for a server's files
	Delay    int64  `json:",omitempty"` // of the API, in nanoseconds
	API      string // URL
	NATS     string // URL
	Database string // URL: postgres://... or sqlite:PATH
	InFlight int
}

const rolePrefix = "role:"

func isRole(args []string) bool { return len(args) == 3 && strings.HasPrefix(args[1], rolePrefix) }

// runRole is main for a process that [startRole] started: it serves or works until it is ended.
func runRole(args []string) (code int) {
	var t task
	err := json.Unmarshal([]byte(args[2]), &t)
	if err == nil {
		switch role := strings.TrimPrefix(args[1], rolePrefix); role {
		case roleAPI:
			err = serveAPI(t)
		case roleServer:
			err = serveNATS(t)
		case roleNATS:
			err = workNATS(t)
		case roleRiver:
			err = workRiver(t)
		case roleWatermill:
			err = workWatermill(t)
		default:
			err = fmt.Errorf("no role %q", role)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "race:", err)
		return 1
	}
	return 0
}

// process is a child. It is killed when the race dies.
type process struct {
	name   string
	cmd    *exec.Cmd
	log    string        // path of what it wrote
	exited chan struct{} // closed when it has ended
}

// startRole starts a process of this program.
func startRole(folder, role string, t task) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	argument, err := json.Marshal(t)
	if err != nil {
		return nil, fmt.Errorf("encode a task: %w", err)
	}
	return start(folder, role, exec.Command(self, rolePrefix+role, string(argument)))
}

// startServer starts a process of this program that listens on a free port, and returns its
// address when it accepts connections.
func startServer(ctx context.Context, folder, role string, t task) (*process, string, error) {
	var err error
	if t.Address, err = freeAddress(); err != nil {
		return nil, "", err
	}
	p, err := startRole(folder, role, t)
	if err != nil {
		return nil, "", err
	}
	if err := p.waitUntil(ctx, func() bool { return listening(t.Address) }); err != nil {
		return nil, "", errors.Join(err, p.stop(syscall.SIGKILL))
	}
	return p, t.Address, nil
}

func start(folder, name string, cmd *exec.Cmd) (*process, error) {
	log, err := os.CreateTemp(folder, name+"-*.log")
	if err != nil {
		return nil, fmt.Errorf("make a log: %w", err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	cmd.SysProcAttr.Setpgid = true // Ctrl-C reaches the race alone, which ends its processes in order
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, log: log.Name(), exited: make(chan struct{})}
	go func() {
		defer close(p.exited)
		_ = cmd.Wait() // most are ended by a signal; waitUntil reports one that was not
	}()
	return p, nil
}

// cpu is the processor time that the process has used, as user and system.
func (p *process) cpu() (time.Duration, error) {
	// The clock's id is made as by MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED) in Linux.
	const cpuclockSched = 2
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^p.cmd.Process.Pid<<3|cpuclockSched), &t); err != nil {
		return 0, fmt.Errorf("read the processor time of %s: %w", p.name, err)
	}
	return time.Duration(t.Nano()), nil
}

// family is the processor time of the process and of its children, also of those that have ended, to
// a hundredth of a second.
func (p *process) family() (time.Duration, error) {
	const hertz = 100 // USER_HZ, on every architecture that Go supports
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, fmt.Errorf("list processes: %w", err)
	}
	var ticks int64
	for _, path := range all {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// The name, in brackets, may have spaces and brackets. After it: 0 is the state, 1 the parent,
		// 11 to 14 are the user and system times, its own and of children that it has waited for.
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		pid := strconv.Itoa(p.cmd.Process.Pid)
		if fields[1] != pid && filepath.Base(filepath.Dir(path)) != pid {
			continue
		}
		for _, field := range fields[11:15] {
			n, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read %s: %w", path, err)
			}
			ticks += n
		}
	}
	return time.Duration(ticks) * (time.Second / hertz), nil
}

// group is the worker processes of a contender.
type group []*process

func (g group) cpu() (sum time.Duration, err error) {
	for _, p := range g {
		used, err := p.cpu()
		if err != nil {
			return 0, err
		}
		sum += used
	}
	return sum, nil
}

// stop ends all of them at the same time.
func (g group) stop(signal syscall.Signal) error {
	failed := make([]error, len(g))
	var wait sync.WaitGroup
	for i, p := range g {
		wait.Go(func() { failed[i] = p.stop(signal) })
	}
	wait.Wait()
	return errors.Join(failed...)
}

// waitUntil asks until the answer is true. It fails when one of them exits or it takes too long.
func (g group) waitUntil(ctx context.Context, done func() bool) error {
	ended := func() int { return slices.IndexFunc(g, (*process).ended) }
	err := g[0].waitUntil(ctx, func() bool { return ended() >= 0 || done() })
	if i := ended(); err == nil && i >= 0 {
		return g[i].failure()
	}
	return err
}

// stop ends the process and returns when it has exited.
func (p *process) stop(signal syscall.Signal) error {
	_ = p.cmd.Process.Signal(signal) // fails if it has exited
	select {
	case <-p.exited:
		return nil
	case <-time.After(30 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.exited
		return fmt.Errorf("%s did not stop within 30 s", p.name)
	}
}

// waitUntil asks until the answer is true. It fails when the process exits or takes too long.
func (p *process) waitUntil(ctx context.Context, done func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for !done() {
		select {
		case <-p.exited:
			return p.failure()
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w; it wrote:\n%s", p.name, ctx.Err(), p.output())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

func (p *process) ended() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// failure is the error of a process that has ended too early.
func (p *process) failure() error {
	return fmt.Errorf("%s has exited (%s); it wrote:\n%s", p.name, p.cmd.ProcessState, p.output())
}

// output is the last of what the process wrote.
func (p *process) output() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-4000):])
}

// warnings is the log of a rival: papermap-worker is set to the same level.
func warnings() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func listening(address string) bool {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}
