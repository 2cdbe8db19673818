package papermap

import (
	"bytes"
	"context"
	"net/http"
	"slices"

	"github.com/go-json-experiment/json/jsontext"
)

const (
	maxOtherNames = 12 // names of UsageSample.Other
	maxOtherName  = 40 // code points of one of them
)

// UsageSample is one page of usage, and the field names in it. The API does not document them, so
// only an answer shows whether they are among those that are accepted.
type UsageSample struct {
	UsagePage
	Fields []SampledField // tenant, credits, requests and period
	Other  []string       // names of the rows' other members, one line each, at most 12
}

// SampledField is a field of usage rows, and the names that the rows of a page have for it.
type SampledField struct {
	Name     string
	Accepted []string // best first
	Found    []string // those that were used
	Rows     int      // how many rows have it
}

// SampleUsage reads one page of usage, once. Its errors are those of [Client.Usage].
func (c *Client) SampleUsage(ctx context.Context, q UsageQuery) (UsageSample, error) {
	var sample UsageSample
	failed := c.call(ctx, request{
		route: "usage", method: http.MethodGet, path: c.usagePath(q), maxBody: maxUsageBody, once: true,
		read: func(a answer) (err error) {
			sample, err = sampleUsage(a, q)
			return err
		},
	})
	if failed != nil {
		return UsageSample{}, failed
	}
	return sample, nil
}

func sampleUsage(a answer, q UsageQuery) (UsageSample, error) {
	page, err := storableUsage(a, q)
	if err != nil {
		return UsageSample{}, err
	}
	s := UsageSample{UsagePage: page, Fields: []SampledField{
		{Name: "tenant", Accepted: tenantNames}, {Name: "credits", Accepted: creditsNames},
		{Name: "requests", Accepted: requestsNames}, {Name: "period", Accepted: periodNames},
	}}
	top := readMembers(a.body)
	list, _, _ := findUsage(top)
	hide := a.hide()
	err = readList(list, func(_ int, row jsontext.Value) error {
		m := readMembers(row)
		for i := range s.Fields {
			s.Fields[i].look(m)
		}
		s.addOther(row, hide)
		return nil
	})
	return s, err
}

// look counts a row that has the field, and notes the name that it has there.
func (f *SampledField) look(row members) {
	for _, name := range f.Accepted {
		if row.first([]string{name}) == nil {
			continue
		}
		f.Rows++
		if !slices.Contains(f.Found, name) {
			f.Found = append(f.Found, name)
		}
		return
	}
}

// addOther notes the names of a row's members that are no field's.
func (s *UsageSample) addOther(row jsontext.Value, hide redactor) {
	if row.Kind() != '{' {
		return
	}
	d := jsontext.NewDecoder(bytes.NewReader(row), lenient)
	_, _ = d.ReadToken()
	for d.PeekKind() == '"' && len(s.Other) < maxOtherNames {
		token, _ := d.ReadToken()
		name := token.String() // now, as the token lives until the next read
		_ = d.SkipValue()
		accepted := func(f SampledField) bool { return slices.Contains(f.Accepted, name) }
		if slices.ContainsFunc(s.Fields, accepted) {
			continue
		}
		if name = oneLine(name, hide, maxOtherName); !slices.Contains(s.Other, name) {
			s.Other = append(s.Other, name)
		}
	}
}
