package cli

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"papermap-worker/papermap"
)

// parser reads settings and collects what is wrong with them, so that one message can name every
// wrong setting:
//
//	p := a.parser()
//	timeout := p.duration("PAPERMAP_TIMEOUT", s.Timeout, time.Second, time.Minute)
//	attempts := p.integer("MAX_ATTEMPTS", s.MaxAttempts, 1, 1000)
//	if err := p.err(); err != nil {
//		return err // a *usageError
//	}
//
// The methods take the name of the setting's variable for the message, and the text that was given.
// What they return after a problem is not to be used.
type parser struct {
	getenv   func(string) string // reads what has no flag
	problems []string
}

// check adds a problem unless ok. It must not quote a secret.
func (p *parser) check(ok bool, format string, args ...any) {
	if !ok {
		p.problems = append(p.problems, fmt.Sprintf(format, args...))
	}
}

// err names every problem, sorted; it is nil if there is none.
func (p *parser) err() error {
	if len(p.problems) == 0 {
		return nil
	}
	sorted := slices.Sorted(slices.Values(p.problems))
	text := "invalid configuration:\n  - " + strings.Join(sorted, "\n  - ")
	return &usageError{text: text, settings: sorted}
}

// secret returns the variable, or the content of the file that the variable NAME_FILE names.
func (p *parser) secret(name string) string {
	value, file := p.getenv(name), p.getenv(name+"_FILE")
	if file == "" {
		return value
	}
	p.check(value == "", "%s and %s_FILE are both set: unset one", name, name)
	if value != "" {
		return ""
	}
	return p.secretFile(name+"_FILE", file)
}

// given reports whether a secret was given, even if it could not be read.
func (p *parser) given(name string) bool { return p.getenv(name) != "" || p.getenv(name+"_FILE") != "" }

// secretFile returns the content of a file without the line breaks at its end and the byte order
// mark that some editors put at its beginning.
func (p *parser) secretFile(name, path string) string {
	data, err := readText(path)
	text := strings.TrimRight(string(data), "\r\n")
	p.check(err == nil, "%s: %v", name, err)
	if !utf8.ValidString(text) || strings.Contains(text, "\x00") {
		p.check(false, "%s: %s is not UTF-8 text: save it as UTF-8", name, path)
		return ""
	}
	p.check(err != nil || text != "", "%s: %s is empty", name, path)
	return text
}

// maxSettingsFile is the size of the largest file with settings that is read.
const maxSettingsFile = 1 << 20

// readText reads a file, without the byte order mark that some editors put at its beginning.
func readText(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxSettingsFile+1))
	if err == nil && len(data) > maxSettingsFile {
		err = fmt.Errorf("%s is larger than 1 MiB", path)
	}
	if bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff")) {
		return nil, fmt.Errorf("%s is UTF-16: save it as UTF-8", path)
	}
	return bytes.TrimPrefix(data, []byte("\uFEFF")), err
}

// consoleToken checks CONSOLE_TOKEN. What is right is always let in, so it must not be guessed.
func (p *parser) consoleToken(token string) string {
	p.check(token == "" || utf8.RuneCountInString(token) >= 8,
		"CONSOLE_TOKEN is shorter than 8 characters and could be guessed: use `openssl rand -hex 16`")
	return token
}

// prefixes reads a list of CIDRs; an address is a CIDR of one.
func (p *parser) prefixes(name, text string) (list []netip.Prefix) {
	for _, one := range splitList(text) {
		prefix, err := netip.ParsePrefix(one)
		if ip, wrong := netip.ParseAddr(one); wrong == nil {
			prefix, err = ip.Prefix(ip.BitLen())
		}
		p.check(err == nil, "%s: invalid network %q: use one like 10.0.0.0/8", name, one)
		list = append(list, prefix)
	}
	return list
}

// certificate reads a certificate and its key, if both are given.
func (p *parser) certificate(certName, cert, keyName, key string) *tls.Certificate {
	p.check((cert == "") == (key == ""), "%s and %s go together: set both or neither", certName, keyName)
	if cert == "" || key == "" {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	p.check(err == nil, "%s and %s: %v", certName, keyName, err)
	return &pair
}

// duration reads a duration with its unit, such as 10s, from lowest to highest.
func (p *parser) duration(name, text string, lowest, highest time.Duration) time.Duration {
	d, err := time.ParseDuration(text)
	p.check(err == nil && d >= lowest && d <= highest,
		"%s: invalid duration %q: use %v to %v, with its unit", name, text, lowest, highest)
	return d
}

// integer reads a whole number from lowest to highest.
func (p *parser) integer(name, text string, lowest, highest int) int {
	n, err := strconv.Atoi(text)
	p.check(err == nil && n >= lowest && n <= highest,
		"%s: invalid number %q: use a whole number from %d to %d", name, text, lowest, highest)
	return n
}

// rate reads a number per second; 0 means no limit.
func (p *parser) rate(name, text string) float64 {
	const highest = 1_000_000
	f, err := strconv.ParseFloat(text, 64)
	p.check(err == nil && f >= 0 && f <= highest, "%s: invalid number %q: use 0 to %d", name, text, highest)
	return f
}

// boolean reads true, false, or what else strconv.ParseBool takes.
func (p *parser) boolean(name, text string) bool {
	b, err := strconv.ParseBool(text)
	p.check(err == nil, "%s: invalid value %q: use true or false", name, text)
	return b
}

// oneOf checks that text is one of the values.
func (p *parser) oneOf(name, text string, values ...string) string {
	ok := slices.Contains(values, text)
	p.check(ok, "%s: invalid value %q: use %s", name, text, strings.Join(values, " or "))
	return text
}

// readable checks that a file exists, if its path is given.
func (p *parser) readable(name, path string) string {
	if path != "" {
		_, err := os.Stat(path)
		p.check(err == nil, "%s: %v", name, err)
	}
	return path
}

// hostPort checks an address to listen on. Off and empty are fine, too.
func (p *parser) hostPort(name, text string) string {
	_, _, err := net.SplitHostPort(text)
	ok := err == nil || text == "off" || text == ""
	p.check(ok, "%s: invalid address %q: use host:port, or off", name, text)
	return text
}

// id checks an id that becomes an HTTP header.
func (p *parser) id(name, id string) string {
	bad := strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r == 0x7f })
	p.check(!bad, "%s has white space or control characters", name)
	return id
}

// apiURL checks an address of the API and strips its trailing slash.
func (p *parser) apiURL(name, text string, allowHTTP bool) string {
	u := webURL(text)
	p.check(u != nil, "%s: invalid address: use one like https://prod.dataapi.papermap.ai", name)
	p.check(u == nil || u.Scheme == "https" || allowHTTP || loopback(u.Hostname()),
		"%s: use https (http is for loopback hosts, or tests with PAPERMAP_ALLOW_HTTP=true)", name)
	return strings.TrimRight(text, "/")
}

// pair returns a key pair of which both halves are given; other if neither is. idName and
// secretName are the names of the two settings.
func (p *parser) pair(idName, secretName string, key papermap.KeyPair, secretGiven bool,
	other papermap.KeyPair) papermap.KeyPair {
	if key.ID == "" && !secretGiven {
		return other
	}
	p.check(key.ID != "" && secretGiven, "%s and %s go together: set both or neither", idName, secretName)
	return key
}

// webURL parses an http or https address. It returns nil if there is none, or if it has a user, a
// query or a fragment, where secrets could hide.
func webURL(text string) *url.URL {
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http" ||
		u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil
	}
	return u
}

// loopback reports whether a host is this one, so that what is sent to it leaves no machine.
func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// splitList splits a text at commas and spaces.
func splitList(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })
}
