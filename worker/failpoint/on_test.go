//go:build failpoints

package failpoint

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
)

const child = "PAPERMAP_FAILPOINT_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(child) != "" {
		// A signal goes to the main thread first, so Hit is called on another.
		runtime.LockOSThread()
		done := make(chan struct{})
		go func() {
			Hit(Send)
			fmt.Println("after")
			close(done)
		}()
		<-done
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// What follows a place does not run before the process was stopped and continued. SIGSTOP may land
// later than kill(2) returns, so it is tried often.
func TestStopRunsNothingBehindItsPlace(t *testing.T) {
	for range 50 {
		output := filepath.Join(t.TempDir(), "output")
		file, err := os.Create(output)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		cmd := exec.Command(os.Args[0])
		cmd.Env = []string{child + "=1", "PAPERMAP_FAILPOINT=send=stop@1"}
		cmd.Stdout = file
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Process.Kill()
		var status syscall.WaitStatus
		if _, err := syscall.Wait4(cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil {
			t.Fatal(err)
		}
		before, err := os.ReadFile(output)
		if err != nil || len(before) > 0 || !status.Stopped() {
			t.Fatalf("it ran on to %q, stopped %v, %v", before, status.Stopped(), err)
		}
		if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		if after, err := os.ReadFile(output); string(after) != "after\n" {
			t.Fatalf("continued, it printed %q, %v", after, err)
		}
	}
}
