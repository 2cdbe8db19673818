package papermap

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json"
	"pgregory.net/rapid"
)

// Whatever a server does, in whatever order: a create that it processed is never said to be anything
// but created or unknown, and one of which it got no byte is not unknown.
func TestOutcomeOfACreateIsNeverMoreCertainThanItIs(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		steps := rapid.SliceOfN(rapid.SampledFrom(scriptSteps), 0, 8)
		s := &scriptedServer{
			scripts: rapid.SliceOfN(steps, 1, 4).Draw(rt, "scripts"), processed: map[string]int{},
		}
		pause := rapid.SampledFrom([]time.Duration{0, maxIdle / 2, maxIdle, time.Minute})
		pauses := rapid.SliceOfN(pause, 2, 5).
			Draw(rt, "pauses")
		for _, problem := range createAtScriptedServer(t, s, pauses) {
			rt.Error(problem)
		}
	})
}

func createAtScriptedServer(t *testing.T, s *scriptedServer, pauses []time.Duration) (problems []string) {
	type outcome struct {
		dashboard Dashboard
		err       error
		received  int // bytes of requests during the call
	}
	var outcomes []outcome
	synctest.Test(t, func(t *testing.T) {
		l := newPipeListener(t)
		go s.serve(l)
		c := newTestClient(t, "http://papermap.test", ClientOptions{Dial: l.dial})
		for i, pause := range pauses {
			before := s.count()
			d, err := c.CreateDashboard(t.Context(), NewDashboard{TenantID: "org-1", Title: title(i)})
			synctest.Wait() // what the server does without a further request, it has done
			outcomes = append(outcomes, outcome{d, err, s.count() - before})
			time.Sleep(pause)
		}
		time.Sleep(time.Minute) // until every connection has ended
	})
	for i, o := range outcomes {
		processed, class := s.processed[title(i)], Class("")
		var api *Error
		if errors.As(o.err, &api) {
			class = api.Class
		}
		var problem string
		switch {
		case class == "" && (processed != 1 || o.dashboard.ID != "dash-"+title(i)):
			problem = "created " + o.dashboard.ID
		case class == Unknown && o.received == 0:
			problem = "unknown, though no byte arrived"
		case class != "" && class != Unknown && processed > 0, processed > 1:
			problem = string(class)
		default:
			continue
		}
		problems = append(problems,
			fmt.Sprintf("create %d was processed %d times, and its outcome is: %s (%v)",
				i, processed, problem, o.err))
	}
	return problems
}

func title(i int) string { return fmt.Sprintf("create-%d", i) }

// scriptSteps are what a connection's server may do. At the end of its script it serves properly.
var scriptSteps = []string{
	"read", "read header", "process", // a request
	"created", "created, split", "half an answer", "500", "503", // answers
	"400", "401", "402", "404", "421", "429", "503 later", // answers to what was not processed
	"100", "103", "408", "second answer", "garbage", // at any time
	"stall", "close",
}

// scriptedServer serves each connection by a script, and knows what it has processed.
type scriptedServer struct {
	scripts [][]string // one for each connection; later ones are served properly

	mu        sync.Mutex
	received  int
	processed map[string]int // by title
}

func (s *scriptedServer) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.received
}

func (s *scriptedServer) serve(l net.Listener) {
	for i := 0; ; i++ {
		c, err := l.Accept()
		if err != nil {
			return
		}
		var script []string
		if i < len(s.scripts) {
			script = s.scripts[i]
		}
		conn := &scriptedConn{server: s, in: newBuffer(), out: newBuffer()}
		conn.reader = bufio.NewReader(conn.in)
		go conn.receive(c)
		go conn.send(c)
		go conn.run(script)
	}
}

// scriptedConn is the server's end of a connection. It has buffers, as a network does.
type scriptedConn struct {
	server  *scriptedServer
	in, out *buffer
	reader  *bufio.Reader

	request   *http.Request // its header was read, and it was not answered
	title     string        // of the request, once it was read to its end
	processed bool
	answered  bool // an earlier request
}

func (c *scriptedConn) receive(from net.Conn) {
	defer c.in.close()
	text := make([]byte, 4096)
	for {
		n, err := from.Read(text)
		c.server.mu.Lock()
		c.server.received += n
		c.server.mu.Unlock()
		_, _ = c.in.Write(text[:n])
		if err != nil {
			return
		}
	}
}

func (c *scriptedConn) send(to net.Conn) {
	_, _ = io.Copy(to, c.out)
	_ = to.Close()
}

func (c *scriptedConn) run(script []string) {
	defer c.out.close()
	for _, step := range script {
		if !c.step(step) {
			return
		}
	}
	for c.step("created") {
	}
}

// step does one step. It returns false when the connection ends.
func (c *scriptedConn) step(step string) bool {
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s"
	switch step {
	case "read":
		return c.read(true)
	case "read header":
		return c.read(false)
	case "process":
		c.process()
	case "created", "created, split", "half an answer":
		if !c.read(true) {
			return false
		}
		c.process()
		body := `{"success":true,"data":{"dashboard_id":"dash-` + c.title + `"}}`
		text := fmt.Sprintf(ok, len(body), body)
		if step == "half an answer" {
			c.write(text[:len(text)/2])
			return false
		}
		for step == "created, split" && len(text) > 1 {
			c.write(text[:1])
			text = text[1:]
			time.Sleep(time.Millisecond)
		}
		c.answer(text)
	case "503 later":
		return c.refuse("503 Service Unavailable\r\nRetry-After: 1")
	case "400", "401", "402", "404", "421", "429":
		return c.refuse(step + " No")
	case "500", "503":
		c.answer("HTTP/1.1 " + step + " Broken\r\nContent-Length: 0\r\n\r\n")
	case "100", "103":
		c.write("HTTP/1.1 " + step + " Interim\r\n\r\n")
	case "408":
		c.write("HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
	case "second answer":
		if c.answered && c.request == nil { // else it would be the first
			c.write(fmt.Sprintf(ok, len(created2), created2))
		}
	case "garbage":
		c.write("\x16\x03\x01?\r\n\r\n")
	case "stall":
		time.Sleep(20 * time.Second)
	case "close":
		return false
	}
	return true
}

// read reads the header of a request, or all of it, unless that was done.
func (c *scriptedConn) read(all bool) bool {
	if c.request == nil {
		r, err := http.ReadRequest(c.reader)
		if err != nil {
			return false
		}
		c.request = r
	}
	if !all || c.title != "" {
		return true
	}
	var body struct {
		Title string `json:"title"`
	}
	text, err := io.ReadAll(c.request.Body)
	if err != nil || json.Unmarshal(text, &body) != nil {
		return false
	}
	c.title = body.Title
	return true
}

// process processes a request that was read, once.
func (c *scriptedConn) process() {
	if c.title == "" || c.processed {
		return
	}
	c.processed = true
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.server.processed[c.title]++
}

// refuse answers a request that was not processed, and never will be: one that was not read to its
// end is the connection's last.
func (c *scriptedConn) refuse(status string) bool {
	if c.processed {
		status = "500 Broken"
	}
	complete := c.title != ""
	c.answer("HTTP/1.1 " + status + "\r\nContent-Length: 0\r\n\r\n")
	return complete
}

func (c *scriptedConn) answer(text string) {
	c.write(text)
	if c.title != "" {
		c.request, c.title, c.processed, c.answered = nil, "", false, true
	}
}

func (c *scriptedConn) write(text string) { _, _ = io.WriteString(c.out, text) }

// buffer is one direction of a connection.
type buffer struct {
	mu      sync.Mutex
	changed *sync.Cond
	text    bytes.Buffer
	closed  bool
}

func newBuffer() *buffer {
	b := &buffer{}
	b.changed = sync.NewCond(&b.mu)
	return b
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.changed.Broadcast()
	return b.text.Write(p)
}

func (b *buffer) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.text.Len() == 0 {
		if b.closed {
			return 0, io.EOF
		}
		b.changed.Wait()
	}
	return b.text.Read(p)
}

func (b *buffer) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.changed.Broadcast()
}
