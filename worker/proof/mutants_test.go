package proof_test

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// The patches of mutants/ break one promise each; mutants/run shows that each is noticed. Here they only must fit the code.
func TestMutantsStillApply(t *testing.T) {
	patches, err := filepath.Glob("mutants/*.patch")
	if err != nil || len(patches) < 9 {
		t.Fatalf("%d patches, error %v", len(patches), err)
	}
	for _, patch := range patches {
		cmd := exec.CommandContext(t.Context(), "git", "apply", "--check", filepath.Join("worker", "proof", patch))
		cmd.Dir = filepath.Join("..", "..")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", patch, err, out)
		}
	}
}
