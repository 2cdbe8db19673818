package cli

import (
	"hash/maphash"
	"math/bits"
)

// importIDs are the ids of a file with the lines that name them first. Hashes stand for the ids, so
// that a million of them fit in memory; with the seed, nobody can make two that collide.
type importIDs struct {
	seed                maphash.Seed
	tenants, dashboards lineTable
}

func newImportIDs() *importIDs { return &importIDs{seed: maphash.MakeSeed()} }

// add adds a row's ids, and makes a row invalid that names one again.
func (s *importIDs) add(r *importRow) {
	if r.broken {
		return
	}
	if r.TenantID != "" {
		s.addID(r, &s.tenants, "tenant_id", r.TenantID)
	}
	if r.DashboardID != "" {
		s.addID(r, &s.dashboards, "dashboard_id", r.DashboardID, r.WorkspaceID)
	}
}

func (s *importIDs) addID(r *importRow, ids *lineTable, field string, id ...string) {
	if first := ids.add(s.hash(id...), uint32(r.line)); first != 0 {
		r.problem(r.of(field), "%q is the same as in line %d", field, first)
	}
}

func (s *importIDs) hash(texts ...string) uint64 {
	var h maphash.Hash
	h.SetSeed(s.seed)
	for _, text := range texts {
		_, _ = h.WriteString(text)
		_ = h.WriteByte(0)
	}
	return h.Sum64()
}

// has reports whether the file names the tenant.
func (s *importIDs) has(tenantID string) bool { return s.tenants.line(s.hash(tenantID)) != 0 }

// lineTable maps hashes to lines, which begin at 1. It takes about 16 bytes for each, where a map
// takes 26, and grows in small parts.
type lineTable [256]lineShard

// lineShard is the part of the hashes with the same last byte: a table with linear probing.
type lineShard struct {
	hashes []uint64
	lines  []uint32 // 0: free
	used   int
}

// add adds a hash. It returns the line that was added under it before, 0 if there was none.
func (t *lineTable) add(hash uint64, line uint32) (first uint32) {
	s := &t[hash&0xff]
	if s.used*8 >= len(s.lines)*7 {
		s.grow()
	}
	i := s.find(hash)
	if s.lines[i] != 0 {
		return s.lines[i]
	}
	s.hashes[i], s.lines[i] = hash, line
	s.used++
	return 0
}

// line returns the line that was added under a hash, 0 if there was none.
func (t *lineTable) line(hash uint64) uint32 {
	s := &t[hash&0xff]
	if s.used == 0 {
		return 0
	}
	return s.lines[s.find(hash)]
}

// find returns the place of a hash, or the free one where it belongs.
func (s *lineShard) find(hash uint64) int {
	place, _ := bits.Mul64(hash, uint64(len(s.lines)))
	i := int(place)
	for s.lines[i] != 0 && s.hashes[i] != hash {
		if i++; i == len(s.lines) {
			i = 0
		}
	}
	return i
}

func (s *lineShard) grow() {
	old := *s
	size := max(16, len(old.lines)*5/4)
	s.hashes, s.lines = make([]uint64, size), make([]uint32, size)
	for i, line := range old.lines {
		if line != 0 {
			place := s.find(old.hashes[i])
			s.hashes[place], s.lines[place] = old.hashes[i], line
		}
	}
}
