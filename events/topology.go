package events

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// What the server, the two streams and the two consumers must look like. The worker creates and
// repairs them accordingly (supervise.go). [Bus.Check] for doctor and [Bus.CheckTopology] for
// readiness use the same functions.

// ackWait is how long the server waits for an acknowledgement. A killed worker's events are
// redelivered after it. An event in flight extends it three times as often.
const ackWait = 15 * time.Second

// oldestServer is the first version with consumers of several filter subjects, the newest feature
// used here: older servers ignore the filter.
var oldestServer = []int{2, 10, 0}

// checkVersion returns an error for a server that is too old. A version that cannot be parsed is
// accepted.
func checkVersion(version string) error {
	if have, ok := parseVersion(version); !ok || slices.Compare(have, oldestServer) >= 0 {
		return nil
	}
	return fmt.Errorf("the NATS server has version %s, and the worker needs %d.%d or newer: upgrade it",
		version, oldestServer[0], oldestServer[1])
}

func parseVersion(version string) (numbers []int, ok bool) {
	numbers = make([]int, 3)
	n, _ := fmt.Sscanf(strings.TrimPrefix(version, "v"), "%d.%d.%d", &numbers[0], &numbers[1], &numbers[2])
	return numbers, n >= 2
}

// streamSpec is what a stream must look like.
type streamSpec struct {
	name     string
	subjects []string
	out      []string      // those of them that only the worker publishes
	maxAge   time.Duration // 0: no limit
	maxBytes int64         // 0: no limit
	replicas int
	dead     bool // the stream of dead letters
}

func (b *Bus) deadStream() string { return b.o.Stream + "_DEAD" }

func (b *Bus) streams() []streamSpec {
	return []streamSpec{
		{name: b.o.Stream, subjects: b.o.Subjects.all(), out: b.o.Subjects.of(TypesOf("")),
			maxAge: b.o.MaxAge, maxBytes: b.o.MaxBytes, replicas: b.o.Replicas},
		{name: b.deadStream(), subjects: []string{b.o.Subjects.Dead(">")},
			maxBytes: b.o.MaxBytes, replicas: b.o.Replicas, dead: true},
	}
}

func (s streamSpec) config() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: s.name, Subjects: s.subjects, Replicas: s.replicas, MaxAge: s.maxAge, MaxBytes: s.maxBytes,
		Retention: jetstream.LimitsPolicy, Storage: jetstream.FileStorage, Discard: jetstream.DiscardNew,
	}
}

// missingSubjects returns the subjects that the stream lacks.
func (s streamSpec) missingSubjects(is jetstream.StreamConfig) (missing []string) {
	for _, subject := range s.subjects {
		if !coversSubject(is.Subjects, subject) {
			missing = append(missing, subject)
		}
	}
	return missing
}

// minMessage is the smallest maximum that a stream may have: the longest event out fits, and a dead
// letter with its headers but without its data.
const minMessage = 16 << 10

// rule is one way in which a stream may be wrong.
type rule struct {
	broken bool
	fatal  bool // it can lose or hide events that were acknowledged to their publishers, or takes none
	found  string
	fix    string
}

// check compares a stream with what it must look like.
func (s streamSpec) check(info *jetstream.StreamInfo) []Finding {
	var list []Finding
	for _, r := range slices.Concat(s.subjectRules(info.Config), s.lossRules(info.Config),
		s.limitRules(info), s.preferences(info.Config)) {
		if r.broken {
			list = append(list, Finding{"stream " + s.name, r.found, r.fix, r.fatal})
		}
	}
	return list
}

func (s streamSpec) subjectRules(is jetstream.StreamConfig) (rules []rule) {
	for _, subject := range s.missingSubjects(is) {
		// Events out wait in the outbox until the stream takes them.
		rules = append(rules, rule{true, !slices.Contains(s.out, subject),
			"it does not take subject " + subject, "add the subject: nats stream edit " + s.name})
	}
	for _, subject := range is.Subjects {
		rules = append(rules, rule{!s.dead && !slices.Contains(s.subjects, subject), false,
			"it takes " + subject + " as well",
			"a publish to a mistyped subject would not be refused; remove the subject from the stream"})
	}
	return rules
}

// lossRules are settings that make a stream lose, change or hide messages that it has acknowledged.
func (s streamSpec) lossRules(is jetstream.StreamConfig) []rule {
	edit := func(flag string) string { return "nats stream edit " + s.name + " " + flag }
	anew := "recreate the stream without it"
	return []rule{
		{is.Retention != jetstream.LimitsPolicy, true, fmt.Sprintf("its retention is %s", is.Retention),
			"recreate it with limits: other retentions drop events that the other consumer has not seen"},
		{is.Discard != jetstream.DiscardNew, true, "discard is old: when it is full it drops old events",
			"set discard new: " + edit("--discard new")},
		{is.MaxMsgsPerSubject > 0, true,
			fmt.Sprintf("max_msgs_per_subject is %d: it drops or refuses any more", is.MaxMsgsPerSubject),
			edit("--max-msgs-per-subject=-1")},
		{is.SubjectTransform != nil, true, "subject_transform is set: it stores events under other subjects",
			"remove the subject transform"},
		{is.RePublish != nil, true,
			"republish is set: others get every event, and the service's subjects might",
			"remove the republish"},
		{is.Mirror != nil, true, "it is a mirror: nothing can be published to it", "name another stream"},
		{is.Sealed, true, "it is sealed: nothing can be published to it", anew},
		{is.NoAck, true, "no_ack is set: publishers do not learn whether it stored an event",
			edit("--ack")},
		{is.AllowRollup, true, "allow_rollup_hdrs is set: one publish can delete all other events",
			edit("--no-allow-rollup")},
		{is.AllowMsgTTL, true, "allow_msg_ttl is set: a message can expire before it is handled", anew},
		{is.SubjectDeleteMarkerTTL > 0, true,
			"subject_delete_marker_ttl is set: it stores markers that are not events", anew},
		{is.AllowMsgCounter, true, "allow_msg_counter is set: it accepts only counters", anew},
		{is.AllowMsgSchedules, true,
			"allow_msg_schedules is set: a schedule replaces the events of its subject", anew},
		{is.PersistMode == jetstream.AsyncPersistMode, true,
			"persist_mode is async: it acknowledges events before they are stored", anew},
		{s.dead && is.DenyDelete, false,
			"deny_delete is set: dead letters cannot be discarded, and stay when they are replayed", anew},
	}
}

// limitRules are settings that make a stream refuse messages.
func (s streamSpec) limitRules(info *jetstream.StreamInfo) []rule {
	is, state := info.Config, info.State
	bytes, msgs := int64(state.Bytes), int64(state.Msgs)
	full := is.MaxBytes > 0 && bytes+minMessage > is.MaxBytes || is.MaxMsgs > 0 && msgs >= is.MaxMsgs
	nearly := is.MaxBytes > 0 && bytes > is.MaxBytes/10*9 || is.MaxMsgs > 0 && msgs > is.MaxMsgs/10*9
	holds := fmt.Sprintf("%d of max_msgs %d messages, %d of max_bytes %d bytes",
		state.Msgs, is.MaxMsgs, state.Bytes, is.MaxBytes)
	more := "raise max_bytes or max_msgs: nats stream edit " + s.name
	maxPending := is.ConsumerLimits.MaxAckPending
	return []rule{
		{full, true, "it is full, and accepts nothing more: " + holds, more},
		{nearly && !full, false, "it is nearly full: " + holds, more},
		{is.MaxMsgSize > 0 && is.MaxMsgSize < minMessage, true,
			fmt.Sprintf("max_msg_size is %d bytes", is.MaxMsgSize),
			fmt.Sprintf("raise it to %d or more: nats stream edit %s --max-msg-size", minMessage, s.name)},
		{!s.dead && is.MaxConsumers > 0 && is.MaxConsumers < len(consumers), true,
			fmt.Sprintf("max_consumers is %d, and the worker has %d", is.MaxConsumers, len(consumers)),
			"recreate the stream with a higher limit"},
		{!s.dead && maxPending > 0, true,
			fmt.Sprintf("max_ack_pending of its consumers is %d: events that wait for a retry would block "+
				"others", maxPending), "remove the limit: nats stream edit " + s.name},
		{!s.dead && is.ConsumerLimits.InactiveThreshold > 0, false,
			fmt.Sprintf("inactive_threshold of its consumers is %v: a consumer from which no worker fetches "+
				"for that long (none runs, or Papermap is paused) is deleted and starts over from the "+
				"oldest event", is.ConsumerLimits.InactiveThreshold),
			"remove the limit: nats stream edit " + s.name},
	}
}

// preferences are settings that the worker tolerates, but an operator should know about.
func (s streamSpec) preferences(is jetstream.StreamConfig) []rule {
	return []rule{
		{is.Storage != jetstream.FileStorage, false, "it is kept in memory",
			"recreate it with file storage: a restart of the server loses waiting events"},
		{s.maxAge > 0 && is.MaxAge > 0 && is.MaxAge < s.maxAge, false,
			fmt.Sprintf("it keeps events for %v, and NATS_STREAM_MAX_AGE is %v", is.MaxAge, s.maxAge),
			"an event that waits longer is lost: nats stream edit --max-age"},
		{s.maxAge == 0 && is.MaxAge > 0, false, fmt.Sprintf("it keeps messages for %v only", is.MaxAge),
			"nats stream edit --max-age 0"},
		{is.Replicas != s.replicas, false,
			fmt.Sprintf("it has %d replicas, and NATS_STREAM_REPLICAS is %d", is.Replicas, s.replicas),
			"nats stream edit --replicas, or change the setting"},
		{is.Duplicates < time.Minute, false,
			fmt.Sprintf("duplicate_window is %v: a copy that arrives later is stored again", is.Duplicates),
			"nats stream edit " + s.name + " --dupe-window 2m"},
		{len(is.Sources) > 0, false, "it takes the messages of other streams (sources)",
			"remove the sources, unless they are events for this worker"},
	}
}

// missing is the finding about a stream that does not exist and that the worker does not create.
func (s streamSpec) missing() Finding {
	return Finding{"stream " + s.name, "it does not exist, and NATS_MANAGE_STREAMS is false",
		"create it, or set NATS_MANAGE_STREAMS=true", true}
}

// consumerConfig is what a durable consumer must look like. BackOff stays empty: it would replace
// AckWait, and the delays are the worker's own.
func (b *Bus) consumerConfig(durable string) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Name:           durable,
		Durable:        durable,
		FilterSubjects: b.o.Subjects.of(TypesOf(durable)), // exact, or it would take the events out
		DeliverPolicy:  jetstream.DeliverAllPolicy,
		AckPolicy:      jetstream.AckExplicitPolicy,
		AckWait:        ackWait,
		MaxDeliver:     -1,  // a limit would drop events silently; failures are counted in the database
		MaxAckPending:  -1,  // events that wait for a retry count, and must not block others
		MaxWaiting:     512, // the server's default
	}
}

// changedSettings names the settings of a consumer that differ. Servers add metadata, and an
// operator may pause a consumer, so those two may differ.
func changedSettings(is, want jetstream.ConsumerConfig) []string {
	var names []string
	a, b := reflect.ValueOf(is), reflect.ValueOf(want)
	for i := range a.NumField() {
		name, _, _ := strings.Cut(a.Type().Field(i).Tag.Get("json"), ",")
		if name != "metadata" && name != "pause_until" &&
			!reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			names = append(names, name)
		}
	}
	return names
}

// mayHaveSkipped reports whether a consumer with these settings may have skipped events that it
// should deliver. After a repair the server would not deliver them: the consumer must start over.
func mayHaveSkipped(is, want jetstream.ConsumerConfig) bool {
	return is.MaxDeliver > 0 || is.DeliverPolicy != want.DeliverPolicy || is.AckPolicy != want.AckPolicy ||
		is.HeadersOnly || slices.ContainsFunc(want.FilterSubjects, func(s string) bool {
		return !slices.Contains(is.FilterSubjects, s)
	})
}
