package console

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"
	"golang.org/x/time/rate"
)

// Roles of users: a viewer sees everything and changes nothing.
const (
	RoleViewer   = "viewer"
	RoleOperator = "operator"
)

// user is a line of the users' file.
type user struct {
	role string
	hash []byte // bcrypt
}

var userName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$`)

const (
	minPassword, maxPassword = 12, 72 // characters, and the bytes that bcrypt reads
	maxCost                  = 14     // about a second; a higher one would only take time from others
)

// CheckUserName returns what is wrong with a user's name.
func CheckUserName(name string) error {
	if !userName.MatchString(name) {
		return fmt.Errorf("user name %q: use letters, digits and . _ @ -, at most 64", name)
	}
	return nil
}

// UserLine makes a line of the users' file.
func UserLine(name, role, password string) (string, error) {
	if err := CheckUserName(name); err != nil {
		return "", err
	}
	switch {
	case len([]rune(password)) < minPassword:
		return "", fmt.Errorf("the password has fewer than %d characters", minPassword)
	case len(password) > maxPassword:
		return "", fmt.Errorf("the password has more than %d bytes", maxPassword)
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.DefaultCost)
	if err != nil {
		return "", fmt.Errorf("hash the password: %w", err)
	}
	return name + ":" + role + ":" + string(hash), nil
}

// maxUsersFile is the size of the largest users file that is read.
const maxUsersFile = 1 << 20

// ReadUsers reads a users file. See [ParseUsers].
func ReadUsers(path string) (map[string]user, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxUsersFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxUsersFile {
		return nil, fmt.Errorf("%s is larger than 1 MiB", path)
	}
	return ParseUsers(data)
}

// ParseUsers reads lines of the form name:role:bcrypt. Empty lines and those that begin with # are
// comments.
func ParseUsers(data []byte) (map[string]user, error) {
	all := map[string]user{}
	n := 0
	for line := range strings.Lines(string(bytes.TrimPrefix(data, []byte("\uFEFF")))) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, rest, _ := strings.Cut(line, ":")
		role, hash, ok := strings.Cut(rest, ":")
		cost, err := bcrypt.Cost([]byte(hash))
		switch _, known := all[name]; {
		case !ok || err != nil:
			return nil, fmt.Errorf("line %d is not name:role:bcrypt", n)
		case !userName.MatchString(name):
			return nil, fmt.Errorf("line %d: use letters, digits and . _ @ - for the name", n)
		case role != RoleViewer && role != RoleOperator:
			return nil, fmt.Errorf("line %d: the role is not viewer or operator", n)
		case cost > maxCost:
			return nil, fmt.Errorf("line %d: the cost of its hash is more than %d", n, maxCost)
		case known:
			return nil, fmt.Errorf("line %d: user %s appears twice", n, name)
		}
		all[name] = user{role, []byte(hash)}
	}
	return all, nil
}

// usersEvery is how old what was read of the users' file may be.
const usersEvery = time.Second

// users are those of the file, which is read again when it changes. While it cannot be used, those
// that are known stay.
type users struct {
	path string
	log  *slog.Logger

	mu     sync.Mutex
	read   time.Time
	all    map[string]user
	logged string // the last error
}

func newUsers(path string, log *slog.Logger) *users { return &users{path: path, log: log} }

// find returns a user as the file has it now.
func (u *users) find(name string, now time.Time) (user, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.path != "" && (u.read.IsZero() || now.Sub(u.read).Abs() >= usersEvery) {
		u.read = now
		u.reload()
	}
	found, ok := u.all[name]
	return found, ok
}

func (u *users) reload() {
	all, err := ReadUsers(u.path)
	if err == nil {
		u.all, u.logged = all, ""
	} else if err.Error() != u.logged {
		u.logged = err.Error()
		u.log.Warn("cannot reload CONSOLE_USERS_FILE; using the previous users", "error", err)
	}
}

// permitted sets the visitor's rights, as they are now. A session ends when its user is gone or has
// another password.
func (c *Console) permitted(s session, v *visit) bool {
	if s.user == "" {
		v.mayAct = c.cfg.Token != ""
		return v.mayAct
	}
	u, ok := c.users.find(s.user, c.now())
	if !ok || string(u.hash) != s.hash {
		return false
	}
	v.user, v.mayAct = s.user, u.role == RoleOperator
	return true
}

// Passwords are compared one at a time and at this rate for all, because bcrypt takes processor time
// that tokens need. Nobody is refused for the failures of others: who comes too fast waits. A few of
// one network wait at most, so that one client does not keep the others out.
const (
	passwordRate, passwordBurst = 2, 10 // per second
	maxWaiting                  = 40    // 20 s
	maxWaitingOfOne             = 4
)

type passwords struct {
	limiter *rate.Limiter
	turn    chan struct{}

	mu      sync.Mutex
	waiting map[string]int // by network
	all     int
}

func newPasswords() *passwords {
	return &passwords{
		limiter: rate.NewLimiter(passwordRate, passwordBurst), turn: make(chan struct{}, 1),
		waiting: map[string]int{},
	}
}

// nobody is compared with for a name that is unknown, so that time does not tell that.
var nobody = sync.OnceValue(func() []byte {
	hash, _ := bcrypt.GenerateFromPassword([]byte("nobody's password"), bcrypt.DefaultCost)
	return hash
})

// right compares a password with a hash. busy means that it did not come to that.
func (p *passwords) right(ctx context.Context, network string, hash []byte, password string) (ok, busy bool) {
	if hash == nil {
		hash = nobody()
	}
	p.mu.Lock()
	if p.all >= maxWaiting || p.waiting[network] >= maxWaitingOfOne {
		p.mu.Unlock()
		return false, true
	}
	p.all++
	p.waiting[network]++
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.all--
		if p.waiting[network]--; p.waiting[network] == 0 {
			delete(p.waiting, network)
		}
	}()
	if p.limiter.Wait(ctx) != nil {
		return false, true
	}
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return false, true
	}
	return len(password) <= maxPassword && bcrypt.CompareHashAndPassword(hash, []byte(password)) == nil, false
}

// network is where a request comes from: an address, or the /64 of one of IPv6, all of which one
// client can have.
func network(r *http.Request) string {
	ip, err := netip.ParseAddr(r.RemoteAddr)
	if err != nil {
		peer, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil {
			return r.RemoteAddr
		}
		ip = peer.Addr()
	}
	if ip = ip.Unmap(); ip.Is6() {
		prefix, _ := ip.Prefix(64)
		return prefix.String()
	}
	return ip.String()
}

// sameText compares hashes, which have one length, so that the time tells nothing of the text's.
func sameText(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}
