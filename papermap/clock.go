package papermap

import (
	"net/http"
	"strconv"
	"time"
)

// clock is what the server's Date headers say of the host's clock. A cache between us and the API may answer with an old
// Date, and one wrong Date must not stop a worker's tokens: what is believed changes only when a second, later Date agrees.
type clock struct {
	latest   reading   // also what a cache says: signatures are made anew by it at once
	since    time.Time // when its Date first came
	believed reading   // zero while nothing is known
	doubt    reading   // contradicts what is believed, until another agrees; zero: none
}

// reading is one Date.
type reading struct {
	date time.Time
	at   time.Time // by the host's clock
}

func (r reading) skew() time.Duration { return r.date.Sub(r.at) }

const (
	sameSkew  = 5 * time.Second // two readings agree: a Date is cut off to the second, and answers travel
	staleDate = 2 * time.Second // a Date that has not moved for so long is a cache's
)

func (r reading) agrees(o reading) bool {
	return !o.at.IsZero() && (r.skew()-o.skew()).Abs() <= sameSkew
}

// note takes a Date that came just now.
func (c *clock) note(date, now time.Time) {
	again := date.Equal(c.latest.date)
	c.latest = reading{date, now}
	if again {
		if now.Sub(c.since) >= staleDate {
			for _, r := range []*reading{&c.believed, &c.doubt} {
				if r.date.Equal(date) {
					*r = reading{}
				}
			}
		}
		return
	}
	c.since = now
	switch {
	case c.believed.at.IsZero(), c.latest.agrees(c.believed), c.latest.agrees(c.doubt) && now.Sub(c.doubt.at) >= time.Second:
		c.believed, c.doubt = c.latest, reading{}
	case !c.latest.agrees(c.doubt):
		c.doubt = c.latest
	}
}

// serverTime reads Date, and Age, which is how long a cache has kept the answer.
func serverTime(header http.Header) (time.Time, bool) {
	date, err := http.ParseTime(header.Get("Date"))
	if err != nil {
		return time.Time{}, false
	}
	if age, err := strconv.ParseInt(header.Get("Age"), 10, 32); err == nil && age > 0 {
		date = date.Add(time.Duration(age) * time.Second)
	}
	return date, true
}

// ClockSkew returns the server's clock minus ours, to about a second, from answers that had a Date.
func (c *Client) ClockSkew() (skew time.Duration, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.clock.believed.skew(), !c.clock.believed.at.IsZero()
}

// ClockReading says when the newest Date came by the host's clock, the zero time if none did, and whether it contradicts
// [Client.ClockSkew], so that another request is worth while.
func (c *Client) ClockReading() (at time.Time, doubtful bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.clock.latest.at, !c.clock.doubt.at.IsZero()
}

// noteDate keeps what an answer says of the clock and returns the server's time, ours if the answer has none.
func (c *Client) noteDate(header http.Header) time.Time {
	now := c.o.Now()
	date, ok := serverTime(header)
	if !ok {
		return now
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clock.note(date, now)
	return date
}

// signingTime is the server's clock as far as we know better than the host.
func (c *Client) signingTime() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.correcting {
		return c.o.Now().Add(min(max(c.clock.latest.skew(), -maxCorrection), maxCorrection))
	}
	return c.o.Now()
}
