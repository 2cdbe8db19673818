package console

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"papermap-worker/events"
	"papermap-worker/worker"
)

// letters is a page of the dead letters, oldest first.
type letters struct {
	Code, Type, Tenant string
	List               []events.DeadLetter
	Next               uint64 // the first of the next page; 0: there is none
	First              bool
	Total              int    // that match, up to maxChosen
	Last               uint64 // the newest of those
}

const (
	maxChosen    = 1000 // dead letters that one action is about
	lettersShown = 25   // on a page
)

func (c *Console) deadLetters(rw http.ResponseWriter, v *visit) error {
	q := v.URL.Query()
	l := letters{Code: q.Get("code"), Type: q.Get("type"), Tenant: q.Get("tenant")}
	from, _ := strconv.ParseUint(q.Get("from"), 10, 64) // nonsense is the beginning
	l.First = from == 0
	if err := c.bus.Connected(); err != nil {
		return refuse(http.StatusServiceUnavailable, "The dead letters are in NATS: %v.", err)
	}
	ctx, cancel := context.WithTimeout(v.Context(), 5*natsTime)
	defer cancel()
	filter := events.DeadFilter{Code: l.Code, Type: l.Type, TenantID: l.Tenant}
	all, err := c.matching(ctx, filter, maxChosen)
	if err != nil {
		return err
	}
	if l.Total = len(all); l.Total > 0 {
		l.Last = all[l.Total-1]
	}
	filter.From = from
	l.List, err = c.bus.DeadLetters(ctx, filter, lettersShown+1)
	if err != nil {
		return err
	}
	if len(l.List) > lettersShown {
		l.Next, l.List = l.List[lettersShown].Sequence, l.List[:lettersShown]
	}
	return c.show(rw, v, "dead", "Dead letters", l)
}

// matching lists the sequences of dead letters, oldest first.
func (c *Console) matching(ctx context.Context, f events.DeadFilter, limit int) (list []uint64, err error) {
	err = c.bus.EachDeadLetter(ctx, f, limit, func(d events.DeadLetter) error {
		list = append(list, d.Sequence)
		return nil
	})
	return list, err
}

// letter is a dead letter as a page shows it.
type letter struct {
	events.DeadLetter
	Payload string
	Whole   bool // the payload is
	Headers [][2]string
	Advice  string
	Advised bool // to replay it
}

// findLetter reads the dead letter that the address names.
func (c *Console) findLetter(v *visit) (events.DeadLetter, error) {
	sequence, err := strconv.ParseUint(v.PathValue("sequence"), 10, 64)
	if err != nil {
		return events.DeadLetter{}, refuse(http.StatusNotFound, "That is no dead letter’s number.")
	}
	d, err := c.bus.DeadLetter(v.Context(), sequence)
	if errors.Is(err, events.ErrNoDeadLetter) {
		err = refuse(http.StatusNotFound,
			"There is no dead letter %d: it was replayed or discarded.", sequence)
	}
	return d, err
}

func (c *Console) deadLetter(rw http.ResponseWriter, v *visit) error {
	d, err := c.findLetter(v)
	if err != nil {
		return err
	}
	l := letter{DeadLetter: d}
	l.Advice, l.Advised = worker.ExplainDeadLetter(d)
	l.Payload, l.Whole = events.Layout(d.Data)
	for name, values := range d.Header {
		if !strings.HasPrefix(name, "Papermap-") || strings.HasPrefix(name, "Papermap-Original-") {
			l.Headers = append(l.Headers, [2]string{name, strings.Join(values, ", ")})
		}
	}
	slices.SortFunc(l.Headers, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	return c.show(rw, v, "letter", "Dead letter "+strconv.FormatUint(d.Sequence, 10), l)
}

// deadLetterData is the data of a dead letter as it is, to be saved.
func (c *Console) deadLetterData(rw http.ResponseWriter, v *visit) error {
	d, err := c.findLetter(v)
	if err != nil {
		return err
	}
	rw.Header().Set("Content-Type", "application/octet-stream")
	rw.Header().Set("Content-Disposition", fmt.Sprintf(`attachment; filename="dead-letter-%d"`, d.Sequence))
	_, _ = rw.Write(d.Data) // the visitor may have left
	return nil
}
