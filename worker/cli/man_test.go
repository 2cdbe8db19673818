package cli

import (
	"os/exec"
	"strings"
	"testing"
)

func TestManPageHasEachCommandFlagAndSetting(t *testing.T) {
	code, page, stderr := runCLI("man")
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	plain := strings.NewReplacer(`\-`, "-", `\(aq`, "'", `\(ga`, "`", `\(dq`, `"`, `\e`, `\`).Replace(page)
	k := model(t)
	for _, c := range completions(k.Model.Node)[1:] {
		leaf := true
		for _, other := range completions(k.Model.Node) {
			leaf = leaf && !strings.HasPrefix(other.path, c.path+" ")
		}
		if leaf && !strings.Contains(plain, "\n.SS \""+c.path[1:]) {
			t.Errorf("the man page lacks the command%s", c.path)
		}
		for _, word := range c.words {
			name, isFlag := strings.CutPrefix(word[0], "--")
			variable := strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
			if isFlag && !strings.Contains(plain, word[0]) && !strings.Contains(plain, "\n.B \""+variable) {
				t.Errorf("the man page lacks the flag %s of%s", word[0], c.path)
			}
		}
	}
	for _, name := range settingNames(k) {
		if !strings.Contains(plain, name) {
			t.Errorf("the man page lacks the setting %s", name)
		}
	}
	groff, err := exec.LookPath("groff")
	if err != nil {
		return // what it would find is a mistake of roff's grammar
	}
	cmd := exec.CommandContext(t.Context(), groff, "-man", "-ww", "-z")
	cmd.Stdin = strings.NewReader(page)
	if output, err := cmd.CombinedOutput(); err != nil || len(output) > 0 {
		t.Errorf("groff: %v\n%s", err, output)
	}
}
