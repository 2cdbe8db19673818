package cli

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/term"
)

// yesFlag is the flag of commands that destroy or repeat something.
type yesFlag struct {
	Yes bool `short:"y" help:"Do not ask."`
}

// errNotConfirmed is the answer to a question that was not yes.
var errNotConfirmed = errors.New("not confirmed: nothing was changed")

// confirm asks a person at the terminal, and returns an error unless the answer is yes. Without a
// terminal there is nobody to ask, and it returns nil.
func (f yesFlag) confirm(a *app, format string, args ...any) error {
	if f.Yes || !term.IsTerminal(int(os.Stdin.Fd())) && !onTerminal(a.stderr) {
		return nil
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil // such as a job without a controlling terminal
	}
	defer tty.Close()
	fmt.Fprintf(tty, format+" [y/N] ", args...)
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(tty).ReadString('\n')
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case text := <-answer:
		if text == "y" || text == "yes" {
			return nil
		}
		return errNotConfirmed
	case <-a.ctx.Done():
		fmt.Fprintln(tty)
		return fmt.Errorf("%w: %w", errNotConfirmed, a.ctx.Err())
	}
}
