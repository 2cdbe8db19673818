package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// brokenLog is a log that fails, or blocks, until it is mended.
type brokenLog struct {
	mu      sync.Mutex
	err     error
	partial int           // bytes that are written all the same
	block   chan struct{} // nil: it does not block
	text    bytes.Buffer
}

func (b *brokenLog) Write(p []byte) (int, error) {
	if b.block != nil {
		<-b.block
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		n := min(b.partial, len(p))
		b.text.Write(p[:n])
		return n, b.err
	}
	return b.text.Write(p)
}

func (b *brokenLog) set(err error, partial int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err, b.partial = err, partial
}

func backgroundLogger(w io.Writer) (*slog.Logger, *backgroundLog) {
	l := newBackgroundLog(w)
	return logSettings{LogLevel: "info", LogFormat: "json"}.logger(&parser{}, l), l
}

func TestLogThatBlocksDelaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &brokenLog{block: make(chan struct{})}
		log, l := backgroundLogger(out)
		began := time.Now()
		for i := range 3 * maxQueuedLog / 1000 { // far more than is kept
			log.Info(strings.Repeat("x", 900), "i", i)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("it took %v", took)
		}
		if kept := len(l.queue); kept > maxQueuedLog {
			t.Errorf("%d bytes are kept", kept)
		}
		l.close() // does not wait for ever
		if took := time.Since(began); took != logCloseWait {
			t.Errorf("closing took %v", took)
		}
		close(out.block)
		<-l.done
		text := out.text.String()
		if !strings.Contains(text, `"msg":"log lines were lost: the log could not be written","lines":`) ||
			!strings.Contains(text, `"i":0}`) {
			t.Errorf("%d bytes were written, the end of which is %s", len(text), text[max(0, len(text)-200):])
		}
	})
}

func TestLogThatFailsSaysLaterHowManyLinesWereLost(t *testing.T) {
	for _, failure := range []error{syscall.EPIPE, syscall.ENOSPC, syscall.EBADF, errors.New("other")} {
		synctest.Test(t, func(t *testing.T) {
			out := &brokenLog{}
			log, l := backgroundLogger(out)
			log.Info("first")
			synctest.Wait()
			out.set(failure, 5)
			for i := range 3 {
				log.Info(fmt.Sprint("lost ", i))
				synctest.Wait()
			}
			out.set(nil, 0)
			log.Info("last")
			l.close()
			text := out.text.String()
			if !strings.Contains(text, `"first"`) || strings.Contains(text, `lost 1`) ||
				!strings.Contains(text, "\n{") || !strings.Contains(text, `"msg":"last"}`) ||
				!strings.Contains(text, `"lines":3}`) {
				t.Errorf("%v: %s", failure, text)
			}
			for line := range strings.Lines(text) {
				if strings.Count(line, `{"time"`) > 1 ||
					strings.Contains(line, `"last"`) && !strings.HasPrefix(line, `{"time"`) {
					t.Errorf("a torn line runs into the next: %s", line)
				}
			}
		})
	}
}
