package proof_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// sample is what was measured at one time, by name.
type sample struct {
	at      time.Duration // since the start
	figures map[string]int64
}

func (s sample) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s.figures)) {
		fmt.Fprintf(&b, "; %s=%d", name, s.figures[name])
	}
	return b.String()
}

// windows returns where a soak's figures are read for the table: a twelfth of the time each, at the
// start after a warm-up, in the middle and at the end. A figure is the median of its window, because
// faults move it for a while.
func windows() [3]time.Duration {
	part := *soakTime / 12
	return [3]time.Duration{part, *soakTime/2 - part/2, *soakTime - part}
}

// measureAll measures every minute until ctx ends; in a short run, more often.
func (s *soak) measureAll(ctx context.Context) {
	for sleep(ctx, min(time.Minute, *soakTime/60)) {
		var now sample
		err := waitFor(ctx, 50*time.Second, func() (err error) { // a worker or database may be stopped
			now, err = s.measure(ctx)
			return err
		})
		if err != nil {
			s.t.Logf("soak %s %v: not measured: %v", s.name, time.Since(s.started).Round(time.Second), err)
			continue
		}
		s.samples = append(s.samples, now)
		s.t.Logf("soak %s %v%v", s.name, now.at.Round(time.Second), now)
	}
}

// measure reads all figures. It fails while something is down.
func (s *soak) measure(ctx context.Context) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	now := sample{time.Since(s.started), map[string]int64{}}
	for i := range s.workers {
		if err := s.measureWorker(ctx, i, now.figures); err != nil {
			return now, err
		}
	}
	if err := s.measureDatabase(ctx, now.figures); err != nil {
		return now, err
	}
	for _, name := range []string{"PAPERMAP", "PAPERMAP_DEAD"} {
		stream, err := s.js.Stream(ctx, name)
		if err != nil {
			return now, err
		}
		state := stream.CachedInfo().State
		now.figures["stream "+name+" messages"] = int64(state.Msgs)
		now.figures["stream "+name+" KiB"] = int64(state.Bytes >> 10)
	}
	return now, nil
}

func (s *soak) measureWorker(ctx context.Context, i int, figures map[string]int64) error {
	proc := fmt.Sprintf("/proc/%d/", s.workers[i].cmd.Process.Pid)
	name := fmt.Sprintf("worker%d ", i)
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		return err
	}
	if figures[name+"RssAnon KiB"], err = number(string(status), "\nRssAnon:"); err != nil {
		return err
	}
	open, err := os.ReadDir(proc + "fd")
	if err != nil {
		return err
	}
	figures[name+"descriptors"] = int64(len(open))
	stat, err := os.ReadFile(proc + "stat")
	if err != nil {
		return err
	}
	_, behind, _ := strings.Cut(string(stat), ") ")
	var used int64 // ticks of 10 ms
	for _, field := range strings.Fields(behind)[11:13] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return err
		}
		used += n
	}
	figures[name+"CPU s"] = used / 100

	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.http[i]+"/metrics", nil)
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	lines := bufio.NewScanner(answer.Body)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "go_goroutines ") {
			figures[name+"goroutines"], err = number(lines.Text(), "go_goroutines ")
			return err
		}
	}
	return errors.Join(errors.New("no go_goroutines in /metrics"), lines.Err())
}

// number returns the first word behind a prefix in text.
func number(text, prefix string) (int64, error) {
	_, behind, _ := strings.Cut(text, prefix)
	words := strings.Fields(behind)
	if len(words) == 0 {
		return 0, fmt.Errorf("no %q", prefix)
	}
	return strconv.ParseInt(words[0], 10, 64)
}

// measureDatabase reads the rows of all tables and the sizes: on PostgreSQL of each table with its
// indexes, on SQLite of the file.
func (s *soak) measureDatabase(ctx context.Context, figures map[string]int64) error {
	tables := `SELECT name, 0 AS bytes FROM sqlite_master
		WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name NOT LIKE 'goose%'`
	if s.postgres != nil {
		tables = `SELECT relname AS name, pg_total_relation_size(oid) AS bytes FROM pg_class
			WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname NOT LIKE 'goose%'`
		var wal, all int64
		err := s.sql.GetContext(ctx, &wal, "SELECT SUM(size) FROM pg_ls_waldir()")
		if err == nil {
			err = s.sql.GetContext(ctx, &all, "SELECT pg_database_size(current_database())")
		}
		if err != nil {
			return err
		}
		figures["WAL KiB"], figures["database KiB"] = wal>>10, all>>10
	} else {
		for name, ending := range map[string]string{"database KiB": "", "WAL KiB": "-wal"} {
			file, err := os.Stat(filepath.Join(s.dir, "database", "papermap.db"+ending))
			if err != nil {
				return err
			}
			figures[name] = file.Size() >> 10
		}
	}
	var list []struct {
		Name  string
		Bytes int64
	}
	if err := s.sql.SelectContext(ctx, &list, tables); err != nil {
		return err
	}
	for _, table := range list {
		var rows int64
		if err := s.sql.GetContext(ctx, &rows, "SELECT COUNT(*) FROM "+table.Name); err != nil {
			return err
		}
		figures["table "+table.Name+" rows"] = rows
		if table.Bytes > 0 {
			figures["table "+table.Name+" KiB"] = table.Bytes >> 10
		}
	}
	return nil
}

// constant is what a figure may grow by, besides half of what it was; ok is false for one that grows
// with the number of events.
func constant(name string) (limit int64, ok bool) {
	for ending, limit := range map[string]int64{
		"goroutines": 50, "descriptors": 20, "RssAnon KiB": 16 << 10, "WAL KiB": 64 << 10, "leases rows": 5,
		"tenant_dashboards rows": 0, "tenant_usage rows": 0, "usage_rejects rows": 0, "usage_marks rows": 0,
		"token_counts rows": 400,
	} {
		if strings.HasSuffix(name, ending) {
			return limit, true
		}
	}
	return 0, false
}

// judge prints the table and fails the test for what has grown and must not.
func (s *soak) judge() {
	s.t.Helper()
	if len(s.samples) == 0 {
		s.t.Errorf("%s: nothing was measured", s.name)
		return
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s.samples[len(s.samples)-1].figures)) {
		var medians [3]int64
		for i, from := range windows() {
			medians[i] = s.median(name, from, from+*soakTime/12)
		}
		fmt.Fprintf(&b, "| %s | %d | %d | %d |\n", name, medians[0], medians[1], medians[2])
		most, ok := constant(name)
		if most += medians[0] * 3 / 2; ok && medians[2] > most {
			s.t.Errorf("%s: %s was %d at the start and is %d at the end; the most is %d", s.name, name,
				medians[0], medians[2], most)
		}
	}
	s.t.Logf("%s: start, middle, end:\n%s", s.name, b.String())
}

func (s *soak) median(name string, from, to time.Duration) int64 {
	var values []int64
	for _, m := range s.samples {
		if m.at >= from && m.at <= to+time.Second {
			values = append(values, m.figures[name])
		}
	}
	if len(values) == 0 {
		s.t.Errorf("%s: %s was not measured between %v and %v", s.name, name, from, to)
		return 0
	}
	slices.Sort(values)
	return values[len(values)/2]
}
