package papermap

import (
	"net/http"
	"strconv"
	"time"
)

// clock estimates the server's clock from the Date headers of its answers. A cache on the way may
// answer with an old Date, and one wrong Date must not stop a worker's tokens. So the estimate
// changes only when a second, later Date agrees.
type clock struct {
	latest    dateReading // the newest, possibly a cache's; an expired signature is redone by it at once
	since     time.Time   // when the Date of latest was first seen
	confirmed dateReading // the estimate; zero while nothing is known
	candidate dateReading // contradicts confirmed until another agrees with it; zero: none
}

// dateReading is one Date header.
type dateReading struct {
	date time.Time // the server's clock
	at   time.Time // the host's clock when it came
}

func (r dateReading) skew() time.Duration { return r.date.Sub(r.at) }

const (
	sameSkew  = 5 * time.Second // two readings agree: a Date has whole seconds, and answers take time
	staleDate = 2 * time.Second // a Date that has not moved for this long is a cache's
)

func (r dateReading) agrees(o dateReading) bool {
	return !o.at.IsZero() && (r.skew()-o.skew()).Abs() <= sameSkew
}

// add records a Date that arrived just now.
func (c *clock) add(date, now time.Time) {
	repeated := date.Equal(c.latest.date)
	c.latest = dateReading{date, now}
	if repeated {
		if now.Sub(c.since) >= staleDate {
			c.forget(date)
		}
		return
	}
	c.since = now
	confirms := c.latest.agrees(c.candidate) && now.Sub(c.candidate.at) >= time.Second
	switch {
	case c.confirmed.at.IsZero(), c.latest.agrees(c.confirmed), confirms:
		c.confirmed, c.candidate = c.latest, dateReading{}
	case !c.latest.agrees(c.candidate):
		c.candidate = c.latest
	}
}

// forget drops a Date that turned out to come from a cache.
func (c *clock) forget(date time.Time) {
	for _, r := range []*dateReading{&c.confirmed, &c.candidate} {
		if r.date.Equal(date) {
			*r = dateReading{}
		}
	}
}

// serverTime reads the Date header, plus Age: how many seconds a cache has held the answer.
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

// ClockSkew returns the server's clock minus the host's, to about a second. known is false until an
// answer has had a Date.
func (c *Client) ClockSkew() (skew time.Duration, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.clock.confirmed.skew(), !c.clock.confirmed.at.IsZero()
}

// ClockReading returns when the newest Date arrived, by the host's clock, or the zero time if none
// did. doubtful means that it contradicts [Client.ClockSkew]: another request would show which is
// right.
func (c *Client) ClockReading() (at time.Time, doubtful bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.clock.latest.at, !c.clock.candidate.at.IsZero()
}

// addDate records an answer's Date and returns the server's time, or the host's if the answer has
// none.
func (c *Client) addDate(header http.Header) time.Time {
	now := c.o.Now()
	date, ok := serverTime(header)
	if !ok {
		return now
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clock.add(date, now)
	return date
}

// signingTime returns the host's clock, corrected by the server's once the server has rejected a
// signature as expired.
func (c *Client) signingTime() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.correcting {
		return c.o.Now().Add(min(max(c.clock.latest.skew(), -maxCorrection), maxCorrection))
	}
	return c.o.Now()
}
