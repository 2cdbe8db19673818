package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"go/build"
	"go/importer"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
)

// sources lists the package's files that are compiled here.
func sources(dir string) ([]string, error) {
	p, err := build.ImportDir(dir, 0)
	if err != nil {
		return nil, err
	}
	return append(p.GoFiles, p.CgoFiles...), nil
}

// exportsOf returns the files with the types of all packages that a package imports.
func exportsOf(ctx context.Context, dir string) (map[string]string, error) {
	list, err := exec.CommandContext(ctx, "go", "list", "-export", "-deps", "-f",
		"{{.ImportPath}}={{.Export}}", "./"+dir).Output()
	if err != nil {
		return nil, fmt.Errorf("list the imports of %s: %w", dir, err)
	}
	exports := map[string]string{}
	for line := range strings.Lines(string(list)) {
		name, path, _ := strings.Cut(strings.TrimSpace(line), "=")
		exports[name] = path
	}
	return exports, nil
}

func importerOf(fset *token.FileSet, exports map[string]string) types.Importer {
	return importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) {
		if exports[path] == "" {
			return nil, fmt.Errorf("no types of %s", path)
		}
		return os.Open(exports[path])
	})
}

// buildTest builds the target's tests with all mutants, by an overlay over the working tree.
func (t target) buildTest(ctx context.Context, changed map[string]string, folder string) (string, error) {
	replace := map[string]string{}
	for path, text := range changed {
		original, err := filepath.Abs(path)
		if err != nil {
			return "", err
		}
		replace[original] = filepath.Join(folder, t.name+"-"+filepath.Base(path))
		if err := os.WriteFile(replace[original], []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	overlay := filepath.Join(folder, t.name+".json")
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err := errors.Join(err, os.WriteFile(overlay, text, 0o600)); err != nil {
		return "", err
	}
	program := filepath.Join(folder, t.name+".test")
	out, err := exec.CommandContext(ctx, "go", "test", "-c", "-vet=off", "-overlay", overlay,
		"-o", program, "./"+t.dir).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", t.dir, err, out)
	}
	return program, nil
}

// test runs the target's tests with one mutant turned on, or with none for number 0.
func (t target) test(
	ctx context.Context, program string, number int, limit time.Duration,
) (passed bool, output string) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-test.run", t.run, "-test.skip", "./PostgreSQL|././PostgreSQL",
		"-test.failfast", "-test.count=1")
	cmd.Dir = t.dir
	cmd.Env = append(os.Environ(), fmt.Sprint("MUTANT=", number),
		"TEST_POSTGRES_URL=postgres://127.0.0.1:1/none") // the short tests need no server
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		return false, out.String() + "\npanic: test timed out"
	}
	return err == nil, out.String()
}
