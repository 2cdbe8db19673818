package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"papermap-worker/worker/workertest"
)

// httpStatus returns the status of a GET, with a bearer token unless it is empty. It follows no
// redirect and trusts any certificate.
func httpStatus(address, token string) (int, error) {
	client := http.Client{
		Timeout: patience,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
			DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	request, err := http.NewRequest(http.MethodGet, address, nil)
	if err != nil {
		return 0, err
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	answer, err := client.Do(request)
	if err != nil {
		return 0, err
	}
	return answer.StatusCode, answer.Body.Close()
}

// makeCertificate writes a certificate of this host and its key.
func makeCertificate(certFile, keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"worker.example.com"},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	if err := os.WriteFile(certFile, certPEM, 0o600); err != nil {
		return err
	}
	return os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

// serveInto starts the worker with a log that is not a process's.
func serveInto(t *testing.T, env []string, log *os.File) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("papermap-worker", "serve")
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir()}, env...)
	cmd.Stdout, cmd.Stderr = log, log
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	return cmd
}

// A worker whose log nobody reads, or cannot be written, goes on; so it drains at the end.
func TestLogThatCannotBeWrittenEndsNothing(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(*testing.T) *os.File{
		"nobody reads it": func(t *testing.T) *os.File {
			read, write, err := os.Pipe()
			must(t, err)
			must(t, read.Close())
			return write
		},
		"its reader hangs": func(t *testing.T) *os.File {
			read, write, err := os.Pipe()
			must(t, err)
			t.Cleanup(func() { _ = read.Close() })
			must(t, write.SetWriteDeadline(time.Now().Add(time.Second)))
			_, err = io.Copy(write, strings.NewReader(strings.Repeat("x", 1<<22))) // until it is full
			if err == nil {
				t.Fatal("the pipe takes everything")
			}
			return write
		},
		"the disk is full": func(t *testing.T) *os.File {
			file, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
			must(t, err)
			return file
		},
		"it cannot be written": func(t *testing.T) *os.File {
			file, err := os.Open(os.DevNull)
			must(t, err)
			return file
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSystem(t)
			log := open(t)
			port, err := workertest.FreePort()
			must(t, err)
			address := fmt.Sprint("127.0.0.1:", port)
			worker := serveInto(t, append(s.env, "HTTP_ADDR="+address), log)
			must(t, log.Close())
			ready(t, address)
			js := s.jetStream(t)
			for i := range 20 {
				publishCreated(t, js, fmt.Sprint("org-", i))
			}
			for i := range 20 {
				s.status(t, fmt.Sprint("org-", i), "active")
			}
			for range 20 {
				if status, err := httpStatus("http://"+address+"/api/v1/none", ""); err != nil ||
					status != 404 {
					t.Errorf("%d, %v", status, err)
				}
			}
			must(t, worker.Process.Signal(syscall.SIGHUP))
			if err := worker.Wait(); err != nil {
				t.Errorf("after SIGHUP: %v", err)
			}
		})
	}
}

func TestSIGHUPDrains(t *testing.T) {
	t.Parallel()
	s := newSystem(t, "delay=2s")
	worker := start(t, s.env, "serve")
	worker.address(t)
	publishCreated(t, s.jetStream(t), "org-1")
	s.requests(t, 1)
	worker.signal(t, syscall.SIGHUP)
	if code := worker.wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	s.status(t, "org-1", "active")
}

// A command whose reader has read enough ends without a word, as others do.
func TestCommandIntoAClosedPipeEndsQuietly(t *testing.T) {
	t.Parallel()
	var said strings.Builder
	read, write, err := os.Pipe()
	must(t, err)
	must(t, read.Close())
	cmd := exec.Command("papermap-worker", "--help")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.Stdout, cmd.Stderr = write, &said
	err = cmd.Run()
	must(t, write.Close())
	if said.Len() > 0 {
		t.Errorf("%v: %s", err, said.String())
	}
}
