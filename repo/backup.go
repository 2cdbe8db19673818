package repo

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/jmoiron/sqlx"
	"github.com/mattn/go-sqlite3"

	"papermap-worker/schema"
)

// Backup describes the contents of a backup.
type Backup struct {
	Engine   string `json:"engine"`  // SQLite or PostgreSQL
	Version  int64  `json:"version"` // of the schema
	Tenants  int64  `json:"tenants"`
	Attempts int64  `json:"attempts"`
	Usage    int64  `json:"usage_rows"`
}

// tables maps each table to the field for its number of rows.
func (b *Backup) tables() map[string]*int64 {
	return map[string]*int64{
		"tenant_dashboards": &b.Tenants, "provision_attempts": &b.Attempts, "tenant_usage": &b.Usage,
	}
}

// sqliteHeader and dumpHeader begin the files of the two kinds of backup.
const (
	sqliteHeader = "SQLite format 3\x00"
	dumpHeader   = "PGDMP"
)

// WriteBackup writes a consistent copy of the database at address to the file path, even while
// workers run: an SQLite file, or the archive of pg_dump. The copy is written beside path and
// checked before it replaces an existing file, so a failed backup never replaces a good one.
func WriteBackup(ctx context.Context, address, path string) (b Backup, err error) {
	source, isSQLite := sqlitePath(address)
	if err := checkTarget(source, path); err != nil {
		return b, err
	}
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.new")
	if err != nil {
		return b, fmt.Errorf("write the backup: %w", err)
	}
	copied := file.Name()
	defer func() {
		_ = file.Close()
		if err != nil {
			for _, suffix := range []string{"", "-journal", "-wal", "-shm"} {
				_ = os.Remove(copied + suffix)
			}
		}
	}()
	if isSQLite {
		err = copySQLite(ctx, source, copied)
	} else {
		err = dumpPostgres(ctx, address, copied)
	}
	if err != nil {
		return b, fmt.Errorf("copy the database: %w", err)
	}
	if b, err = CheckBackup(ctx, copied); err != nil {
		return b, fmt.Errorf("check the copy: %w", err)
	}
	if err = errors.Join(file.Chmod(0o600), file.Sync()); err != nil {
		return b, fmt.Errorf("write the backup: %w", err)
	}
	if err = os.Rename(copied, path); err != nil {
		return b, fmt.Errorf("move the backup into place: %w", err)
	}
	folder, err := os.Open(filepath.Dir(path))
	if err == nil {
		err = errors.Join(folder.Sync(), folder.Close())
	}
	if err != nil {
		return b, fmt.Errorf("the backup is in place, but may not survive a power cut: %w", err)
	}
	return b, nil
}

// checkTarget refuses a path where a backup would overwrite something else.
func checkTarget(source, path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("write the backup: %w", err)
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file: name another one for the backup", path)
	}
	if database, err := os.Stat(source); err == nil && os.SameFile(database, info) {
		return fmt.Errorf("%s is the database itself: name another file for the backup", path)
	}
	return checkClosed(path)
}

// checkClosed returns an error if an SQLite file has a log beside it, which is a part of it.
func checkClosed(path string) error {
	for _, suffix := range []string{"-wal", "-journal"} {
		if info, err := os.Stat(path + suffix); err == nil && info.Size() > 0 {
			return fmt.Errorf("%s is a database in use, not a backup: there is a %s", path, path+suffix)
		}
	}
	return nil
}

func sqliteURL(path, parameters string) string {
	return "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + parameters
}

// backupPages is how many pages are copied between two checks of the context.
const backupPages = 4096

// copySQLite copies the pages of one snapshot, including damaged ones, so that checking the copy
// also checks the database. The copy has no write-ahead log.
func copySQLite(ctx context.Context, from, to string) error {
	source, err := sqlx.Open("sqlite3", sqliteURL(from, "mode=rw&_busy_timeout=5000&_query_only=1"))
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := sqlx.Open("sqlite3", sqliteURL(to, "mode=rw"))
	if err != nil {
		return err
	}
	defer target.Close()
	err = rawSQLite(ctx, source, func(read *sqlite3.SQLiteConn) error {
		// The open transaction holds the snapshot, or each write of a worker would restart the copy.
		for _, text := range []string{"BEGIN", "SELECT COUNT(*) FROM sqlite_master"} {
			if _, err := read.ExecContext(ctx, text, []driver.NamedValue{}); err != nil {
				return damaged(err)
			}
		}
		return rawSQLite(ctx, target, func(write *sqlite3.SQLiteConn) error {
			return copyPages(ctx, write, read)
		})
	})
	if err != nil {
		return err
	}
	var mode string
	if err := target.GetContext(ctx, &mode, "PRAGMA journal_mode=DELETE"); err != nil {
		return damaged(err)
	}
	if mode != "delete" {
		return fmt.Errorf("the copy has journal mode %s", mode)
	}
	return target.Close()
}

func rawSQLite(ctx context.Context, db *sqlx.DB, do func(*sqlite3.SQLiteConn) error) error {
	conn, err := db.Connx(ctx)
	if err != nil {
		return damaged(err)
	}
	defer conn.Close()
	return conn.Raw(func(raw any) error { return do(raw.(*sqlite3.SQLiteConn)) })
}

func copyPages(ctx context.Context, to, from *sqlite3.SQLiteConn) error {
	backup, err := to.Backup("main", from, "main")
	if err != nil {
		return damaged(err)
	}
	for done := false; !done && err == nil && ctx.Err() == nil; {
		done, err = backup.Step(backupPages)
	}
	return damaged(cmp.Or(err, ctx.Err(), backup.Finish()))
}

// CheckBackup opens a backup, reads all of it, and counts its rows. It changes nothing.
func CheckBackup(ctx context.Context, path string) (b Backup, err error) {
	file, err := os.Open(path)
	if err != nil {
		return b, err
	}
	defer file.Close()
	header := make([]byte, len(sqliteHeader))
	n, _ := io.ReadFull(file, header)
	header = header[:n]
	newest, list := int64(0), []schema.Migration(nil)
	switch {
	case string(header) == sqliteHeader:
		b.Engine = "SQLite"
		list, err = schema.Status(ctx, nil, schema.SQLite)
		if err == nil {
			err = b.readSQLite(ctx, path)
		}
	case bytes.HasPrefix(header, []byte(dumpHeader)):
		b.Engine = "PostgreSQL"
		list, err = schema.Status(ctx, nil, schema.Postgres)
		if err == nil {
			err = b.readDump(ctx, path)
		}
	default:
		return b, fmt.Errorf("%s is not a backup: it is neither an SQLite file nor an archive of pg_dump",
			path)
	}
	if err != nil {
		return b, err
	}
	if newest = list[len(list)-1].Version; b.Version > newest {
		return b, fmt.Errorf("backup version %d, program version %d: %w", b.Version, newest, ErrSchemaNewer)
	}
	if b.Version == 0 {
		return b, errors.New("it does not hold the tables of papermap-worker")
	}
	return b, nil
}

func (b *Backup) readSQLite(ctx context.Context, path string) error {
	if err := checkClosed(path); err != nil {
		return err
	}
	db, err := sqlx.Open("sqlite3", sqliteURL(path, "mode=ro&immutable=1"))
	if err != nil {
		return err
	}
	defer db.Close()
	var result string
	if err := db.GetContext(ctx, &result, "PRAGMA integrity_check(1)"); err != nil {
		return fmt.Errorf("read %s: %w", path, damaged(err))
	}
	if result != "ok" {
		return fmt.Errorf("the database file is damaged (%s)", result)
	}
	var tables int
	err = db.GetContext(ctx, &tables, "SELECT COUNT(*) FROM sqlite_master WHERE name = 'goose_db_version'")
	if err != nil || tables == 0 {
		return err
	}
	counts := b.tables()
	query := "SELECT COALESCE(MAX(version_id), 0) FROM goose_db_version"
	if err := db.GetContext(ctx, &b.Version, query); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	for name, count := range counts {
		if err := db.GetContext(ctx, count, "SELECT COUNT(*) FROM "+name); err != nil {
			return fmt.Errorf("count %s: %w", name, err)
		}
	}
	return nil
}

// readDump has pg_restore unpack all data of an archive.
func (b *Backup) readDump(ctx context.Context, path string) error {
	cmd, stderr, err := postgresTool(ctx, "pg_restore", "--data-only", "--file=-", path)
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return fmt.Errorf("run pg_restore: %w", err)
	}
	b.countDump(bufio.NewReaderSize(out, 1<<16))
	_, _ = io.Copy(io.Discard, out)
	return toolError(ctx, "pg_restore", cmd.Wait(), stderr)
}

// countDump counts the rows that COPY statements give each table.
func (b *Backup) countDump(r *bufio.Reader) {
	counts := b.tables()
	var count *int64
	version := -1 // the column with the schema's version, in its table
	for {
		line, err := r.ReadSlice('\n')
		partial := errors.Is(err, bufio.ErrBufferFull)
		if err != nil && !partial {
			return
		}
		text := strings.TrimSuffix(string(line), "\n")
		for partial { // the rest of a long row
			_, err := r.ReadSlice('\n')
			partial = errors.Is(err, bufio.ErrBufferFull)
		}
		table, columns, begins := copyStatement(text)
		switch {
		case text == `\.`:
			count, version = nil, -1
		case count != nil:
			*count++
		case version >= 0:
			if fields := strings.Split(text, "\t"); version < len(fields) {
				n, _ := strconv.ParseInt(fields[version], 10, 64)
				b.Version = max(b.Version, n)
			}
		case begins && table == "goose_db_version":
			version = slices.Index(columns, "version_id")
		case begins:
			if count = counts[table]; count == nil {
				count = new(int64)
			}
		}
	}
}

// copyStatement reads "COPY schema.table (column, …) FROM stdin;".
func copyStatement(text string) (table string, columns []string, ok bool) {
	text, ok = strings.CutPrefix(text, "COPY ")
	name, rest, found := strings.Cut(text, " (")
	list, found2 := strings.CutSuffix(rest, ") FROM stdin;")
	if !ok || !found || !found2 {
		return "", nil, false
	}
	return name[strings.LastIndex(name, ".")+1:], strings.Split(list, ", "), true
}

// dumpPostgres writes an archive of pg_dump.
func dumpPostgres(ctx context.Context, address, to string) error {
	clean, password, err := dumpAddress(address)
	if err != nil {
		return err
	}
	cmd, stderr, err := postgresTool(ctx, "pg_dump", "--format=custom", "--no-password", "--file="+to,
		"--dbname="+clean)
	if err != nil {
		return err
	}
	if password != "" {
		cmd.Env = append(os.Environ(), "PGPASSWORD="+password)
	}
	return toolError(ctx, "pg_dump", cmd.Run(), stderr)
}

// postgresTool returns a command whose messages are collected in stderr.
func postgresTool(ctx context.Context, name string, args ...string) (*exec.Cmd, *bytes.Buffer, error) {
	if _, err := exec.LookPath(name); err != nil {
		return nil, nil, fmt.Errorf("%s is not installed: it comes with PostgreSQL's client programs", name)
	}
	cmd, stderr := exec.CommandContext(ctx, name, args...), new(bytes.Buffer)
	cmd.Stderr = stderr
	return cmd, stderr, nil
}

func toolError(ctx context.Context, name string, err error, stderr *bytes.Buffer) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	text := strings.TrimSpace(stderr.String())
	return fmt.Errorf("%s failed (%w): %s", name, err, text[:min(len(text), 1000)])
}

// libpqParameters are the parameters of an address that pg_dump supports. It refuses all others,
// such as statement_timeout.
var libpqParameters = strings.Fields(`application_name channel_binding client_encoding connect_timeout
	dbname fallback_application_name gssencmode gsslib host hostaddr keepalives keepalives_count
	keepalives_idle keepalives_interval krbsrvname load_balance_hosts options passfile port require_auth
	requirepeer service sslcert sslcrl sslkey sslmode sslnegotiation sslrootcert sslsni
	ssl_max_protocol_version ssl_min_protocol_version target_session_attrs tcp_user_timeout user`)

// dumpAddress returns an address for pg_dump without the password, which other users could see in
// the process list.
func dumpAddress(address string) (clean, password string, err error) {
	if _, err := parsePostgres(address); err != nil {
		return "", "", err
	}
	u, err := parseURL(address)
	if err != nil {
		return "", "", err
	}
	query := u.Query()
	if query.Has("sslpassword") {
		return "", "",
			errors.New("pg_dump would show sslpassword to other users: use a key without a password")
	}
	password, _ = u.User.Password()
	password = cmp.Or(query.Get("password"), password)
	_, hosts, _ := strings.Cut(address, "://")
	hosts, _, _ = strings.Cut(hosts, "?")
	hosts, _, _ = strings.Cut(hosts, "/")
	hosts = hosts[strings.LastIndex(hosts, "@")+1:] // u has one host only, where there are several
	clean = "postgresql://"
	if name := u.User.Username(); name != "" {
		clean += url.User(name).String() + "@"
	}
	clean += hosts + u.EscapedPath()
	separator := "?"
	for _, name := range libpqParameters {
		if query.Has(name) {
			clean += separator + name + "=" + url.PathEscape(query.Get(name))
			separator = "&"
		}
	}
	return clean, password, nil
}
