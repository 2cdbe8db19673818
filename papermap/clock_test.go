package papermap

import (
	"net/http"
	"testing"
	"time"
)

// One Date that contradicts the others is not believed, be it a cache's or a mistake; two that agree are.
func TestTheClockIsBelievedOnlyWhenADateIsConfirmed(t *testing.T) {
	const host = 1_735_689_600 // seconds
	type step struct {
		at, date float64 // seconds after host
		age      string
		skew     time.Duration
		known    bool
		doubtful bool
	}
	for name, steps := range map[string][]step{
		"the first is believed, as nothing contradicts it": {{0, 600, "", 600 * time.Second, true, false}},
		"it follows a slow drift":                          {{0, 0, "", 0, true, false}, {10, 13, "", 3 * time.Second, true, false}, {20, 27, "", 7 * time.Second, true, false}},
		"one wrong date": {
			{0, 0, "", 0, true, false}, {10, -590, "", 0, true, true}, {20, 20, "", 0, true, false}, {30, -570, "", 0, true, true},
		},
		"the host's clock was set": {{0, 0, "", 0, true, false}, {10, 610, "", 0, true, true}, {11, 611, "", 600 * time.Second, true, false}},
		"two at once confirm nothing": {
			{0, 0, "", 0, true, false}, {10, 610, "", 0, true, true}, {10.5, 611, "", 0, true, true}, {12, 612, "", 600 * time.Second, true, false},
		},
		"a cache that repeats its date": {
			{0, 0, "", 0, true, false}, {10, -590, "", 0, true, true}, {11, -590, "", 0, true, true}, {13, -590, "", 0, true, false}, {40, -590, "", 0, true, false},
		},
		"a cache was the first to answer": {{0, -600, "", -600 * time.Second, true, false}, {30, -600, "", 0, false, false}, {60, 60, "", 0, true, false}},
		"a cache that tells its age":      {{0, 0, "", 0, true, false}, {10, -590, "600", 0, true, false}},
	} {
		t.Run(name, func(t *testing.T) {
			var now time.Time
			c := NewClient(Workspace{}, ClientOptions{Now: func() time.Time { return now }})
			moment := func(seconds float64) time.Time { return time.Unix(host, int64(seconds*1e9)).UTC() }
			for i, s := range steps {
				now = moment(s.at)
				header := http.Header{"Date": {moment(s.date).Format(http.TimeFormat)}}
				if s.age != "" {
					header.Set("Age", s.age)
				}
				c.noteDate(header)
				skew, known := c.ClockSkew()
				if _, doubtful := c.ClockReading(); known != s.known || known && (skew-s.skew).Abs() > time.Second || doubtful != s.doubtful {
					t.Errorf("step %d: skew %v, known %v, doubtful %v, want %v, %v, %v", i+1, skew, known, doubtful, s.skew, s.known, s.doubtful)
				}
			}
		})
	}
}
