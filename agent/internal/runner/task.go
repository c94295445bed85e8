package runner

import (
	"context"
	"encoding/json"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/journal"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// task is the work on one operation, from a claim to its end.
type task struct {
	runner *Runner
	log    hclog.Logger
	id     string

	// work ends when the operation must stop; its cause says why. stop may be
	// called often, the first cause stays.
	work context.Context
	stop context.CancelCauseFunc
	// end is for everything that must happen after work has stopped.
	end context.Context

	lost      atomic.Bool // somebody else decides about the operation now
	recovered bool        // a former start of the agent has worked on it
	unsure    bool        // it may have, without leaving an entry

	accounts accounts
	place    place

	// inspected and planned in this claim or the one before it.
	shape json.RawMessage

	journalMu sync.Mutex // guards entry and orders its writes
	entry     journal.Entry

	mu       sync.Mutex // guards the rest
	claim    wire.Claim
	deadline *time.Timer
	progress wire.Progress
	audit    *wire.AuditCheck // the last one that found devices
}

func newTask(r *Runner, claim wire.Claim) *task {
	t := &task{
		runner: r, id: claim.OperationID, claim: claim, end: r.hard,
		log:   r.log.With("operation_id", claim.OperationID),
		entry: journal.Entry{Claim: claim},
	}
	t.work, t.stop = context.WithCancelCause(r.hard)
	t.limit(claim.MaxDurationMilli)
	t.accounts.task, t.place.task = t, t
	return t
}

func (t *task) release() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.deadline != nil {
		t.deadline.Stop()
	}
	t.stop(context.Canceled)
}

// lose stops the work because the claim is not ours any more.
func (t *task) lose() {
	t.lost.Store(true)
	t.stop(errDropped)
}

// limit lets the operation run for that long from now; 0: no limit.
func (t *task) limit(milliseconds int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.deadline != nil {
		t.deadline.Stop()
		t.deadline = nil
	}
	if milliseconds > 0 {
		t.deadline = time.AfterFunc(time.Duration(milliseconds)*time.Millisecond, func() { t.stop(errDeadline) })
	}
}

func (t *task) current() wire.Claim {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.claim
}

// held is the claim as polls name it.
func (t *task) held() string {
	claim := t.current()
	return claim.OperationID + ":" + claim.Fence
}

// follow goes on with the next claim of the same operation.
func (t *task) follow(claim wire.Claim) {
	t.mu.Lock()
	t.claim = claim
	t.mu.Unlock()
	t.limit(claim.MaxDurationMilli)
}

func (t *task) progressJSON() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.progress.Step == "" {
		return ""
	}
	t.progress.OperationID = t.id
	content, err := json.Marshal(t.progress)
	if err != nil {
		t.log.Error("cannot encode progress", "error", err)
		return ""
	}
	return string(content)
}

func (t *task) setProgress(change func(p *wire.Progress)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change(&t.progress)
}

// note changes the journal entry and returns when that is on disk.
func (t *task) note(change func(e *journal.Entry)) error {
	t.journalMu.Lock()
	defer t.journalMu.Unlock()
	changed := t.entry
	change(&changed)
	if err := t.runner.options.Journal.Put(changed); err != nil {
		return err
	}
	t.entry = changed
	return nil
}

func (t *task) noted() journal.Entry {
	t.journalMu.Lock()
	defer t.journalMu.Unlock()
	return t.entry
}

// outcome is how the work on an operation ended.
type outcome struct {
	report *operation.Report // of a success
	err    *operation.Error  // nil: success
	// handedOn: the plan was sent and somebody else decides what follows. There is
	// nothing to finish.
	handedOn bool
	state    wire.State // where it was left then
	started  time.Time
}

// do takes the operation to its end.
func (t *task) do() {
	o := t.attempt()
	t.finish(o)
}

func (t *task) attempt() outcome {
	started := time.Now()
	o, err := t.phase()
	if err != nil {
		o = outcome{err: t.why(err)}
		if o.err.Code == wire.CodeStaleClaim {
			t.lose()
		}
	}
	o.started = started
	return o
}

// why is what ended the work: the reason it was stopped, when it was, else what
// failed.
func (t *task) why(err error) *operation.Error {
	step := t.noted().Step
	failed := failure(step, err)
	if t.work.Err() == nil {
		return failed
	}
	cause := failure(failed.Step, context.Cause(t.work))
	if cause.Code == wire.CodeInternal {
		return failed // we were told to let go of everything; the next start decides
	}
	return cause
}

func (t *task) phase() (outcome, error) {
	claim := t.current()
	recovered := t.recovered && t.noted().Claim.Phase == wire.PhaseRunning
	if recovered && t.noted().Finish != nil && t.noted().Claim.Fence == claim.Fence {
		return outcome{}, nil // decided before; finish sends it again
	}
	if err := t.note(func(e *journal.Entry) { e.Claim, e.ContainerID, e.Finish = claim, "", nil }); err != nil {
		return outcome{}, err
	}
	if err := t.audited(); err != nil {
		return outcome{}, err
	}
	if claim.Phase == wire.PhaseCleanup { // whatever is written down here, the target is looked at
		if err := t.note(func(e *journal.Entry) { e.Touched = true }); err != nil {
			return outcome{}, err
		}
	}
	if recovered {
		return t.resume()
	}
	if err := t.record(t.work, wire.EventOperationStarted, func(e *wire.Event) {
		e.Outcome, e.Detail = outcomeStarted, string(claim.Phase)
	}); err != nil {
		return outcome{}, err
	}
	switch claim.Phase {
	case wire.PhasePlanning:
		return t.plan(claim)
	case wire.PhaseRunning:
		return t.run(claim)
	case wire.PhaseCleanup:
		return outcome{}, &operation.Error{Step: wire.StepCleanup, Code: wire.CodeAgentLost, Reason: "the operation had ended while its agent was away"}
	default:
		return outcome{}, &operation.Error{Code: wire.CodeUnsupported, Reason: "this agent does not know the phase " + string(claim.Phase)}
	}
}

// resume ends what a former start was running. Whether it had switched is found
// out at the target, by finish.
func (t *task) resume() (outcome, error) {
	if err := t.record(t.work, wire.EventAgentRecovered, func(e *wire.Event) {
		e.Outcome, e.Severity, e.Phase = outcomeFailure, wire.SeverityWarning, t.noted().Step
	}); err != nil {
		return outcome{}, err
	}
	return outcome{}, &operation.Error{
		Step: t.noted().Step, Code: wire.CodeAgentRestarted, Reason: "the agent ended during the operation and came back", Hint: "ask again",
	}
}
