package papermap

import (
	"math/big"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

func TestUsageFieldIsReadFromTheFirstAliasThatHasAValue(t *testing.T) {
	const rest = `"tenant_id":"a","credits_consumed":1,"request_count":2,"period":"2025-01"`
	usual := UsageRow{"a", "2025-01", "1", 2}
	with := func(change func(*UsageRow)) UsageRow {
		r := usual
		change(&r)
		return r
	}
	tenant := with(func(r *UsageRow) { r.TenantID = "t" })
	credits := with(func(r *UsageRow) { r.Credits = "5" })
	requests := with(func(r *UsageRow) { r.Requests = 7 })
	may := with(func(r *UsageRow) { r.Period = "2025-05" })
	none := with(func(r *UsageRow) { r.Requests = 0 })
	for _, row := range []struct {
		sent string
		want UsageRow
	}{
		{`{` + rest + `}`, usual},
		{`{"tenant":"t","credits":1,"requests":2,"start":"2025-01-01"}`, tenant},
		{`{"external_tenant_id":"t","credits":1,"requests":2,"start":"2025-01-01"}`, tenant},
		{`{"external_tenant_id":"x","tenant":"x","tenant_id":"t","credits":1,"requests":2,"start":"2025-01"}`,
			tenant},
		{`{"tenant_id":null,"tenant":"t","credits":1,"requests":2,"start":"2025-01"}`, tenant},
		{`{"tenant_id":"x","tenant_id":"t","credits":1,"requests":2,"start":"2025-01"}`, tenant},
		{`{"tenant\u005fid":"\u0074","credits":1,"requests":2,"start":"2025-01"}`, tenant},
		{`{"tenant":"a","credits_used":5,"requests":2,"period_start":"2025-01-01 00:00:00"}`, credits},
		{`{"tenant":"a","total_credits":5,"requests":2,"period_start":"2025-01-01 00:00:00"}`, credits},
		{`{"tenant":"a","credits":5,"requests":2,"period_start":"2025-01-01 00:00:00"}`, credits},
		{`{"tenant":"a","credits":1,"total_credits":1,"credits_used":1,"credits_consumed":5,` +
			`"requests":2,"start":"2025-01"}`, credits},
		{`{"tenant":"a","credits":1,"total_requests":7,"start":"2025-01-01"}`, requests},
		{`{"tenant":"a","credits":1,"total_requests":1,"requests":7,"start":"2025-01-01"}`, requests},
		{`{"tenant":"a","credits":1,"total_requests":1,"requests":1,"request_count":"7.0","start":"2025-01"}`,
			requests},
		{`{"tenant":"a","credits":1,"start":"2025-01-01"}`, none},
		{`{"tenant":"a","credits":1,"request_count":null,"start":"2025-01-01"}`, none},
		{`{"tenant":"a","credits":1,"requests":2,"billing_period_start":"2025-05-31"}`, may},
		{`{"tenant":"a","credits":1,"requests":2,"start":"2025-01","billing_period_start":"2025-05"}`, may},
		{`{"tenant":"a","credits":1,"billing_period_start":"2025-01","period_start":"2025-05","requests":2}`,
			may},
		{`{"tenant":"a","credits":1,"requests":2,"period_start":"2025-01","period":"2025-05"}`, may},
	} {
		page, err := readUsage(inRow(row.sent), firstPage)
		if err != nil || len(page.Rows) != 1 || page.Rows[0] != row.want {
			t.Errorf("%s: %+v, %v, want %+v", row.sent, page, err, row.want)
		}
	}
}

func TestCreditsBecomePlainDecimalNotation(t *testing.T) {
	for sent, want := range map[string]string{ // "": rejected
		"0": "0", "-0": "0", "-0.0e5": "0", "0e999999999": "0", "0.000": "0", `"000"`: "0", `"+5"`: "5",
		`"007.50"`: "7.5", `".5"`: "0.5", `"5."`: "5",
		"12.50": "12.5", "100": "100", "100.0": "100", "1e3": "1000", "1E+3": "1000", "1.25e1": "12.5",
		"125e-1": "12.5", "5e-12": "0.000000000005", "0.05": "0.05",
		"0.000000000001": "0.000000000001", "0.0000000000010": "0.000000000001", "0.0000000000001": "",
		"5e-13": "", "50e-13": "0.000000000005",
		"1e19": "10000000000000000000", "1e20": "", "1e21": "",
		"99999999999999999999": "99999999999999999999", "100000000000000000000": "",
		"99999999999999999999.999999999999":  "99999999999999999999.999999999999",
		"99999999999999999999.9999999999991": "", "0.1e20": "10000000000000000000",
		"1" + strings.Repeat("0", 5000) + "e-5000": "1", "0." + strings.Repeat("0", 5000) + "1e5001": "1",
		"1." + strings.Repeat("0", 5000): "1",
		"1e999999999":                    "", "1e-999999999": "", "1e99999999999999999999999": "",
		"1e18446744073709551616":  "",
		"1e-18446744073709551617": "", "1e-99999999999999999999999": "", strings.Repeat("9", 100000): "",
		"1" + strings.Repeat("0", 40) + "1e-39": "", "-1": "", "-0.001": "", "-1e-99": "", `"-1"`: "",
		`"NaN"`: "", `"Infinity"`: "", `""`: "", `" 1"`: "", `"1 "`: "", `"1,5"`: "", `"1_0"`: "",
		`"0x1"`: "", `"1e"`: "", `"e1"`: "", `"."`: "", `"1.2.3"`: "", `"--1"`: "", `"1e1.5"`: "",
		"true": "", "false": "", "{}": "", "[]": "", "[1]": "", `"\u0031"`: "1", `"１"`: "",
		"9007199254740993": "9007199254740993", "0.1": "0.1",
	} {
		page, err := readUsage(inRow(`{"tenant_id":"a","credits":`+sent+`,"period":"2025-01"}`), firstPage)
		switch {
		case err != nil:
			t.Errorf("%.60s: %v", sent, err)
		case want == "" && (len(page.Rows) != 0 || len(page.Rejected) != 1 ||
			!strings.HasPrefix(page.Rejected[0].Reason, "credits are ")):
			t.Errorf("%.60s: %+v, want it rejected", sent, page)
		case want != "" && (len(page.Rows) != 1 || page.Rows[0].Credits != want):
			t.Errorf("%.60s: %+v, want %s", sent, page, want)
		}
	}
}

func TestHugeExponentsAndNumbersCostNoMemory(t *testing.T) {
	for _, sent := range []string{
		"1e999999999", "1e-999999999", "0e999999999", `"1e999999999"`, "1e10000", "1e-10000",
		strings.Repeat("9", 1<<16),
		"1" + strings.Repeat("0", 1<<16) + "e-999999999",
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		allocations := testing.AllocsPerRun(10, func() { _, _ = parseDecimal([]byte(sent)) })
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; allocations > 25 || used > 1<<20 {
			t.Errorf("%.20s: %v allocations a call, %d bytes in all", sent, allocations, used)
		}
		if d, _ := parseDecimal([]byte(sent)); len(d.String()) > 40 {
			t.Errorf("%.20s: made %d digits", sent, len(d.String()))
		}
	}
}

func TestPeriodIsTheMonthInUTCOrAsWritten(t *testing.T) {
	for sent, want := range map[string]string{ // "": rejected
		"2025-01": "2025-01", "2025-01-31": "2025-01", "2025-01-01 00:00:00": "2025-01",
		"2025-01-31T23:59:59": "2025-01", "2025-01-31T23:59:59.999999": "2025-01",
		"2025-01-01T00:00:00Z": "2025-01", "2025-01-01T00:00:00+02:00": "2024-12",
		"2025-01-31T23:00:00-02:00": "2025-02", "2025-01-01 00:00:00+00:00": "2025-01",
		"2000-01": "2000-01", "2999-12": "2999-12", "1999-12": "", "3000-01": "",
		"2000-01-01T00:00:00+01:00": "", "2999-12-31T23:00:00-02:00": "",
		"": "", "2025": "", "2025-1": "", "2025-13": "", "2025-00": "", "2025-02-30": "", "2025/01": "",
		"01-2025": "", " 2025-01": "", "2025-01 ": "", "2025-01-01 24:00:00": "",
	} {
		for _, name := range []string{"period", "period_start", "billing_period_start", "start"} {
			page, err := readUsage(inRow(`{"tenant_id":"a","credits":1,"`+name+`":"`+sent+`"}`), firstPage)
			if got := append(page.Rows, UsageRow{})[0].Period; err != nil || got != want ||
				len(page.Rejected) != 1-len(page.Rows) {
				t.Errorf("%s %q: %+v, %v, want %q", name, sent, page, err, want)
			}
		}
	}
	page, err := readUsage(inRow(`{"tenant_id":"a","credits":1,"period":202501}`), firstPage)
	if err != nil || len(page.Rejected) != 1 {
		t.Errorf("a number: %+v, %v", page, err)
	}
}

func TestTenantIDIsAcceptedOnlyWhenValidAndNeverChanged(t *testing.T) {
	longest := strings.Repeat("ü", MaxTenantID)
	for _, row := range []struct{ sent, want string }{ // "": rejected
		{`org-1`, "org-1"}, {` a `, " a "}, {`../x`, "../x"}, {`\ud83d\ude00`, "😀"}, {`e\u0301`, "e\u0301"},
		{"\u00e9", "\u00e9"}, {`\ufffd`, "\ufffd"}, {longest, longest},
		{longest + "x", ""}, {``, ""}, {`a\u0000`, ""}, {`a\n`, ""}, {"a\u0085", ""}, {"a\x7f", ""},
		{`\ud800`, ""}, {`\udc00\ud800`, ""},
		{"a\xff", ""}, {"a\xfe", ""}, {"\xed\xa0\x80", ""}, {"\xc0\x80", ""},
	} {
		page, err := readUsage(inRow(`{"tenant_id":"`+row.sent+`","credits":1,"period":"2025-01"}`),
			firstPage)
		if got := append(page.Rows, UsageRow{})[0].TenantID; err != nil || got != row.want ||
			len(page.Rejected) != 1-len(page.Rows) {
			t.Errorf("%q: %+v, %v", row.sent, page, err)
		}
	}
}

// FuzzCredits holds the digits' shuffling to exact arithmetic.
func FuzzCredits(f *testing.F) {
	for _, s := range []string{"0", "-0", "12.50", "1e3", "125e-1", "1e20", "5e-13", "-1",
		"99999999999999999999.999999999999", "0.10e1", "1000e-15", ".5", "5.", "+7", "1e999"} {
		f.Add(s)
	}
	numbers := regexp.MustCompile(`^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$`)
	most, least := new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(10), big.NewInt(maxIntegerDigits), nil)),
		int64(maxFractionDigits)
	scale := new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(10), big.NewInt(least), nil))
	f.Fuzz(func(t *testing.T, s string) {
		quoted, err := jsontext.AppendQuote(nil, s)
		if err != nil {
			return // not UTF-8
		}
		if len(quoted) > maxNumberText {
			return // refused whatever it is
		}
		number, why := parseDecimal(quoted)
		text := number.String()
		if why == "" && !plain.MatchString(text) {
			t.Fatalf("%q became %q", s, text)
		}
		if !numbers.MatchString(s) {
			if why == "" && !regexp.MustCompile(`[eE][+-]?[0-9]{4,}$`).MatchString(s) {
				t.Fatalf("%q is no number and became %q", s, text)
			}
			return
		}
		value, ok := new(big.Rat).SetString(s)
		if !ok {
			t.Fatalf("big.Rat does not read %q", s)
		}
		fits := value.Sign() >= 0 && value.Cmp(most) < 0 && new(big.Rat).Mul(value, scale).IsInt()
		if fits != (why == "") {
			t.Fatalf("%q: %q, %s; fits: %v", s, text, why, fits)
		}
		if fits {
			if got, _ := new(big.Rat).SetString(text); got.Cmp(value) != 0 {
				t.Fatalf("%q became %q", s, text)
			}
		}
	})
}

// inRow is an answer with one row.
func inRow(row string) answer { return usageAnswer(`{"data":{"usage":[` + row + `]}}`) }
