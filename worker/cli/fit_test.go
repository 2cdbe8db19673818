package cli

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"
)

const exampleID = "6f1c1f6e-1111-4222-8333-0123456789ab"

func listOfTenants() table {
	rows := table{{"TENANT", "STATUS", "DASHBOARD", "WORKSPACE", "TITLE", "UPDATED", "ERROR"}}
	rows.add("org-00001", "active", exampleID, "ws-local", "Dashboard - Harbour Trading",
		"2026-11-27 10:00:00Z", "-")
	rows.add("org-00002", "failed", "-", "ws-local", "Dashboard - Kestrel Foods", "2026-11-27 10:00:01Z",
		"papermap (refused): 422: created_by is no member of the workspace")
	return rows
}

func fitted(t *testing.T, rows table, width int, colour bool) string {
	t.Helper()
	var out bytes.Buffer
	must(t, rows.fit(&out, width, colour))
	return out.String()
}

func TestTableFitsTheTerminal(t *testing.T) {
	t.Parallel()
	wide := listOfTenants()
	wide.add(strings.Repeat("long", 20), "pending", "-", "ws-other", "Dashboard - X",
		"2026-11-27 10:00:01Z", "-")
	runs := table{{"STARTED", "WORKSPACE", "TENANT", "MONTHS", "STATUS", "PAGES", "ROWS",
		"WRITTEN", "REJECTED", "WENT DOWN", "ID", "ERROR"}}
	runs.add("2026-11-27 10:00:00Z", "ws-a", "all", "2026-10 to 2026-11", "done", "3 of 3", "300",
		"300", "2", "0", exampleID, "-")
	for _, rows := range []table{listOfTenants(), wide, runs} {
		for _, width := range []int{40, 80, 120, 200} {
			text := fitted(t, rows, width, false)
			for line := range strings.Lines(text) {
				if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > width {
					t.Errorf("a line of %d columns on a terminal of %d: %s", n, width, line)
				}
			}
		}
	}
	text := fitted(t, listOfTenants(), 80, false)
	for _, want := range []string{
		"org-00001", "6f1c1f6e…", "Harbour Trading", "11-27 10:00Z", "created_by", "member",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("at 80 columns there is no %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "Dashboard - ") || strings.Contains(text, "ws-local") {
		t.Errorf("at 80 columns it shows what is the same in each row:\n%s", text)
	}
	if text := fitted(t, listOfTenants(), 250, false); !strings.Contains(text, exampleID) {
		t.Errorf("a wide terminal shows less than it could:\n%s", text)
	}
	if text := fitted(t, runs, 60, false); !strings.Contains(text, exampleID) {
		t.Errorf("a block of lines is not whole:\n%s", text)
	}
}

func TestTableShowsMarksWhole(t *testing.T) {
	t.Parallel()
	rows := table{{"TENANT", "OUTCOME", "TITLE TO LOOK FOR", "MARK IN DESCRIPTION", "TIME", "ERROR"}}
	rows.add("org-00007", "unknown", "Dashboard - Saffron Robotics", "pmw:"+exampleID, "2026-11-27 10:00:00Z",
		"papermap (unknown): no answer: unexpected EOF")
	for _, width := range []int{80, 100, 120, 160} {
		if text := fitted(t, rows, width, false); !strings.Contains(text, "pmw:"+exampleID) {
			t.Errorf("at %d columns the mark is cut:\n%s", width, text)
		}
	}
}

func TestStatusIsColouredOnTerminalsAlone(t *testing.T) {
	t.Parallel()
	text := fitted(t, listOfTenants(), 200, true)
	if !strings.Contains(text, "\x1b[32mactive\x1b[0m") || !strings.Contains(text, "\x1b[31mfailed\x1b[0m") {
		t.Errorf("no colours: %q", text)
	}
	plain := fitted(t, listOfTenants(), 200, false)
	without := strings.NewReplacer("\x1b[32m", "", "\x1b[31m", "", "\x1b[0m", "").Replace(text)
	if plain != without {
		t.Errorf("colours move the columns:\n%s\n%s", plain, without)
	}
	var out bytes.Buffer
	must(t, listOfTenants().print(&out))
	if strings.Contains(out.String(), "\x1b") || !strings.Contains(out.String(), "Dashboard - Harbour") {
		t.Errorf("what is no terminal gets %q", out.String())
	}
}

func TestMisspelledSettingsAreWarnedOf(t *testing.T) {
	t.Parallel()
	known := settingNames(model(t))
	for name, want := range map[string]string{
		"PAPERMAP_WORKSPCE_ID": "did you mean PAPERMAP_WORKSPACE_ID?", "NATS_URLS": "did you mean NATS_URL?",
		"HTTP_ADDRESS": "did you mean HTTP_ADDR?", "DATABASE_URI": "did you mean DATABASE_URL?",
		"DATABSE_URL": "did you mean DATABASE_URL?", "MAX_ATTEMPT": "did you mean MAX_ATTEMPTS?",
		"PAPERMAP_COLOUR": "nearest is", "EMBED_TOKEN_TLL": "did you mean EMBED_TOKEN_TTL?",
		"PAPERMAP_SECRET_KEY_PATH": "did you mean PAPERMAP_SECRET_KEY",
		"NATS_URL":                 "", "NATS_URL_FILE": "", "NATS_PORT_4222_TCP_ADDR": "",
		"NATS_CONTEXT": "", "HTTP_PROXY": "", "PAPERMAP_WORKER_SERVICE_HOST": "",
		"OTEL_SERVICE_NAME": "", "HOME": "", "PATH": "", "SIMULATOR_SECRET_KEY": "", "LOGNAME": "",
	} {
		text := strings.Join(unknownSettings(known, []string{name + "=CANARY"}), "\n")
		if (text == "") != (want == "") || !strings.Contains(text, want) || strings.Contains(text, "CANARY") {
			t.Errorf("%s: %q, want %q", name, text, want)
		}
	}
}
