package proof_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// operation is something that a program did to a file of a folder: create, write, truncate (to
// offset), sync, syncdir, unlink, or rename (data is the new name).
type operation struct {
	what   string
	at     int64 // Unix nanoseconds, when it had ended
	name   string
	offset int64
	data   []byte
}

// readOperations reads the log of testdata/recordwrites.c. Its last record may be incomplete.
func readOperations(path string) (list []operation, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	for r := bufio.NewReader(file); ; {
		line, err := r.ReadString('\n')
		if err == io.EOF {
			return list, nil
		} else if err != nil {
			return nil, err
		}
		var o operation
		var size int64
		head := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 5)
		if len(head) != 5 {
			return nil, fmt.Errorf("not a record: %q", line)
		}
		o.what, o.name = head[0], head[4]
		if _, err := fmt.Sscan(strings.Join(head[1:4], " "), &o.at, &o.offset, &size); err != nil {
			return nil, fmt.Errorf("read the record %q: %w", line, err)
		}
		o.data = make([]byte, size)
		if _, err := io.ReadFull(r, o.data); errors.Is(err, io.ErrUnexpectedEOF) || err == io.EOF {
			return list, nil
		} else if err != nil {
			return nil, err
		}
		list = append(list, o)
	}
}

// disk is a folder on a disk that holds what was synced, and a queue of what was not. A name is
// synced with the folder, the content with the file.
type disk struct {
	names, synced map[string]*diskFile // now, and on the disk
}

type diskFile struct {
	content []byte      // on the disk
	queue   []operation // writes and truncations since
}

// newDisk reads a folder whose files are all synced.
func newDisk(dir string) (*disk, error) {
	d := &disk{names: map[string]*diskFile{}}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || strings.HasSuffix(path, "-shm") {
			return err
		}
		content, err := os.ReadFile(path)
		d.names[strings.TrimPrefix(path, dir+"/")] = &diskFile{content: content}
		return err
	})
	d.synced = maps.Clone(d.names)
	return d, err
}

// apply does what a program did.
func (d *disk) apply(o operation) {
	switch o.what {
	case "create":
		d.names[o.name] = &diskFile{}
	case "write", "truncate":
		if f := d.names[o.name]; f != nil { // else it was unlinked while it was open
			f.queue = append(f.queue, o)
		}
	case "sync":
		if f := d.names[o.name]; f != nil {
			for _, queued := range f.queue {
				f.content = change(f.content, queued)
			}
			f.queue = nil
		}
	case "syncdir":
		d.synced = maps.Clone(d.names)
	case "unlink":
		delete(d.names, o.name)
	case "rename":
		d.names[string(o.data)] = d.names[o.name]
		delete(d.names, o.name)
	}
}

// change applies a write or a truncation to a file's content.
func change(content []byte, o operation) []byte {
	end := o.offset + int64(len(o.data))
	if end > int64(len(content)) {
		content = append(content, make([]byte, end-int64(len(content)))...)
	}
	if o.what == "truncate" {
		return content[:o.offset]
	}
	copy(content[o.offset:], o.data)
	return content
}

// failures are the ways in which a power failure may treat what was not synced.
var failures = []string{"everything not synced is lost", "a random part is written", "torn at 512 bytes",
	"torn at 4096 bytes"}

// fail returns the files that are on the disk after a power failure.
func (d *disk) fail(how string, random *rand.Rand) map[string][]byte {
	none, sector := how == failures[0], map[string]int64{failures[2]: 512, failures[3]: 4096}[how]
	lucky := func() bool { return !none && random.IntN(2) == 0 }
	names := maps.Clone(d.synced)
	all := slices.Concat(slices.Collect(maps.Keys(d.names)), slices.Collect(maps.Keys(d.synced)))
	slices.Sort(all)
	for _, name := range slices.Compact(all) {
		if is, was := d.names[name], d.synced[name]; is != was && lucky() {
			if names[name] = is; is == nil {
				delete(names, name)
			}
		}
	}
	files := map[string][]byte{}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		content := bytes.Clone(names[name].content)
		for _, o := range names[name].queue {
			switch {
			case sector == 0 || o.what == "truncate":
				if lucky() {
					content = change(content, o)
				}
			default:
				for _, piece := range split(o, sector) {
					if lucky() {
						content = change(content, piece)
					}
				}
			}
		}
		files[name] = content
	}
	return files
}

// split divides a write at the borders of sectors.
func split(o operation, sector int64) (pieces []operation) {
	for len(o.data) > 0 {
		n := min(int64(len(o.data)), sector-o.offset%sector)
		pieces = append(pieces, operation{what: "write", offset: o.offset, data: o.data[:n]})
		o.offset, o.data = o.offset+n, o.data[n:]
	}
	return pieces
}

// put replaces a folder.
func put(dir string, files map[string][]byte) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, content := range files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return err
		}
	}
	return nil
}
