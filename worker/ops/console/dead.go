package console

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

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
	Headers [][2]string
	Advice  string
	Replay  bool // it can be replayed
}

func (c *Console) deadLetter(rw http.ResponseWriter, v *visit) error {
	sequence, err := strconv.ParseUint(v.PathValue("sequence"), 10, 64)
	if err != nil {
		return refuse(http.StatusNotFound, "That is no dead letter’s number.")
	}
	d, err := c.bus.DeadLetter(v.Context(), sequence)
	if errors.Is(err, events.ErrNoDeadLetter) {
		return refuse(http.StatusNotFound, "There is no dead letter %d: it was replayed or discarded.",
			sequence)
	}
	if err != nil {
		return err
	}
	l := letter{DeadLetter: d, Payload: readable(d.Data), Advice: advice(d), Replay: d.Truncated == ""}
	for name, values := range d.Header {
		if !strings.HasPrefix(name, "Papermap-") || strings.HasPrefix(name, "Papermap-Original-") {
			l.Headers = append(l.Headers, [2]string{name, strings.Join(values, ", ")})
		}
	}
	slices.SortFunc(l.Headers, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	return c.show(rw, v, "letter", "Dead letter "+strconv.FormatUint(sequence, 10), l)
}

// readable indents JSON; any other text stays as it is.
func readable(data []byte) string {
	value := jsontext.Value(bytes.Clone(data))
	lax := json.JoinOptions(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if value.Indent(lax, jsontext.WithIndent("  ")) == nil {
		data = value
	}
	return strings.ToValidUTF8(string(data), "�")
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
	return "Put right what the error names, then replay."
}
