package papermap

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// sampled is the sample that a client reads of a list of rows.
func sampled(t *testing.T, rows string) UsageSample {
	t.Helper()
	address, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"data":{"usage":[`+rows+`]}}`)
	})
	s, err := newTestClient(t, address, ClientOptions{}).SampleUsage(t.Context(), firstPage)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSampleNamesTheFieldsThatRowsHave(t *testing.T) {
	for _, c := range []struct {
		rows          string
		fields        string // how many rows have each field, and its names
		other         []string
		good, useless int
	}{
		{``, "tenant 0 [] credits 0 [] requests 0 [] period 0 []", nil, 0, 0},
		{`{"tenant_id":"a","credits_consumed":1,"request_count":2,"period_start":"2025-01-01 00:00:00"},
			{"tenant":"b","credits":1,"period":"2025-01"}`,
			"tenant 2 [tenant_id tenant] credits 2 [credits_consumed credits] requests 1 [request_count] " +
				"period 2 [period_start period]", nil, 2, 0},
		{`{"tenant_id":"a","creditsUsed":1,"credits":null,"period":"2025-01"},7`,
			"tenant 1 [tenant_id] credits 0 [] requests 0 [] period 1 [period]",
			[]string{"creditsUsed"}, 0, 2},
		{`{"tenant_id":"a","credits":1,"total_credits":2,"period":"soon","plan":{"period":1}}`,
			"tenant 1 [tenant_id] credits 1 [total_credits] requests 0 [] period 1 [period]",
			[]string{"plan"}, 0, 1},
	} {
		s := sampled(t, c.rows)
		var fields []string
		for _, f := range s.Fields {
			fields = append(fields, fmt.Sprintf("%s %d %v", f.Name, f.Rows, f.Found))
		}
		if got := strings.Join(fields, " "); got != c.fields {
			t.Errorf("%s:\ngot  %s\nwant %s", c.rows, got, c.fields)
		}
		if diff := cmp.Diff(c.other, s.Other); diff != "" || len(s.Rows) != c.good ||
			len(s.Rejected) != c.useless {
			t.Errorf("%s: %d rows, %d rejected, other names (-want +got)\n%s",
				c.rows, len(s.Rows), len(s.Rejected), diff)
		}
	}
}

// The names of members are foreign text.
func TestSampleShowsOtherNamesSafely(t *testing.T) {
	row := `{"ak_canary_id":1,"bell\u0007":2,"` + strings.Repeat("long", 100) + `":3`
	for i := range 100 {
		row += fmt.Sprintf(`,"n%d":0`, i)
	}
	s := sampled(t, row+"}")
	if len(s.Other) != maxOtherNames || s.Other[0] != redacted || s.Other[1] != "bell" ||
		len([]rune(s.Other[2])) > maxOtherName {
		t.Errorf("other names %q", s.Other)
	}
}

func TestSampleIsReadOnce(t *testing.T) {
	address, seen := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"data":{}}`)
	})
	c := newTestClient(t, address, ClientOptions{})
	c.firstWait = time.Nanosecond
	_, err := c.SampleUsage(t.Context(), firstPage)
	if e := failed(t, err); !e.Unreadable || seen.Load() != 1 {
		t.Errorf("%v after %d requests", e, seen.Load())
	}
}

func TestAcceptedNamesAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/usage.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range sampled(t, "").Fields {
		row := fmt.Sprintf("| %s | `%s` |", f.Name, strings.Join(f.Accepted, "`, `"))
		if !strings.Contains(string(text), row) {
			t.Errorf("docs/usage.md has no row %s", row)
		}
	}
}
