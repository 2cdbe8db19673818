package cli

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// logger returns a logger that writes to w.
func (s logSettings) logger(p *parser, w io.Writer) *slog.Logger {
	var level slog.Level
	err := level.UnmarshalText([]byte(s.LogLevel))
	p.check(err == nil, "LOG_LEVEL: invalid level %q: use debug, info, warn or error", s.LogLevel)
	format := p.oneOf("LOG_FORMAT", s.LogFormat, "auto", "text", "json")
	options := &slog.HandlerOptions{Level: level}
	background, _ := w.(*backgroundLog)
	handler := func(to io.Writer) slog.Handler {
		if format == "text" || format == "auto" && onTerminal(w) {
			return slog.NewTextHandler(to, options)
		}
		return slog.NewJSONHandler(to, options)
	}
	if background != nil {
		background.handler = handler
	}
	return slog.New(handler(w))
}

// onTerminal reports whether a person may read what is written to w.
func onTerminal(w io.Writer) bool {
	if background, ok := w.(*backgroundLog); ok {
		w = background.w
	}
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

const (
	maxQueuedLog = 1 << 20 // bytes of lines that wait to be written
	logCloseWait = time.Second
)

// backgroundLog writes lines in a goroutine of its own, so that a log that nobody reads, or a disk
// that is full, delays no work. Lines that do not fit into the queue, or cannot be written, are
// counted; the count is logged when lines can be written again.
type backgroundLog struct {
	w       io.Writer
	handler func(io.Writer) slog.Handler // of the line about lost lines

	mu     sync.Mutex
	queue  []byte
	lost   int // lines
	closed bool
	wake   chan struct{}
	done   chan struct{}
}

func newBackgroundLog(w io.Writer) *backgroundLog {
	l := &backgroundLog{w: w, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go l.run()
	return l
}

// Write queues a line. It never fails.
func (l *backgroundLog) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue)+len(line) > maxQueuedLog || l.closed {
		l.lost++
	} else {
		l.queue = append(l.queue, line...)
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return len(line), nil
}

// close writes what is queued, for a second at most.
func (l *backgroundLog) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
	select {
	case <-l.done:
	case <-time.After(logCloseWait):
	}
}

func (l *backgroundLog) run() {
	defer close(l.done)
	lost, torn := 0, false // lines; whether the last one was written in part
	for range l.wake {
		l.mu.Lock()
		lines, closed := l.queue, l.closed
		lost += l.lost
		l.queue, l.lost = nil, 0
		l.mu.Unlock()
		if torn && len(lines) > 0 {
			lines = append([]byte("\n"), lines...)
		}
		for len(lines) > 0 || lost > 0 {
			note := len(lines) == 0
			if note {
				lines = l.lostLine(lost)
			}
			n, err := l.w.Write(lines)
			if torn = err != nil && (n > 0 || torn); err != nil {
				if !note {
					lost += bytes.Count(lines[n:], []byte("\n"))
				}
				break
			}
			if lines = nil; note {
				lost = 0
			}
		}
		if closed {
			return
		}
	}
}

func (l *backgroundLog) lostLine(lost int) []byte {
	var line bytes.Buffer
	if l.handler != nil {
		const text = "log lines were lost: the log could not be written"
		r := slog.NewRecord(time.Now(), slog.LevelWarn, text, 0)
		r.Add("lines", lost)
		_ = l.handler(&line).Handle(context.Background(), r)
	}
	return line.Bytes()
}
