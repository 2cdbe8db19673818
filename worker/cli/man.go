package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// manCmd prints the man page. Its texts are those of the help.
type manCmd struct{}

func (manCmd) Run(a *app, k *kong.Context) error {
	if err := a.parser().err(); err != nil {
		return err
	}
	page := manPage{known: map[string]bool{}}
	page.write(k.Model, a.build)
	_, err := io.WriteString(a.stdout, page.String())
	return err
}

// manPage is a page in the macros of man(7).
type manPage struct {
	strings.Builder
	known map[string]bool // settings that the page has
}

// roff is a text with nothing in it that roff would interpret.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "`", `\(ga`, "'", `\(aq`).Replace(text)
	if strings.HasPrefix(text, ".") {
		text = `\&` + text
	}
	return text
}

// line writes a macro with its arguments, or a line of text.
func (p *manPage) line(macro string, arguments ...string) {
	p.WriteString(macro)
	for i, text := range arguments {
		if macro != "" {
			text = ` "` + strings.ReplaceAll(roff(text), `"`, `\(dq`) + `"`
		} else if text = roff(text); i > 0 {
			text = " " + text
		}
		p.WriteString(text)
	}
	p.WriteByte('\n')
}

// item writes a paragraph with a tag.
func (p *manPage) item(tag, text string) {
	p.line(".TP")
	p.line(".B", tag)
	p.line("", text)
}

func (p *manPage) write(model *kong.Application, build Build) {
	summary, rest, _ := strings.Cut(model.Help, "\n\n")
	date, _, _ := strings.Cut(build.Date, "T")
	p.line(".TH", strings.ToUpper(model.Name), "1", date, model.Name+" "+build.Version)
	p.line(".SH", "NAME")
	p.line("", model.Name+" - "+strings.ToLower(summary[:1])+strings.TrimSuffix(summary[1:], "."))
	p.line(".SH", "SYNOPSIS")
	p.line(".B", model.Name)
	p.line("", "COMMAND [FLAGS]")
	p.line(".SH", "DESCRIPTION")
	p.line("", summary)
	p.line(".PP")
	p.line("", rest)
	p.line(".SH", "FLAGS OF EVERY COMMAND")
	for _, flag := range model.Flags {
		if flag.Group == nil && !flag.Hidden {
			p.flag(flag)
		}
	}
	for _, purpose := range purposes {
		p.line(".SH", strings.ToUpper(purpose.title))
		for name := range strings.FieldsSeq(purpose.commands) {
			i := slices.IndexFunc(model.Children, func(n *kong.Node) bool { return n.Name == name })
			p.command(model.Children[i])
		}
	}
	p.line(".SH", "ENVIRONMENT")
	p.line("", "Each setting is also a flag: MAX_ATTEMPTS is --max-attempts.")
	p.settings(model.Node)
	for _, name := range secretSettings {
		p.item(name+", "+name+"_FILE", "A secret, or the path of a file with it. It has no flag.")
	}
}

// command writes a command with its own flags, and those below it.
func (p *manPage) command(node *kong.Node) {
	if node.Hidden {
		return
	}
	if len(node.Children) == 0 {
		p.line(".SS", node.Summary())
		p.line("", node.Help)
		for _, arg := range node.Positional {
			p.item(arg.Summary(), arg.Help)
		}
		for _, flag := range node.Flags {
			if flag.Group == nil && !flag.Hidden {
				p.flag(flag)
			}
		}
		if example := examples[strings.TrimPrefix(node.Path(), "papermap-worker ")]; example != "" {
			p.line(".PP")
			p.line("", "Example:")
			p.line(".PP")
			p.line(".EX")
			p.line("", example)
			p.line(".EE")
		}
	}
	for _, child := range node.Children {
		p.command(child)
	}
}

func (p *manPage) flag(flag *kong.Flag) {
	name := "--" + flag.Name
	if flag.Short != 0 {
		name = fmt.Sprintf("-%c, %s", flag.Short, name)
	}
	if !flag.IsBool() {
		name += "=" + flag.FormatPlaceHolder()
	}
	text := flag.Help
	if len(flag.Envs) > 0 {
		text += " Also " + strings.Join(flag.Envs, ", ") + "."
	}
	p.item(name, text)
}

// settings writes the settings of a command and those below it that the page does not have yet.
func (p *manPage) settings(node *kong.Node) {
	for _, flag := range node.Flags {
		if flag.Group == nil || p.known[flag.Name] {
			continue
		}
		p.known[flag.Name] = true
		name := flag.Envs[0]
		if flag.HasDefault {
			name += "=" + flag.Default
		}
		p.item(name, flag.Help)
	}
	for _, child := range node.Children {
		p.settings(child)
	}
}
