package events

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
)

// runServer starts a server with JetStream and this configuration, on a free port.
func runServer(t *testing.T, config string) *server.Server {
	t.Helper()
	s, err := server.NewServer(serverOptions(t, config))
	if err != nil {
		t.Fatal(err)
	}
	go s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the NATS server did not start")
	}
	return s
}

func serverOptions(t *testing.T, config string) *server.Options {
	t.Helper()
	o, err := server.ProcessConfigFile(tempFile(t, "nats.conf", []byte(config)))
	if err != nil {
		t.Fatal(err)
	}
	o.Host, o.Port, o.JetStream, o.StoreDir, o.NoSigs, o.NoLog = "127.0.0.1", server.RANDOM_PORT, true, t.TempDir(), true, true
	return o
}

func tempFile(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// workerOptions are Options with what does not matter here filled in.
func workerOptions(s *server.Server, o Options) Options {
	if o.URL == "" {
		o.URL = s.ClientURL()
	}
	o.Name, o.Subjects, o.Stream, o.ManageStreams, o.Replicas, o.MaxAge = "test", Subjects{"papermap"}, "PAPERMAP", true, 1, time.Hour
	return o
}

// tryConnect connects and returns the error of that, or of the first use of JetStream.
func tryConnect(t *testing.T, o Options, patience time.Duration) error {
	t.Helper()
	b, err := Connect(o, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer b.Close(context.Background())
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return b.EnsureStreams(ctx)
}

// logged is a log whose lines can be waited for.
type logged chan string

func (l logged) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

func (l logged) wait(t *testing.T, text string) string {
	t.Helper()
	limit := time.After(30 * time.Second)
	for {
		select {
		case line := <-l:
			if strings.Contains(line, text) {
				return line
			}
		case <-limit:
			t.Fatalf("nothing with %q was logged", text)
		}
	}
}

func TestConnectWithUserAndPassword(t *testing.T) {
	t.Parallel()
	s := runServer(t, `authorization {user: w, password: secret}`)
	if err := tryConnect(t, workerOptions(s, Options{User: "w", Password: "secret"}),
		10*time.Second); err != nil {
		t.Error(err)
	}
	for _, o := range []Options{{}, {User: "w", Password: "other"}} {
		if err := tryConnect(t, workerOptions(s, o), time.Second); err == nil ||
			!strings.Contains(strings.ToLower(err.Error()), "authorization violation") {
			t.Errorf("%+v: error %v", o, err)
		} else if strings.Contains(err.Error(), "other") {
			t.Errorf("the password is in the error: %v", err)
		}
	}
}

func TestConnectWithNKeySeedFile(t *testing.T) {
	t.Parallel()
	key := keyPair(t, nkeys.CreateUser)
	s := runServer(t, fmt.Sprintf(`authorization {users: [{nkey: %s}]}`, publicKey(t, key)))
	if err := tryConnect(t, workerOptions(s, Options{NKey: tempFile(t, "seed.nk", seedOf(t, key))}),
		10*time.Second); err != nil {
		t.Error(err)
	}
	other := tempFile(t, "other.nk", seedOf(t, keyPair(t, nkeys.CreateUser)))
	if err := tryConnect(t, workerOptions(s, Options{NKey: other}), time.Second); err == nil {
		t.Error("another key was accepted")
	}
	if err := tryConnect(t, workerOptions(s, Options{NKey: tempFile(t, "empty.nk", nil)}),
		time.Second); err == nil || !strings.Contains(err.Error(), "nkey seed") {
		t.Errorf("an empty seed file: error %v", err)
	}
}

func keyPair(t *testing.T, create func() (nkeys.KeyPair, error)) nkeys.KeyPair {
	t.Helper()
	key, err := create()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func publicKey(t *testing.T, key nkeys.KeyPair) string {
	t.Helper()
	text, err := key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func seedOf(t *testing.T, key nkeys.KeyPair) []byte {
	t.Helper()
	data, err := key.Seed()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestConnectWithCredentialsFile(t *testing.T) {
	t.Parallel()
	operator, system := keyPair(t, nkeys.CreateOperator), keyPair(t, nkeys.CreateAccount)
	account, user := keyPair(t, nkeys.CreateAccount), keyPair(t, nkeys.CreateUser)
	sign := func(c jwt.Claims, key nkeys.KeyPair) string {
		text, err := c.Encode(key)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	operatorClaims := jwt.NewOperatorClaims(publicKey(t, operator))
	operatorClaims.SystemAccount = publicKey(t, system)
	accountClaims := jwt.NewAccountClaims(publicKey(t, account))
	accountClaims.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1,
		Streams: -1, Consumer: -1}
	s := runServer(t, fmt.Sprintf("operator: %s\nresolver: MEMORY\nresolver_preload: {\n%s: %s\n%s: %s\n}",
		sign(operatorClaims, operator),
		publicKey(t, system), sign(jwt.NewAccountClaims(publicKey(t, system)), operator),
		publicKey(t, account), sign(accountClaims, operator)))

	credentials := func(u, signer nkeys.KeyPair) string {
		data, err := jwt.FormatUserConfig(sign(jwt.NewUserClaims(publicKey(t, u)), signer), seedOf(t, u))
		if err != nil {
			t.Fatal(err)
		}
		return tempFile(t, "worker.creds", data)
	}
	if err := tryConnect(t, workerOptions(s, Options{Credentials: credentials(user, account)}),
		10*time.Second); err != nil {
		t.Error(err)
	}
	stranger := keyPair(t, nkeys.CreateAccount)
	if err := tryConnect(t, workerOptions(s, Options{Credentials: credentials(user, stranger)}),
		time.Second); err == nil {
		t.Error("a user of an unknown account was accepted")
	}
	if err := tryConnect(t, workerOptions(s, Options{Credentials: filepath.Join(t.TempDir(),
		"missing.creds")}), time.Second); err == nil || !strings.Contains(err.Error(), "missing.creds") {
		t.Errorf("a missing file: error %v", err)
	}
}

// authority makes certificates, as PEM files.
type authority struct {
	t    *testing.T
	path string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t}
	a.path, _ = a.issue("authority")
	return a
}

// issue makes a certificate for a name and 127.0.0.1, signed by the authority; its first one is its
// own.
func (a *authority) issue(name string) (certificate, key string) {
	a.t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:   time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if a.cert == nil {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
		a.cert, a.key = c, private
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, private.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		a.t.Fatal(err)
	}
	return tempFile(a.t, name+".pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		tempFile(a.t, name+"-key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))
}

func TestConnectWithTLSAndClientCertificate(t *testing.T) {
	t.Parallel()
	ours, others := newAuthority(t), newAuthority(t)
	cert, key := ours.issue("server")
	s := runServer(t, fmt.Sprintf(`tls {cert_file: %q, key_file: %q, ca_file: %q, verify: true}`, cert, key,
		ours.path))
	cert, key = ours.issue("worker")
	good := Options{TLSCA: ours.path, TLSCert: cert, TLSKey: key}
	if err := tryConnect(t, workerOptions(s, good), 10*time.Second); err != nil {
		t.Error(err)
	}
	good.URL = strings.Replace(s.ClientURL(), "nats://", "tls://", 1)
	if err := tryConnect(t, workerOptions(s, good), 10*time.Second); err != nil {
		t.Errorf("with a tls:// address: %v", err)
	}
	strange, strangeKey := others.issue("worker")
	for name, o := range map[string]Options{
		"no certificate of the client":       {TLSCA: ours.path},
		"a client of another authority":      {TLSCA: ours.path, TLSCert: strange, TLSKey: strangeKey},
		"a server of an unknown authority":   {TLSCert: cert, TLSKey: key},
		"a server of another than ours":      {TLSCA: others.path, TLSCert: cert, TLSKey: key},
		"the key of another certificate":     {TLSCA: ours.path, TLSCert: cert, TLSKey: strangeKey},
		"a CA file that is no certificate":   {TLSCA: key, TLSCert: cert, TLSKey: key},
		"a certificate that does not exist":  {TLSCA: ours.path, TLSCert: "missing.pem", TLSKey: key},
		"a CA certificate that is not there": {TLSCA: "missing.pem", TLSCert: cert, TLSKey: key},
	} {
		if err := tryConnect(t, workerOptions(s, o), time.Second); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestConnectTriesEachServerOfTheList(t *testing.T) {
	t.Parallel()
	s := runServer(t, "")
	down, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := down.Close(); err != nil {
		t.Fatal(err)
	}
	for _, wait := range []bool{false, true} {
		o := workerOptions(s, Options{URL: fmt.Sprintf("nats://%s, %s", down.Addr(), s.ClientURL()),
			Wait: wait})
		for range 4 { // the list is tried in random order
			if err := tryConnect(t, o, 10*time.Second); err != nil {
				t.Errorf("wait %v: %v", wait, err)
			}
		}
	}
}

func TestConnectUsesTheInboxPrefix(t *testing.T) {
	t.Parallel()
	s := runServer(t, `authorization {users: [{user: w, password: secret, permissions {publish: ">", subscribe: "_INBOX_w.>"}}]}`)
	o := workerOptions(s, Options{User: "w", Password: "secret", InboxPrefix: "_INBOX_w"})
	if err := tryConnect(t, o, 10*time.Second); err != nil {
		t.Error(err)
	}
	o.InboxPrefix = ""
	if err := tryConnect(t, o, 200*time.Millisecond); err == nil {
		t.Error("without the prefix the answers should not be received")
	}
	o.InboxPrefix = "_INBOX.>"
	if err := tryConnect(t, o, time.Second); err == nil {
		t.Error("a prefix with a wildcard was accepted")
	}
}

func TestConnectWaitsUntilTheCredentialsArePutRight(t *testing.T) {
	t.Parallel()
	const right, wrong = `authorization {user: w, password: right}`, `authorization {user: w, password: wrong}`
	opts := serverOptions(t, wrong)
	s, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	go s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the NATS server did not start")
	}
	set := func(config string) {
		t.Helper()
		o := serverOptions(t, config)
		o.Port, o.StoreDir, o.ConfigFile = opts.Port, opts.StoreDir, opts.ConfigFile
		if err := s.ReloadOptions(o); err != nil {
			t.Fatal(err)
		}
	}
	log := make(logged, 1000)
	b, err := Connect(workerOptions(s, Options{User: "w", Password: "right", Wait: true}),
		slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close(context.Background())
	if line := log.wait(t, "NATS cannot be reached yet"); !strings.Contains(strings.ToLower(line),
		"authorization violation") {
		t.Errorf("the log does not say why: %s", line)
	}
	if err := b.Connected(); err == nil || !strings.Contains(strings.ToLower(err.Error()),
		"authorization violation") {
		t.Errorf("Connected says %v", err)
	}
	eventually(t, "two more tries", func() bool { // a client that gives up does so at the second
		closed, err := s.Connz(&server.ConnzOptions{State: server.ConnClosed})
		return err == nil && closed.NumConns > 2
	})
	set(right)
	log.wait(t, `msg="connected to NATS"`)
	if err := b.EnsureStreams(t.Context()); err != nil {
		t.Error(err)
	}
	set(wrong) // the server ends connections whose password is no longer right
	if line := log.wait(t, "lost the connection"); !strings.Contains(line, "ERR") &&
		!strings.Contains(line, "WARN") {
		t.Errorf("logged: %s", line)
	}
	set(right)
	log.wait(t, "connected to NATS again")
	if err := b.EnsureStreams(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestBacklogOldestIsAnEventOfTheConsumer(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		settled := make(chan string, 10)
		for _, c := range []*Consumer{b.MainConsumer(4, time.Second), b.AccessConsumer(4, time.Second)} {
			c.Handle = func(_ context.Context, e Event) error {
				if e.TenantID() == "waits" {
					return &Retry{After: time.Hour, Err: errors.New("later")}
				}
				return nil
			}
			c.Observe = func(eventType, _ string, _ time.Duration) { settled <- eventType }
			consume(t, c)
		}
		oldest := func() map[string]time.Duration {
			t.Helper()
			list, _, err := b.Backlog(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			ages := map[string]time.Duration{}
			for _, waits := range list {
				ages[waits.Consumer] = waits.Oldest
			}
			return ages
		}
		publish(t, b, createdEvent("org-1"))
		<-settled
		out, err := Structured("out", TypeDashboardCreated, "org-1", time.Now(),
			[]byte(`{"tenant_id":"org-1","workspace_id":"w","dashboard_id":"d","title":"x"}`))
		if err != nil {
			t.Fatal(err)
		}
		publish(t, b, out)
		publish(t, b, Outgoing{Type: TypeTenantDeleted, Data: []byte(`{"tenant_id":"org-1"}`)})
		<-settled
		const apart = time.Minute
		time.Sleep(apart) // the event out is older than the next event in
		if ages := oldest(); ages[MainConsumer] != 0 || ages[AccessConsumer] != 0 {
			t.Errorf("when nothing waits: %v", ages)
		}
		publish(t, b, createdEvent("waits"))
		<-settled
		publish(t, b, createdEvent("org-2"))
		<-settled
		time.Sleep(time.Second)
		if ages := oldest(); ages[MainConsumer] <= 0 || ages[MainConsumer] >= apart ||
			ages[AccessConsumer] != 0 {
			t.Errorf("the main consumer's newest waits: %v", ages)
		}
	})
}
