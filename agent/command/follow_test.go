package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// scriptedReader answers each look with the next of its answers, and the last
// one for ever.
type scriptedReader struct {
	mu        sync.Mutex
	answers   []any // wire.Operation or error
	cancelled int
	report    *operation.Report
}

func (r *scriptedReader) Operation(context.Context, string) (wire.Operation, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	answer := r.answers[0]
	if len(r.answers) > 1 {
		r.answers = r.answers[1:]
	}
	switch a := answer.(type) {
	case wire.Operation:
		return a, nil
	case error:
		return wire.Operation{}, a
	default:
		return wire.Operation{}, errors.New("bad script")
	}
}

func (r *scriptedReader) Report(context.Context, string) (*operation.Report, error) {
	return r.report, nil
}

func (r *scriptedReader) Cancel(context.Context, string, string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cancelled++
	r.answers = []any{inState(wire.StateCancelled)}
	return nil
}

func inState(state wire.State) wire.Operation {
	return wire.Operation{ID: "clone-1", Source: "prod", Target: "staging", State: state, Decision: wire.Decision{Allowed: true, Policy: "copies", Reason: "allowed"}}
}

func running(step wire.Step, bytes int64) wire.Operation {
	op := inState(wire.StateRunning)
	op.Agent, op.Progress = "db1", &wire.Progress{OperationID: op.ID, Step: step, Bytes: bytes, BytesTotal: 1000}
	return op
}

func ended(state wire.State, code wire.Code) wire.Operation {
	op := inState(state)
	op.Result = &wire.Result{Code: code, Reason: "because"}
	return op
}

// Every change of state, step and progress is one line; nothing is told twice;
// the last line holds the result and the exit code.
func TestFollow_JSONLines(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		reader := &scriptedReader{report: &operation.Report{Rows: 7}, answers: []any{
			inState(wire.StatePlanning), inState(wire.StatePlanning), running(wire.StepCopy, 10), running(wire.StepCopy, 10),
			running(wire.StepCopy, 500), running(wire.StepVerify, 500), inState(wire.StateVerifying), inState(wire.StateSucceeded),
		}}
		view := &jsonView{console: &console{stdout: &out, stderr: &out}, now: time.Now}
		code, err := (&follower{reader: reader, view: view}).follow(inState(wire.StateRequested))
		require.NoError(t, err)
		require.Equal(t, 0, code)
		var got []string
		var last followLine
		for _, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
			last = followLine{}
			require.NoError(t, json.Unmarshal([]byte(line), &last))
			what := last.Type + " "
			if last.Type == "state" || last.Type == "result" {
				what += string(last.State)
			} else {
				what += string(last.Step)
			}
			got = append(got, what)
		}
		require.Equal(t, []string{
			"state requested", "state planning", "state running", "step copy", "progress copy", "progress copy",
			"step verify", "progress verify", "state verifying", "state succeeded", "result succeeded",
		}, got)
		require.Equal(t, 0, *last.Exit)
		require.Equal(t, int64(7), last.Report.Rows)
		require.Equal(t, "clone-1", last.Operation.ID)
	})
}

// How an operation ended decides the exit code, for every code there is.
func TestFollow_ExitCodes(t *testing.T) {
	t.Parallel()
	require.Equal(t, 0, exitOf(inState(wire.StateSucceeded)))
	require.Equal(t, 16, exitOf(inState(wire.StateCancelled)))
	require.Equal(t, 13, exitOf(inState(wire.StateExpired)))
	require.Equal(t, 10, exitOf(inState(wire.StateDenied)))
	require.Equal(t, 13, exitOf(inState(wire.StateFailed)))
	require.Equal(t, 3, exitOf(ended(wire.StateSucceeded, wire.CodeCleanup)))
	for _, code := range wire.Codes() {
		require.Equal(t, code.Info().Exit, exitOf(ended(wire.StateFailed, code)), code)
		require.NotZero(t, exitOf(ended(wire.StateFailed, code)), code)
	}
}

// The first Ctrl-C leaves the operation running and says how to follow it; the
// exit code tells the caller that the end is not known.
func TestFollow_FirstInterruptLeaves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		code, notes, reader := interrupted(t, false, time.Second)
		require.Equal(t, wire.ExitInterrupted, code)
		require.Zero(t, reader.cancelled)
		require.True(t, slices.ContainsFunc(notes, func(n string) bool { return strings.Contains(n, "dbops operation -follow clone-1") }), notes)
	})
}

// A second Ctrl-C within the time cancels and waits for the end.
func TestFollow_SecondInterruptCancels(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		code, _, reader := interrupted(t, false, time.Second, 2*time.Second)
		require.Equal(t, wire.ExitInterrupted, code)
		require.Equal(t, 1, reader.cancelled)
	})
}

// With -cancel-on-interrupt the first one does.
func TestFollow_CancelOnInterrupt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		code, _, reader := interrupted(t, true, time.Second)
		require.Equal(t, wire.ExitInterrupted, code)
		require.Equal(t, 1, reader.cancelled)
	})
}

// interrupted follows a running operation and sends signals after the given
// times.
func interrupted(t *testing.T, cancelOnInterrupt bool, after ...time.Duration) (int, []string, *scriptedReader) {
	t.Helper()
	signals := make(chan os.Signal, len(after))
	for _, pause := range after {
		time.AfterFunc(pause, func() { signals <- os.Interrupt })
	}
	reader, view := &scriptedReader{answers: []any{running(wire.StepCopy, 1)}}, &recordingView{}
	code, err := (&follower{reader: reader, view: view, signals: signals, cancelOnInterrupt: cancelOnInterrupt}).follow(inState(wire.StateRequested))
	require.NoError(t, err)
	require.True(t, view.over)
	return code, view.notes, reader
}

// An outage of Vault shorter than our patience is told once and survived; the
// operation goes on meanwhile.
func TestFollow_SurvivesOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		away := &wire.Error{Code: wire.CodeUnavailable, Reason: "gone"}
		reader, view := &scriptedReader{answers: []any{away, away, away, away, away, away, inState(wire.StateSucceeded)}}, &recordingView{}
		code, err := (&follower{reader: reader, view: view}).follow(inState(wire.StateRequested))
		require.NoError(t, err)
		require.Equal(t, 0, code)
		require.Len(t, view.notes, 2)
	})
}

// A longer one ends following with the error, and so does an answer that will
// not change.
func TestFollow_GivesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, code := range []wire.Code{wire.CodeUnavailable, wire.CodeNotFound, wire.CodeDenied} {
			view := &recordingView{}
			_, err := (&follower{reader: &scriptedReader{answers: []any{&wire.Error{Code: code}}}, view: view}).follow(inState(wire.StateRequested))
			var coded *wire.Error
			require.ErrorAs(t, err, &coded)
			require.Equal(t, code, coded.Code)
			require.True(t, view.over)
		}
	})
}

type recordingView struct {
	notes []string
	over  bool
}

func (v *recordingView) Update(wire.Operation)                         {}
func (v *recordingView) Note(text string)                              { v.notes = append(v.notes, text) }
func (v *recordingView) Finish(wire.Operation, *operation.Report, int) { v.over = true }
func (v *recordingView) Leave()                                        { v.over = true }

// The bar shows what it is told and leaves the verification table behind.
func TestBarView(t *testing.T) {
	t.Parallel()
	var out testenv.Buffer
	view := newBarView(&out, vaultFlags{}, time.Now)
	view.Update(inState(wire.StateRequested))
	view.Update(running(wire.StepCopy, 500))
	view.Note("a note")
	op := inState(wire.StateSucceeded)
	view.Update(op)
	view.Finish(op, &operation.Report{
		Tables:      []operation.TableReport{{Schema: "public", Name: "orders", Rows: 3, SourceRows: 3, Digest: "00ff", SourceDigest: "00ff", Match: true}},
		DurationsMS: map[wire.Step]int64{wire.StepCopy: 1500},
	}, 0)
	text := out.String()
	for _, want := range []string{"clone-1  prod → staging", "allowed by policy copies", "step     copy", "a note", "public.orders", "yes", "1.50"} {
		require.Contains(t, text, want)
	}
}

// What is unequal must catch the eye.
func TestPrintOperation_Mismatch(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	printOperation(&out, vaultFlags{}, ended(wire.StateFailed, wire.CodeCheckFailed), &operation.Report{
		Tables: []operation.TableReport{{Schema: "public", Name: "orders", Rows: 2, SourceRows: 3}},
	})
	require.Contains(t, out.String(), "failed (check_failed)")
	require.Regexp(t, `public\.orders\s+3\s+2\s+-\s+-\s+NO`, out.String())
}

// Rates follow changes within seconds and need no total.
func TestMeter(t *testing.T) {
	t.Parallel()
	var m meter
	start := time.Unix(0, 0)
	m.add(start, 0)
	_, known := m.left(1000)
	require.False(t, known)
	for i := range 20 {
		m.add(start.Add(time.Duration(i+1)*time.Second), int64(i+1)*1000)
	}
	require.InDelta(t, 1000, m.perSecond(), 1)
	left, known := m.left(30_000)
	require.True(t, known)
	require.InDelta(t, 10, left.Seconds(), 0.1)
	m.add(start.Add(21*time.Second), 5) // another step counts anew
	require.Zero(t, m.perSecond())
	require.Equal(t, "1.0 KiB", sizeText(1024))
	require.Equal(t, "1023 B", sizeText(1023))
	require.Equal(t, "5.0 GiB", sizeText(5<<30))
}

// What is queued outside of allowed_hours says until when, once.
func TestFollow_AllowedHours(t *testing.T) {
	t.Parallel()
	queued := inState(wire.StateQueued)
	queued.NotBefore = time.Date(2026, 11, 25, 8, 0, 0, 0, time.Local)
	var asJSON bytes.Buffer
	view := &jsonView{console: &console{stdout: &asJSON, stderr: &asJSON}, now: time.Now}
	var out testenv.Buffer
	bar := newBarView(&out, vaultFlags{}, time.Now)
	for _, op := range []wire.Operation{inState(wire.StateAwaitingApproval), queued, queued, inState(wire.StateQueued), running(wire.StepCopy, 1)} {
		view.Update(op)
		bar.Update(op)
	}
	bar.Leave()
	require.Equal(t, 1, strings.Count(out.String(), "not before 2026-11-25 08:00:00, when allowed_hours let it run"), out.String())
	var times []time.Time
	for _, line := range strings.Split(strings.TrimSpace(asJSON.String()), "\n") {
		var l followLine
		require.NoError(t, json.Unmarshal([]byte(line), &l))
		if !l.NotBefore.IsZero() {
			times = append(times, l.NotBefore)
		}
	}
	require.Len(t, times, 1)
	require.True(t, queued.NotBefore.Equal(times[0]))
	var shown strings.Builder
	printOperation(&shown, vaultFlags{}, queued, nil)
	require.Regexp(t, `Waits +not before 2026-11-25 08:00:00`, shown.String())
}

// While people have to approve, the follower says for whom it waits, each time
// that changes and not oftener, and looks less often.
func TestFollow_Approval(t *testing.T) {
	t.Parallel()
	waiting := func(missing int) wire.Operation {
		op := inState(wire.StateAwaitingApproval)
		op.ApprovalNeeds = []wire.ApprovalStatus{{ApprovalNeed: wire.ApprovalNeed{Policy: "prod", Count: 2, Groups: []string{"g"}}, Missing: missing}}
		return op
	}
	answers := func() []any {
		return []any{waiting(2), waiting(2), waiting(1), inState(wire.StateQueued), ended(wire.StateDenied, wire.CodeRejected)}
	}
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		began := time.Now()
		view := &jsonView{console: &console{stdout: &out, stderr: &out}, now: time.Now}
		code, err := (&follower{reader: &scriptedReader{answers: answers()}, view: view}).follow(inState(wire.StatePlanning))
		require.NoError(t, err)
		require.Equal(t, wire.CodeRejected.Info().Exit, code)
		require.Equal(t, 2*lookSoon+3*lookWaiting, time.Since(began))
		var got []string
		for _, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
			var l followLine
			require.NoError(t, json.Unmarshal([]byte(line), &l))
			text := l.Type + " " + string(l.State)
			for _, need := range l.Needs {
				text += " " + need.String()
			}
			got = append(got, text)
		}
		require.Equal(t, []string{
			"state planning", "state awaiting_approval needs 2 more of group g (policy prod)",
			"state awaiting_approval needs 1 more of group g (policy prod)", "state queued", "state denied", "result denied",
		}, got)
	})
	var out testenv.Buffer
	bar := newBarView(&out, vaultFlags{}, time.Now)
	for _, answer := range answers() {
		if op, ok := answer.(wire.Operation); ok {
			bar.Update(op)
		}
	}
	bar.Leave()
	require.Equal(t, 1, strings.Count(out.String(), "needs 2 more of group g (policy prod)"))
	require.Equal(t, 1, strings.Count(out.String(), "needs 1 more of group g (policy prod)"))
}
