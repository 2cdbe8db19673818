package repo

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Exists returns an error unless Open would open an existing database at address. An empty file
// counts as missing, because its tables are not yet created.
func Exists(address string) error {
	path, ok := sqlitePath(address)
	if !ok {
		return nil
	}
	info, err := os.Stat(path)
	if err == nil && info.Size() == 0 {
		err = fmt.Errorf("%s is empty: %w", path, fs.ErrNotExist)
	}
	if err != nil {
		return fmt.Errorf("there is no database: is DATABASE_URL right, "+
			"and has `papermap-worker serve` or `migrate` run? %w", err)
	}
	return nil
}

// CheckAddress returns the problem of an address. The message does not quote it, because it may
// contain a password.
func CheckAddress(address string) error {
	if _, ok := sqlitePath(address); ok {
		return nil
	}
	_, err := parsePostgres(address)
	return err
}

func sqlitePath(address string) (string, bool) {
	path, ok := strings.CutPrefix(address, "sqlite:")
	return path, ok && path != "" && path != ":memory:" // each connection would have its own memory
}

// parsePostgres parses an address. Its error gives the parser's reason, unless that could reveal a
// part of a password.
func parsePostgres(address string) (*pgx.ConnConfig, error) {
	if !strings.HasPrefix(address, "postgres://") && !strings.HasPrefix(address, "postgresql://") {
		return nil, errors.New(
			"not an address like sqlite:papermap.db or postgres://user:password@host:5432/database")
	}
	u, err := parseURL(address)
	if err != nil {
		return nil, err
	}
	config, err := pgx.ParseConfig(address)
	if err == nil {
		return config, nil
	}
	return nil, fmt.Errorf("invalid address: %s", reason(u, err))
}

// severalHosts matches the hosts of an address that has more than one, which url.Parse refuses.
var severalHosts = regexp.MustCompile(`^(postgres(?:ql)?://(?:[^@/?#]*@)?)[^@/?#,]*,[^@/?#]*`)

// parseURL parses an address as pgx will. A character of a password that is not percent-encoded would
// move the rest of the password to another part of the address, which messages show.
func parseURL(address string) (*url.URL, error) {
	u, err := url.Parse(severalHosts.ReplaceAllString(address, "${1}host"))
	if err != nil {
		return nil, errors.New("invalid address: it cannot be parsed as a URL: percent-encode characters " +
			"such as @ : / ? # % in user and password, and check host and port")
	}
	misplaced := func(text string) bool { return strings.Contains(text, "@") }
	var keys []string
	for key := range u.Query() {
		keys = append(keys, key)
	}
	if u.Fragment != "" || misplaced(u.EscapedPath()) || slices.ContainsFunc(keys, misplaced) {
		return nil, errors.New("invalid address: there is an @ or # behind the host: " +
			"percent-encode characters such as @ : / ? # % in user and password")
	}
	return u, nil
}

// reason is pgx's error about an address, without the address.
func reason(u *url.URL, err error) string {
	text := err.Error()
	if i := strings.LastIndex(text, "`: "); i >= 0 { // "cannot parse `ADDRESS`: REASON"
		text = text[i+len("`: "):]
	}
	secrets := []string{u.User.String(), u.RawQuery}
	if password, given := u.User.Password(); given {
		secrets = append(secrets, password, url.QueryEscape(password), url.PathEscape(password))
	}
	for key, values := range u.Query() {
		if strings.Contains(strings.ToLower(key), "password") {
			secrets = append(secrets, values...)
		}
	}
	for _, secret := range append(secrets, os.Getenv("PGPASSWORD"), os.Getenv("PGSSLPASSWORD")) {
		if secret != "" && strings.Contains(text, secret) {
			return "its parameters cannot be parsed"
		}
	}
	return text
}
