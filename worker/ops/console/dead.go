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
)

// letters is a page of the dead letters, oldest first.
type letters struct {
	Code, Type, Tenant string
	List               []events.DeadLetter
	Next               uint64 // the first of the next page; 0: there is none
	First              bool
}

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
	var err error
	filter := events.DeadFilter{From: from, Code: l.Code, Type: l.Type, TenantID: l.Tenant}
	l.List, err = c.bus.DeadLetters(ctx, filter, perPage+1)
	if err != nil {
		return err
	}
	if len(l.List) > perPage {
		l.Next, l.List = l.List[perPage].Sequence, l.List[:perPage]
	}
	return c.show(rw, v, "dead", "Dead letters", l)
}

// letter is a dead letter as a page shows it.
type letter struct {
	events.DeadLetter
	Payload string
	Whole   bool // the payload is
	Headers [][2]string
	Advice  string
	Replay  bool // it can be replayed
}

// findLetter reads the dead letter that the address names.
func (c *Console) findLetter(v *visit) (events.DeadLetter, error) {
	sequence, err := strconv.ParseUint(v.PathValue("sequence"), 10, 64)
	if err != nil {
		return events.DeadLetter{}, refuse(http.StatusNotFound, "That is no dead letter’s number.")
	}
	d, err := c.bus.DeadLetter(v.Context(), sequence)
	if errors.Is(err, events.ErrNoDeadLetter) {
		err = refuse(http.StatusNotFound, "There is no dead letter %d: it was replayed or discarded.", sequence)
	}
	return d, err
}

func (c *Console) deadLetter(rw http.ResponseWriter, v *visit) error {
	d, err := c.findLetter(v)
	if err != nil {
		return err
	}
	l := letter{DeadLetter: d, Advice: advice(d), Replay: d.Truncated == ""}
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

// advice says what one can do about a dead letter here.
func advice(d events.DeadLetter) string {
	switch {
	case d.Truncated != "":
		return "It was too large to be kept whole and cannot be replayed. " +
			"Publish the event again from its source, then discard this."
	case d.SideEffect == "done" || d.SideEffect == "maybe":
		return "Papermap may have made a dashboard for it: look under Attention. " +
			"Then put right what the error names, and replay."
	case strings.HasPrefix(d.Code, "INVALID_"):
		return "The event itself is wrong, and a replay would end here again. " +
			"Let its publisher send a right one, then discard this."
	}
	return "Fix the cause of the error, then replay."
}
