package console

import (
	"bytes"
	"cmp"
	"context"
	"math/bits"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"papermap-worker/repo"
)

// index finds tenants by any part of their ids and names, and counts and sorts what it finds. It is
// in memory because no index of a database does that for a part which many tenants have: a million
// matches would have to be read to be counted. It is a text of all ids and names, 50 to 100
// bytes for each tenant.
type index struct {
	read   time.Time // when reading it began
	whole  bool      // it has all tenants
	text   []byte    // for each tenant: id and name in lower case, each with an end after it
	starts []uint32  // where each tenant begins in text, and its end
	ids    []byte
	idAt   []uint32
	status []uint8             // places in repo.Statuses
	origin []uint8             // places in repo.Origins, from 1; 0: none of them
	orders map[string][]uint32 // tenants by name and by when they changed
	counts map[repo.Status]int // of each status
}

const (
	endOfText  = 0xff // is in no UTF-8
	indexRows  = 2_000_000
	indexBytes = 400 << 20
	indexPage  = 20_000 // tenants of one query
)

// sorts are the orders that a list of tenants may have; "-" before one turns it round.
var sorts = []string{"id", "name", "changed", "-id", "-name", "-changed"}

// readIndex reads all tenants, up to the limits above.
func readIndex(ctx context.Context, db *repo.DB, now time.Time) (*index, error) {
	x := &index{read: now, whole: true, orders: map[string][]uint32{}, counts: map[repo.Status]int{}}
	var changed []int64
	statuses, origins, after := repo.Statuses(), repo.Origins(), ""
	for {
		rows, err := db.TenantNames(ctx, after, indexPage)
		if err != nil {
			return nil, err
		}
		for _, r := range rows {
			if len(x.status) == indexRows || len(x.text)+len(x.ids) > indexBytes {
				x.whole = false
				break
			}
			x.starts, x.idAt = append(x.starts, uint32(len(x.text))), append(x.idAt, uint32(len(x.ids)))
			x.text = append(append(x.text, strings.ToLower(r.TenantID)...), endOfText)
			x.text = append(append(x.text, strings.ToLower(shortName(r.Title))...), endOfText)
			x.ids = append(x.ids, r.TenantID...)
			x.status = append(x.status, uint8(max(0, slices.Index(statuses, r.Status))))
			x.origin = append(x.origin, uint8(1+slices.Index(origins, r.Origin)))
			x.counts[r.Status]++
			changed = append(changed, r.UpdatedAt.UnixNano())
		}
		if len(rows) < indexPage || !x.whole {
			break
		}
		after = rows[len(rows)-1].TenantID
	}
	x.starts, x.idAt = append(x.starts, uint32(len(x.text))), append(x.idAt, uint32(len(x.ids)))
	x.order("name", func(a, b uint32) int { return bytes.Compare(x.name(a), x.name(b)) })
	x.order("changed", func(a, b uint32) int { return cmp.Compare(changed[b], changed[a]) })
	return x, nil
}

func (x *index) order(name string, compare func(a, b uint32) int) {
	list := make([]uint32, len(x.status))
	for i := range list {
		list[i] = uint32(i)
	}
	slices.SortFunc(list, func(a, b uint32) int { return cmp.Or(compare(a, b), cmp.Compare(a, b)) })
	x.orders[name] = list
}

func (x *index) name(i uint32) []byte {
	row := x.text[x.starts[i] : x.starts[i+1]-1]
	return row[bytes.IndexByte(row, endOfText)+1:]
}

func (x *index) id(i uint32) string { return string(x.ids[x.idAt[i]:x.idAt[i+1]]) }

// wanted selects tenants. What is empty selects all.
type wanted struct {
	part   string // of the id or the name, in any case
	status repo.Status
	origin repo.Origin
}

// find returns the ids of one part of the tenants that match, and how many do.
func (x *index) find(w wanted, sort string, skip, limit int) (ids []string, total int) {
	found := x.match(w)
	for _, word := range found {
		total += bits.OnesCount64(word)
	}
	sort, backwards := strings.CutPrefix(sort, "-")
	n, order := len(x.status), x.orders[sort]
	for place := 0; place < n && len(ids) < limit; place++ {
		i := uint32(place)
		if backwards {
			i = uint32(n - 1 - place)
		}
		if order != nil {
			i = order[i]
		}
		switch {
		case found[i/64]&(1<<(i%64)) == 0:
		case skip > 0:
			skip--
		default:
			ids = append(ids, x.id(i))
		}
	}
	return ids, total
}

// match returns a bit for each tenant that matches. Every processor looks at a part of them.
func (x *index) match(w wanted) []uint64 {
	n := len(x.status)
	found := make([]uint64, n/64+1)
	each := (n/runtime.GOMAXPROCS(0)/64 + 1) * 64 // whole words, so that no two share one
	var wait sync.WaitGroup
	for from := 0; from < n; from += each {
		wait.Go(func() { x.matchRows(found, w, from, min(n, from+each)) })
	}
	wait.Wait()
	return found
}

func (x *index) matchRows(found []uint64, w wanted, row, end int) {
	part := []byte(strings.ToLower(w.part))
	status, origin := slices.Index(repo.Statuses(), w.status), 1+slices.Index(repo.Origins(), w.origin)
	for row < end {
		at := bytes.Index(x.text[x.starts[row]:x.starts[end]], part)
		if at < 0 {
			return
		}
		place := x.starts[row] + uint32(at)
		for x.starts[row+1] <= place {
			row++
		}
		if (status < 0 || int(x.status[row]) == status) && (origin == 0 || int(x.origin[row]) == origin) {
			found[row/64] |= 1 << (row % 64)
		}
		row++
	}
}

// indexes keeps the index while people search. It is read when the first one asks, then again when
// it is older than indexAge and than ten times what reading it took. Who asks waits for that up to
// indexWait, and gets what there is.
type indexes struct {
	mu      sync.Mutex
	now     *index
	took    time.Duration
	reading chan struct{} // closed when it is read; nil: it is not being read
	drop    *time.Timer
}

const (
	indexAge   = time.Second
	indexWait  = 2 * time.Second // for the first
	indexBrief = 50 * time.Millisecond
	indexKept  = 10 * time.Minute // after the last search
	indexTime  = 2 * time.Minute  // to read it
)

// get returns the index; nil if it is not read yet.
func (s *indexes) get(ctx context.Context, c *Console) *index {
	s.mu.Lock()
	if s.drop == nil {
		s.drop = time.AfterFunc(indexKept, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.now = nil
		})
	}
	s.drop.Reset(indexKept)
	wait := indexWait
	if s.now != nil {
		wait = indexBrief
	}
	if s.reading == nil && (s.now == nil || c.now().Sub(s.now.read) > max(indexAge, 10*s.took)) {
		s.reading = make(chan struct{})
		go s.refresh(c)
	}
	if s.now != nil && s.took > indexBrief {
		wait = 0
	}
	reading := s.reading
	s.mu.Unlock()
	if reading != nil && wait > 0 {
		enough := time.NewTimer(wait)
		defer enough.Stop()
		select {
		case <-reading:
		case <-enough.C:
		case <-ctx.Done():
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *indexes) refresh(c *Console) {
	ctx, cancel := context.WithTimeout(c.life, indexTime)
	defer cancel()
	started := c.now()
	x, err := readIndex(ctx, c.db, started)
	if err != nil && c.life.Err() == nil {
		c.log.Error("the tenants cannot be read for searches", "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.now, s.took = x, c.now().Sub(started)
	}
	close(s.reading)
	s.reading = nil
}
