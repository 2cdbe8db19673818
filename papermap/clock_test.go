package papermap

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// One Date that contradicts the others changes nothing, be it a cache's or a mistake; two that
// agree do.
func TestClockSkewChangesOnlyWhenASecondDateAgrees(t *testing.T) {
	const host = 1_735_689_600 // seconds
	type step struct {
		at, date float64 // seconds after host
		age      string
		skew     time.Duration
		known    bool
		doubtful bool
	}
	for name, steps := range map[string][]step{
		"the first counts, as nothing contradicts it": {{0, 600, "", 600 * time.Second, true, false}},
		"it follows a slow drift": {{0, 0, "", 0, true, false},
			{10, 13, "", 3 * time.Second, true, false}, {20, 27, "", 7 * time.Second, true, false}},
		"one wrong date": {
			{0, 0, "", 0, true, false}, {10, -590, "", 0, true, true}, {20, 20, "", 0, true, false},
			{30, -570, "", 0, true, true},
		},
		"the host's clock was set": {{0, 0, "", 0, true, false}, {10, 610, "", 0, true, true},
			{11, 611, "", 600 * time.Second, true, false}},
		"two at once confirm nothing": {
			{0, 0, "", 0, true, false}, {10, 610, "", 0, true, true}, {10.5, 611, "", 0, true, true},
			{12, 612, "", 600 * time.Second, true, false},
		},
		"a cache that repeats its date": {
			{0, 0, "", 0, true, false}, {10, -590, "", 0, true, true}, {11, -590, "", 0, true, true},
			{13, -590, "", 0, true, false}, {40, -590, "", 0, true, false},
		},
		"a cache was the first to answer": {{0, -600, "", -600 * time.Second, true, false},
			{30, -600, "", 0, false, false}, {60, 60, "", 0, true, false}},
		"a cache that tells its age": {{0, 0, "", 0, true, false}, {10, -590, "600", 0, true, false}},
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
				c.addDate(header)
				skew, known := c.ClockSkew()
				if _, doubtful := c.ClockReading(); known != s.known ||
					known && (skew-s.skew).Abs() > time.Second || doubtful != s.doubtful {
					t.Errorf("step %d: skew %v, known %v, doubtful %v, want %v, %v, %v", i+1, skew, known,
						doubtful, s.skew, s.known, s.doubtful)
				}
			}
		})
	}
}

func TestExpiredSignatureIsMadeAgainByTheServersClock(t *testing.T) {
	const start = 1735689600
	ours, servers := time.Unix(start, 0), time.Unix(start, 0).Add(time.Hour)
	address, untils := expiryServer(t, func() time.Time { return servers })
	c := newTestClient(t, address, ClientOptions{Now: func() time.Time { return ours }})
	if _, known := c.ClockSkew(); known {
		t.Error("skew known before any answer")
	}
	step := func(what string, want ...int64) {
		t.Helper()
		if _, err := c.CreateDashboard(t.Context(), anyDashboard); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if got := untils(); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: valid until %v, want %v", what, got, want)
		}
	}
	step("an hour behind", start+300, start+3600+300)
	if skew, known := c.ClockSkew(); skew != time.Hour || !known {
		t.Errorf("skew %v, %v", skew, known)
	}
	step("the correction is kept", start+3600+300)
	ours = servers
	step("the host's clock is set", start+7200+300)
	step("the correction follows", start+3600+300)
}

func TestDateAloneDoesNotChangeWhatIsSigned(t *testing.T) {
	const start = 1735689600
	address, untils := expiryServer(t, func() time.Time { return time.Unix(start-3600, 0) })
	c := newTestClient(t, address, ClientOptions{Now: func() time.Time { return time.Unix(start, 0) }})
	for range 2 {
		if err := c.Probe(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if got := untils(); got[1] != start+300 {
		t.Errorf("valid until %v", got)
	}
	if skew, _ := c.ClockSkew(); skew != -time.Hour {
		t.Errorf("skew %v", skew)
	}
}

func TestProbeAlsoSignsAgain(t *testing.T) {
	address, untils := expiryServer(t, func() time.Time { return time.Unix(1735689600+3600, 0) })
	c := newTestClient(t, address, ClientOptions{Now: func() time.Time { return time.Unix(1735689600, 0) }})
	if err := c.Probe(t.Context()); err != nil || len(untils()) != 2 {
		t.Error(err)
	}
}

func TestSignatureThatStaysExpiredIsLostCredentialsAndNamesTheSkew(t *testing.T) {
	const start = 1735689600
	for _, row := range []struct {
		skew    time.Duration // 0: the server sends no Date
		until   int64         // what is signed the second time
		message string
	}{
		{30 * time.Hour, start + 86400 + 300, "30h0m0s"},
		{0, start + 300, "set the host's clock"},
	} {
		address, untils := expiryServer(t, func() time.Time {
			if row.skew == 0 {
				return time.Time{}
			}
			return time.Unix(start, 0).Add(row.skew)
		})
		c := newTestClient(t, address, ClientOptions{Now: func() time.Time { return time.Unix(start, 0) }})
		_, err := c.CreateDashboard(t.Context(), anyDashboard)
		e := failed(t, err)
		if e == nil || e.Class != Credentials || e.Code != "TOKEN_EXPIRED" ||
			!strings.Contains(e.Message, row.message) ||
			!strings.Contains(e.Message, "set the host's clock") {
			t.Errorf("skew %v: %v", row.skew, err)
		}
		if got := untils(); len(got) != 2 || got[1] != row.until {
			t.Errorf("skew %v: valid until %v, want two, the last %d", row.skew, got, row.until)
		}
	}
}

// expiryServer refuses what has expired by its own clock and keeps what the accepted and refused
// requests were valid until.
func expiryServer(t *testing.T, clock func() time.Time) (address string, untils func() []int64) {
	t.Helper()
	var mu sync.Mutex
	var all []int64
	address, _ = serve(t, func(w http.ResponseWriter, r *http.Request) {
		until, err := strconv.ParseInt(r.Header.Get("X-Valid-Until"), 10, 64)
		if err != nil || r.Header.Get("X-Signature") != Sign(NewSecret("sk_canary_secret"), "ws-1", until) {
			t.Errorf("signature of %q is wrong", r.Header.Get("X-Valid-Until"))
		}
		mu.Lock()
		defer mu.Unlock()
		all = append(all, until)
		w.Header()["Date"] = nil
		if now := clock(); !now.IsZero() {
			w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
			if until > now.Unix() {
				_, _ = io.WriteString(w, created)
				return
			}
		}
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"error":"Token expired","code":"TOKEN_EXPIRED","status":401}`)
	})
	return address, func() []int64 {
		mu.Lock()
		defer mu.Unlock()
		seen := all
		all = nil
		return seen
	}
}
