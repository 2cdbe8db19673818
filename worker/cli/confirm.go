package cli

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/term"
)

// confirmFlag is of commands that destroy or repeat something.
type confirmFlag struct {
	Yes bool `help:"Do not ask first on a terminal."`
}

var errDeclined = errors.New("not confirmed: nothing was changed")

// confirm asks on the terminal whether to go on, also if standard input or output are elsewhere.
// Without a terminal it goes on.
func (c confirmFlag) confirm(a *app, question string) error {
	if c.Yes || !onTerminal(a.stderr) && !term.IsTerminal(int(os.Stdin.Fd())) {
		return nil
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil
	}
	defer tty.Close()
	fmt.Fprintf(tty, "%s [y/N] ", printable(question))
	answer := make(chan string, 1)
	go func() { // a read from a terminal does not end with the context
		line, _ := bufio.NewReader(tty).ReadString('\n')
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case line := <-answer:
		if line == "y" || line == "yes" {
			return nil
		}
		return errDeclined
	case <-a.ctx.Done():
		fmt.Fprintln(tty)
		return &interruptedError{"nothing was changed"}
	}
}
