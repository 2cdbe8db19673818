package main

import (
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

func TestReplyPrefixesMayNotReachTheWorkersOwnSubjects(t *testing.T) {
	for prefix, fine := range map[string]bool{
		"_INBOX_team": true, "acme.inbox": true, "papermapper": true, "papermap": false, "papermap.events": false, "papermap.": false,
	} {
		var cmd serveCmd
		if _, err := kong.Must(&cmd).Parse([]string{"--nats-reply-prefixes", prefix}); err != nil {
			t.Fatal(err)
		}
		_, err := cmd.config(nil)
		if refused := err != nil && strings.Contains(err.Error(), "NATS_REPLY_PREFIXES"); refused == fine {
			t.Errorf("%q: %v", prefix, err)
		}
	}
}
