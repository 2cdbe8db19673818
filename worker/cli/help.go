package cli

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"golang.org/x/term"
)

// helpCmd is in the grammar to be listed: Run turns `help COMMAND` into `COMMAND --help` before.
type helpCmd struct {
	Command []string `arg:"" optional:"" help:"Command."`
}

// Run is never called.
func (helpCmd) Run() error { return nil }

// spelledOtherwise turns help into --help, and --version into version.
func spelledOtherwise(args []string) []string {
	switch {
	case len(args) > 0 && args[0] == "help":
		return append(append([]string{}, args[1:]...), "--help")
	case len(args) > 0 && args[0] == "--version":
		return append([]string{"version"}, args[1:]...)
	}
	return args
}

// printHelp prints the commands by their purpose, or the help of one command.
func printHelp(options kong.HelpOptions, k *kong.Context) error {
	if slices.ContainsFunc(k.Path, func(p *kong.Path) bool { return p.Command != nil }) {
		return kong.DefaultHelpPrinter(options, k)
	}
	return printOverview(k.Stdout, k.Model, min(terminalWidth(k.Stdout, 80), 100))
}

// printOverview lists the commands, each with its subcommands.
func printOverview(w io.Writer, model *kong.Application, width int) error {
	fmt.Fprintf(w, "Usage: %s <command> [flags]\n\n%s\n", model.Name, model.Help)
	byName := map[string]*kong.Node{}
	for _, node := range model.Children {
		byName[node.Name] = node
	}
	for _, purpose := range purposes {
		fmt.Fprintf(w, "\n%s\n", purpose.title)
		for name := range strings.FieldsSeq(purpose.commands) {
			if node := byName[name]; node != nil {
				printCommand(w, node, width)
			}
		}
	}
	fmt.Fprintf(w, "\nFlags of every command\n")
	for _, flag := range model.Flags {
		if !flag.Hidden {
			printItem(w, "--"+flag.Name, flag.Help, width)
		}
	}
	_, err := fmt.Fprintf(w, "\n`%[1]s COMMAND --help` shows the flags and an example.\n"+
		"Start with `%[1]s demo`.\n", model.Name)
	return err
}

// printCommand prints a command and the names of its subcommands.
func printCommand(w io.Writer, node *kong.Node, width int) {
	text := node.Help
	var subcommands []string
	for _, child := range node.Children {
		if !child.Hidden {
			subcommands = append(subcommands, child.Name)
		}
	}
	if len(subcommands) > 0 {
		text += " (" + strings.Join(subcommands, ", ") + ")"
	}
	printItem(w, node.Name, text, width)
}

// printItem prints a name, and its text beside it.
func printItem(w io.Writer, name, text string, width int) {
	const indent = 17
	for _, line := range wrap(text, width-indent) {
		fmt.Fprintf(w, "  %-*s%s\n", indent-2, name, line)
		name = ""
	}
}

// helpHint says where the help is of the command that was meant.
func helpHint(name string, err error) string {
	words := name
	if parse, ok := err.(*kong.ParseError); ok && parse.Context != nil {
		for _, step := range parse.Context.Path {
			if step.Command != nil {
				words += " " + step.Command.Name
			}
		}
	}
	return fmt.Sprintf("Try `%s --help`.", words)
}

// plainWords are what kong's messages say of Go's types, and what to say instead.
var plainWords = []struct {
	said    *regexp.Regexp
	instead string
}{
	{regexp.MustCompile(`expected a valid \d+ bit u?int but got ("[^"]*")`),
		"expected a whole number but got $1"},
	{regexp.MustCompile(`expected an int but got (.*) \([\w.*{}]+\)`),
		"expected a whole number but got $1"},
	{regexp.MustCompile(`expected (a float|bool) but got (.*) \([\w.*{}]+\)`),
		"expected another value than $2"},
	{regexp.MustCompile(`expected duration but got ("[^"]*").*`),
		"expected a duration such as 30s or 1h but got $1"},
	{regexp.MustCompile(`bool value must be true, 1, yes, false, 0 or no but got`), "use true or false, not"},
	{regexp.MustCompile(`expected string value but got "EOL" \(\w+\)`), "expected a value"},
	{regexp.MustCompile(`=(STRING|INT64|INT|UINT64|DURATION)\b`), ""},
	{regexp.MustCompile(`=(STRING|[A-Z0-9-]+),\.\.\.`), ""},
}

// plain returns an error of the command line in words.
func plain(err error) string {
	text := err.Error()
	for _, p := range plainWords {
		text = p.said.ReplaceAllString(text, p.instead)
	}
	return text
}

// wrap breaks a text at spaces into lines of at most width characters. It returns one line at least.
func wrap(text string, width int) (lines []string) {
	line, length := "", 0
	for word := range strings.SplitSeq(text, " ") {
		n := len([]rune(word))
		if length > 0 && length+1+n > width {
			lines = append(lines, line)
			line, length = "", 0
		}
		for n > width && width > 1 { // a word longer than a line
			runes := []rune(word)
			room := width - length - 1
			if length == 0 {
				room = width
			}
			lines = append(lines, strings.TrimSpace(line+" "+string(runes[:room])))
			word, n, line, length = string(runes[room:]), n-room, "", 0
		}
		if length > 0 {
			line, length = line+" "+word, length+1+n
		} else {
			line, length = word, n
		}
	}
	return append(lines, line)
}

// terminalWidth is the width of the terminal that w is, or otherwise.
func terminalWidth(w io.Writer, otherwise int) int {
	if file, ok := w.(*os.File); ok {
		if width, _, err := term.GetSize(int(file.Fd())); err == nil && width > 0 {
			return width
		}
	}
	return otherwise
}
