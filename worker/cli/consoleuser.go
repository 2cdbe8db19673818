package cli

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"papermap-worker/worker/ops/console"
)

// consoleUserCmd makes a line for CONSOLE_USERS_FILE. It asks for the password on a terminal, without
// showing it; elsewhere it is the first line of standard input.
type consoleUserCmd struct {
	Name string `arg:"" help:"User name."`
	Role string `required:"" enum:"viewer,operator" help:"viewer: can look; operator: can also act."`
}

func (c *consoleUserCmd) Run(a *app) error {
	if err := a.parser().err(); err != nil {
		return err
	}
	if err := console.CheckUserName(c.Name); err != nil {
		return usageErrorf("%v", err)
	}
	password, err := readPassword(os.Stdin, os.Stderr)
	if err != nil {
		return fmt.Errorf("read the password: %w", err)
	}
	line, err := console.UserLine(c.Name, c.Role, password)
	if err != nil {
		return usageErrorf("%v", err)
	}
	_, err = fmt.Fprintln(a.stdout, line)
	return err
}

func readPassword(in *os.File, prompt io.Writer) (string, error) {
	fd := int(in.Fd())
	if !term.IsTerminal(fd) {
		line, err := bufio.NewReader(io.LimitReader(in, 4096)).ReadString('\n')
		if err == io.EOF && line != "" {
			err = nil
		}
		return strings.TrimRight(line, "\r\n"), err
	}
	var typed [2]string
	for i, question := range []string{"Password: ", "Again: "} {
		fmt.Fprint(prompt, question)
		text, err := term.ReadPassword(fd)
		fmt.Fprintln(prompt)
		if err != nil {
			return "", err
		}
		typed[i] = string(text)
	}
	if typed[0] != typed[1] {
		return "", usageErrorf("the two passwords differ")
	}
	return typed[0], nil
}
