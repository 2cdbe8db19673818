package repo

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/mattn/go-sqlite3"
)

const (
	sqliteReaders     = 4               // of each view
	sqliteBusyTimeout = 5 * time.Second // for another process, e.g. a command beside the worker

	// Settings are in the address because a PRAGMA by Exec would reach only one connection of the
	// pool. No mutex: the pool gives a connection to one goroutine at a time.
	// https://github.com/mattn/go-sqlite3#connection-string
	sqliteSettings = "?_journal_mode=WAL&_synchronous=FULL&_busy_timeout=5000&_foreign_keys=on" +
		"&_stmt_cache_size=64&_mutex=no"

	// For a CHECK with a list of words SQLite builds a table of them for every written row, which
	// made the writes of a provisioned tenant take a sixth longer. This program writes only its own
	// constants. Other programs are checked, and CheckIntegrity checks all rows.
	sqliteWriter = "&_txlock=immediate&_ignore_check_constraints=1"

	sqliteReader = "&_query_only=1&_cache_size=-512" // KiB for each connection: the system caches the file
)

func openSQLite(ctx context.Context, path string) (_ *DB, err error) {
	db := &DB{core: &core{dialect: &sqliteDialect, path: path, now: time.Now}}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("open the database %s: %w", path, damaged(err)), db.Close())
		}
	}()
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return nil, errors.New("it is a folder, not a file")
	}
	file := "file:" + (&url.URL{Path: path}).EscapedPath() + sqliteSettings
	if db.write, err = sqlx.Open("sqlite3", file+sqliteWriter); err != nil {
		return nil, err
	}
	db.pools = map[string]*sqlx.DB{"write": db.write}
	db.write.SetMaxOpenConns(1)
	if err := pingUntilFree(ctx, db.write); err != nil {
		return nil, err
	}
	var tables int // reading opens the write-ahead log
	if err := db.write.GetContext(ctx, &tables, "SELECT COUNT(*) FROM sqlite_master"); err != nil {
		return nil, err
	}
	if db.files, err = openFiles(path, path+"-wal"); err != nil {
		return nil, err
	}
	for name, view := range map[string]*pool{
		"read": &db.read, "tokens": &db.core.tokens, "people": &db.core.people,
	} {
		readers, err := sqlx.Open("sqlite3", file+sqliteReader)
		if err != nil {
			return nil, err
		}
		readers.SetMaxOpenConns(sqliteReaders)
		db.pools[name] = readers
		*view = pool{DB: readers, dialect: db.dialect}
	}
	db.settings = func(bool) []statement { return []statement{{text: "BEGIN IMMEDIATE", untraced: true}} }
	db.session = db.sqliteSession
	db.batches = newBatches(db)
	db.transact = func(ctx context.Context, do txFunc) error { return db.batches.do(ctx, &job{do: do}) }
	return db, nil
}

// sqliteSession runs do in a session on the writing connection. Statements are not interrupted,
// because SQLite would roll back the whole transaction.
//
// It is not a sql.Tx, which starts a goroutine for each of its queries to watch a context that does
// not end.
func (db *DB) sqliteSession(ctx context.Context, do func(*session) error) error {
	conn, err := db.write.Connx(ctx)
	if err != nil {
		return fmt.Errorf("begin a transaction: %w", err)
	}
	defer conn.Close()
	s := &session{db: db, on: conn}
	s.run = func(ctx context.Context, list ...*statement) error {
		for _, st := range list {
			err := st.traced(ctx, db.dialect, func(ctx context.Context) error {
				if st.into != nil {
					return conn.SelectContext(ctx, st.into, st.text, st.args...)
				}
				result, err := conn.ExecContext(ctx, st.text, st.args...)
				if err != nil {
					return err
				}
				st.rows, err = result.RowsAffected()
				return err
			})
			if err != nil {
				st.failed = true
				return statementError{err}
			}
		}
		return nil
	}
	s.commit = func(ctx context.Context) error {
		if err := db.checkFiles(); err != nil {
			return err
		}
		_, err := conn.ExecContext(ctx, "COMMIT")
		db.wrote(err)
		if err != nil {
			return fmt.Errorf("commit: %w", err)
		}
		return nil
	}
	err = do(s)
	if err != nil {
		rollback(ctx, conn)
	}
	return err
}

// rollback ends the transaction, unless SQLite has already rolled it back, as it does when the disk
// is full.
func rollback(ctx context.Context, conn *sqlx.Conn) {
	_ = conn.Raw(func(raw any) error {
		if raw.(*sqlite3.SQLiteConn).AutoCommit() {
			return nil
		}
		if _, err := raw.(*sqlite3.SQLiteConn).ExecContext(ctx, "ROLLBACK", nil); err != nil {
			return driver.ErrBadConn // it is closed, which ends the transaction too
		}
		return nil
	})
}

// pingUntilFree makes the first connection, and retries for as long as the busy timeout: if two
// processes add a write-ahead log to a new file at the same time, SQLite refuses the second at
// once.
func pingUntilFree(ctx context.Context, db *sqlx.DB) error {
	for deadline := time.Now().Add(sqliteBusyTimeout); ; time.Sleep(10 * time.Millisecond) {
		err := db.PingContext(ctx)
		var e sqlite3.Error
		busy := errors.As(err, &e) && e.Code == sqlite3.ErrBusy
		if !busy || time.Now().After(deadline) || ctx.Err() != nil {
			return err
		}
	}
}

// damaged adds advice to an error about a file that is damaged, or was never a database.
func damaged(err error) error {
	var e sqlite3.Error
	if errors.As(err, &e) && (e.Code == sqlite3.ErrCorrupt || e.Code == sqlite3.ErrNotADB) {
		return fmt.Errorf(
			"the file is damaged or no database (%w): restore it from a backup, or correct DATABASE_URL", err)
	}
	return err
}

// CheckIntegrity reads the whole SQLite file and returns an error if it is damaged. PostgreSQL
// checks itself.
func (db *DB) CheckIntegrity(ctx context.Context) error {
	if db.path == "" {
		return nil
	}
	var result string
	if err := db.read.get(ctx, &result, "PRAGMA quick_check(1)"); err != nil {
		return fmt.Errorf("check the database file: %w", damaged(err))
	}
	switch {
	case strings.HasPrefix(result, "CHECK constraint"):
		return fmt.Errorf("the database has an unknown value (%s): "+
			"correct the row", result)
	case result != "ok":
		return fmt.Errorf("the database file is damaged (%s): restore it from a backup", result)
	}
	return nil
}
