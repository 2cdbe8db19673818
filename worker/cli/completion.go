package cli

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// completionCmd prints a script that makes a shell complete commands and flags.
type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

func (c *completionCmd) Run(a *app, k *kong.Context) error {
	if err := a.parser().err(); err != nil {
		return err
	}
	commands := completions(k.Model.Node)
	switch c.Shell {
	case "bash":
		return bashCompletion(a.stdout, commands)
	case "zsh":
		return zshCompletion(a.stdout, commands)
	}
	return fishCompletion(a.stdout, commands)
}

// completed is what may follow a command.
type completed struct {
	path   string // of the command, a space before each word; empty for the program
	words  [][2]string
	values map[string][]string // of flags that have a list of values
}

// flagValues are the values of flags that kong does not know as a list.
var flagValues = map[string]string{
	"status":    "pending creating active held failed suspended deleted",
	"log-level": "debug info warn error", "log-format": "auto text json",
	"papermap-on-ambiguous": "recreate hold",
	"type":                  "tenant.created tenant.suspended tenant.resumed tenant.deleted usage.sync",
}

// completions lists a command and those below it.
func completions(node *kong.Node) (list []completed) {
	var at strings.Builder
	for n := node; n.Parent != nil; n = n.Parent {
		rest := at.String()
		at.Reset()
		at.WriteString(" " + n.Name + rest)
	}
	c := completed{path: at.String(), values: map[string][]string{}}
	for _, child := range node.Children {
		if !child.Hidden {
			c.words = append(c.words, [2]string{child.Name, child.Help})
			list = append(list, completions(child)...)
		}
	}
	for _, arg := range node.Positional {
		for _, value := range arg.EnumSlice() {
			c.words = append(c.words, [2]string{value, arg.Help})
		}
	}
	for _, flags := range node.AllFlags(true) {
		for _, flag := range flags {
			c.words = append(c.words, [2]string{"--" + flag.Name, flag.Help})
			if flag.Enum != "" {
				c.values["--"+flag.Name] = flag.EnumSlice()
			} else if values := flagValues[flag.Name]; values != "" {
				c.values["--"+flag.Name] = strings.Fields(values)
			}
		}
	}
	return append([]completed{c}, list...)
}

// quoted is a text in single quotes for a shell.
func quoted(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// paths are the patterns of case for all commands.
func paths(list []completed) string {
	var all []string
	for _, c := range list[1:] {
		all = append(all, quoted(c.path))
	}
	return strings.Join(all, "|")
}

// bashCompletion completes names of files where nothing else fits.
func bashCompletion(w io.Writer, list []completed) error {
	var b strings.Builder
	fmt.Fprintf(&b, `# source <(papermap-worker completion bash)
_papermap_worker() {
	local cur=${COMP_WORDS[COMP_CWORD]} flag=${COMP_WORDS[COMP_CWORD-1]} at='' words='' i
	if [[ $cur == '=' ]]; then
		cur=''
	elif [[ $flag == '=' ]]; then
		flag=${COMP_WORDS[COMP_CWORD-2]}
	fi
	for ((i = 1; i < COMP_CWORD; i++)); do
		case "$at ${COMP_WORDS[i]}" in
		%s) at="$at ${COMP_WORDS[i]}" ;;
		esac
	done
	case "$at/$flag" in
`, paths(list))
	for _, c := range list {
		for _, flag := range slices.Sorted(maps.Keys(c.values)) {
			fmt.Fprintf(&b, "\t%s) words=%s ;;\n", quoted(c.path+"/"+flag),
				quoted(strings.Join(c.values[flag], " ")))
		}
	}
	for _, c := range list {
		var words []string
		for _, word := range c.words {
			words = append(words, word[0])
		}
		fmt.Fprintf(&b, "\t%s/*) words=%s ;;\n", quoted(c.path), quoted(strings.Join(words, " ")))
	}
	b.WriteString(`	esac
	COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -o default -F _papermap_worker papermap-worker
`)
	_, err := io.WriteString(w, b.String())
	return err
}

func zshCompletion(w io.Writer, list []completed) error {
	var b strings.Builder
	fmt.Fprintf(&b, `#compdef papermap-worker
# source <(papermap-worker completion zsh), after compinit; or a file _papermap-worker in $fpath
_papermap_worker() {
	local at='' word
	local -a choices
	for word in "${(@)words[2,CURRENT-1]}"; do
		case "$at $word" in
		(%s) at="$at $word" ;;
		esac
	done
	case "$at/$words[CURRENT-1]" in
`, paths(list))
	escape := func(words [][2]string) string {
		var all []string
		for _, word := range words {
			all = append(all, quoted(strings.ReplaceAll(word[0], ":", `\:`)+":"+word[1]))
		}
		return strings.Join(all, " ")
	}
	for _, c := range list {
		for _, flag := range slices.Sorted(maps.Keys(c.values)) {
			var words []string
			for _, value := range c.values[flag] {
				words = append(words, quoted(value))
			}
			fmt.Fprintf(&b, "\t(%s) choices=(%s) ;;\n", quoted(c.path+"/"+flag), strings.Join(words, " "))
		}
	}
	for _, c := range list {
		fmt.Fprintf(&b, "\t(%s/*) choices=(%s) ;;\n", quoted(c.path), escape(c.words))
	}
	b.WriteString(`	esac
	_describe papermap-worker choices || _files
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
	_papermap_worker "$@"
else
	compdef _papermap_worker papermap-worker
fi
`)
	_, err := io.WriteString(w, b.String())
	return err
}

func fishCompletion(w io.Writer, list []completed) error {
	var b strings.Builder
	fmt.Fprintf(&b, `# papermap-worker completion fish | source
function __papermap_worker_at
	set -l at ''
	for word in (commandline -opc)[2..-1]
		switch "$at $word"
			case %s
				set at "$at $word"
		end
	end
	test "$at" = "$argv[1]"
end
`, strings.ReplaceAll(paths(list), "|", " "))
	for _, c := range list {
		at := fmt.Sprintf("complete -c papermap-worker -n %s", quoted(`__papermap_worker_at "`+c.path+`"`))
		for _, word := range c.words {
			help := strings.ReplaceAll(quoted(word[1]), `'\''`, `\'`)
			name, isFlag := strings.CutPrefix(word[0], "--")
			switch values := c.values[word[0]]; {
			case isFlag && len(values) > 0:
				fmt.Fprintf(&b, "%s -x -l %s -a %s -d %s\n", at, name,
					quoted(strings.Join(values, " ")), help)
			case isFlag:
				fmt.Fprintf(&b, "%s -l %s -d %s\n", at, name, help)
			default:
				fmt.Fprintf(&b, "%s -f -a %s -d %s\n", at, name, help)
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
