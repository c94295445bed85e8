package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/journal"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/wait"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

const (
	// undoTries is how often the target is cleaned before it is left to a cleanup
	// claim.
	undoTries = 3
	// cleanMargin is how much longer than now an account must live to clean with.
	cleanMargin = 30 * time.Second
	// reportBytes keeps the report well below Vault's limit of 1 MiB per string.
	reportBytes = 512 << 10
)

// finish brings the operation to its end: the target clean, the accounts given
// back, the sandbox gone, the events delivered, and only then the result told.
func (t *task) finish(o outcome) {
	switch {
	case t.lost.Load():
		t.observeEnd(operation.OutcomeLost, "", "")
		t.letGo("the claim is not ours any more", o)
		return
	case t.end.Err() != nil:
		return // the journal entry stays: the next start goes on
	}
	decided := t.noted().Finish
	if decided == nil {
		request, err := t.conclude(o)
		switch {
		case err != nil:
			t.log.Error("cannot end the operation, the next start will", "error", err)
			return
		case request == nil:
			t.observeEnd(operation.OutcomePlanned, "", "")
			t.letGo("planned, others decide what follows", o)
			return
		}
		decided = request
	} else if err := t.clear(); err != nil {
		t.log.Warn("traces of the operation are left", "error", err)
	}
	t.flush()
	t.tell(*decided)
}

// conclude cleans up and writes down how the operation ended. Without a request
// there is nothing to finish.
func (t *task) conclude(o outcome) (*wire.FinishRequest, error) {
	var left error // why something may be left at the target
	if o.err != nil {
		t.log.Warn("operation stops", "code", o.err.Code, "step", o.err.Step, "reason", o.err.Reason, "error", o.err.Unwrap())
		if t.noted().Touched {
			switched, err := t.undo()
			switch {
			case t.end.Err() != nil:
				return nil, context.Cause(t.end)
			case err != nil:
				t.log.Error("the target could not be cleaned", "error", err)
				left = err
			case t.current().Phase == wire.PhaseCleanup:
				o = outcome{started: o.started} // how it ended is decided; nothing of it is left
			case switched:
				o = outcome{report: t.noted().Report, started: o.started}
				if err := t.recordSwitched(); err != nil {
					return nil, err
				}
			}
		}
	}
	if err := t.clear(); err != nil {
		if t.end.Err() != nil {
			return nil, context.Cause(t.end)
		}
		t.log.Warn("traces of the operation are left", "error", err)
	}
	if o.handedOn {
		return nil, nil //nolint:nilnil // nothing to finish
	}
	request, err := t.finishRequest(o, left)
	if err != nil {
		return nil, err
	}
	fault(wire.StepFinish, edgeBegin)
	if err := t.recordFinished(o, request.Outcome); err != nil {
		t.log.Error("the end of the operation cannot be recorded", "error", err)
	}
	if err := t.note(func(e *journal.Entry) { e.Finish = &request }); err != nil {
		t.log.Error("the end of the operation cannot be written down", "error", err)
	}
	return &request, nil
}

// undo makes the target as it was, unless the copy had been switched in.
func (t *task) undo() (switched bool, err error) {
	pauses := t.runner.backOff()
	for try := range undoTries {
		if try > 0 && !wait.For(t.end, pauses.NextBackOff()) {
			return false, context.Cause(t.end)
		}
		var result engine.CleanupResult
		err = t.step(t.end, wire.StepCleanup, func() (err error) {
			result, err = t.clean()
			return err
		})
		if err == nil {
			return result.Switched, nil
		}
		t.log.Warn("cannot clean the target", "error", err)
		if code := codeOf(err); code == wire.CodeStaleClaim || code == wire.CodeLocked {
			// No account is given for it any more, so no try can do better.
			return false, err
		}
		if try+1 < undoTries {
			// Whatever was wrong with the worker or its login, the next one has its own.
			t.accounts.forgetRefused(err)
			if removeErr := t.place.remove(t.end); removeErr != nil {
				t.log.Warn("cannot remove the sandbox", "error", removeErr)
			}
		}
	}
	return false, err
}

// clean lets the engine remove what is left at the target, by the worker that is
// there or by a new one.
func (t *task) clean() (engine.CleanupResult, error) {
	ctx, cancel := context.WithTimeoutCause(t.end, t.runner.limits.Cleanup, errors.New("cleaning takes too long"))
	defer cancel()
	claim := t.current()
	if !t.place.alive() {
		if err := t.place.remove(ctx); err != nil {
			return engine.CleanupResult{}, failure(wire.StepSandbox, err)
		}
		if err := t.place.start(ctx, claim, wire.Target); err != nil {
			return engine.CleanupResult{}, err
		}
		if !t.accounts.usable(wire.Target, cleanMargin) {
			if err := t.accounts.lease(ctx, claim, wire.Target); err != nil {
				return engine.CleanupResult{}, err
			}
		}
		account := t.accounts.open()[wire.Target]
		if err := t.place.worker.Open(ctx, map[wire.Side]wire.Account{wire.Target: account}); err != nil {
			return engine.CleanupResult{}, t.place.explain(err)
		}
	}
	result, err := t.place.worker.Cleanup(ctx, t.id)
	return result, t.place.explain(err)
}

// forgetRefused lets the next try lease a new account where this one was refused.
func (a *accounts) forgetRefused(err error) {
	switch codeOf(err) {
	case wire.CodeLoginRefused, wire.CodeLeaseLost:
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.leased, wire.Target)
	default:
	}
}

// clear gives the accounts back and removes the sandbox. The worker goes first
// where time does not matter less than the accounts: both at once.
func (t *task) clear() error {
	removed := make(chan error, 1)
	go func() { removed <- t.place.remove(t.end) }()
	// A former start may have leased accounts we know nothing of.
	t.accounts.mu.Lock()
	t.accounts.asked = t.accounts.asked || t.recovered
	asked := t.accounts.asked
	t.accounts.mu.Unlock()
	var err error
	if asked {
		err = t.step(t.end, wire.StepRevoke, func() error { return t.accounts.giveBack(t.end) })
	}
	return errors.Join(err, <-removed)
}

func (t *task) recordFinished(o outcome, state wire.State) error {
	return t.record(t.end, wire.EventOperationFinished, func(e *wire.Event) {
		e.Phase, e.Detail = wire.StepFinish, string(state)
		e.DurMS = decimal(time.Since(o.started).Milliseconds())
		if o.report != nil {
			e.Rows, e.Bytes = decimal(o.report.Rows), decimal(o.report.Bytes)
		}
		if o.err != nil {
			e.Outcome, e.Severity, e.Code = outcomeFailure, wire.SeverityError, o.err.Code
		}
	})
}

// recordSwitched tells that the copy is in place, which its own end could not any
// more: the plugin takes a success after a cancellation only with that.
func (t *task) recordSwitched() error {
	t.log.Info("the copy had been put in place")
	return t.record(t.end, wire.EventStepFinished, func(e *wire.Event) {
		e.Phase, e.Detail = wire.StepSwitch, "found at the target"
	})
}

func (t *task) finishRequest(o outcome, left error) (wire.FinishRequest, error) {
	request := wire.FinishRequest{Fence: t.current().Fence, Outcome: wire.StateSucceeded, CleanupNeeded: left != nil}
	if o.err != nil {
		request.Outcome = wire.StateFailed
		if o.err.Code == wire.CodeCancelled {
			request.Outcome = wire.StateCancelled
		}
		request.Code, request.Reason, request.Hint, request.Step = o.err.Code, o.err.Reason, o.err.Hint, o.err.Step
	}
	if left != nil {
		request.Hint = leftHint(request.Hint, t.current().Phase, failure(wire.StepCleanup, left))
	}
	failed := request.Outcome != wire.StateSucceeded
	report := operation.Report{Tables: []operation.TableReport{}, DurationsMS: map[wire.Step]int64{}}
	switch {
	case !failed && o.report != nil:
		report = *o.report
	case !failed || t.current().Phase != wire.PhaseRunning:
		return request, nil
	}
	if err := t.complete(&report); err != nil {
		return request, err
	}
	if failed && report.Sandbox == nil {
		return request, nil // nothing was there to report of
	}
	text, err := reportText(report)
	if err != nil {
		return request, err
	}
	request.Report = text
	if failed {
		return request, nil
	}
	request.Rows, request.Bytes, request.Tables = decimal(o.report.Rows), decimal(o.report.Bytes), tables(o.report)
	return request, nil
}

// leftHint adds to the way out of a failure why the target could not be cleaned. That
// of a claim to clean is nothing but that. It stays with the operation, and so is true
// also after a later try has done it.
func leftHint(hint string, phase wire.Phase, why *operation.Error) string {
	text := fmt.Sprintf("a try to clean the target failed: %s (%s)", why.Reason, why.Code)
	if why.Hint != "" {
		text += "; " + why.Hint
	}
	if phase == wire.PhaseCleanup || hint == "" {
		return text
	}
	return hint + "; " + text
}

// reportText is the report as JSON. One with so many tables that Vault would
// refuse it has their number and the digest of the whole list instead; each table
// stands in the events anyhow.
func reportText(report operation.Report) (string, error) {
	content, err := json.Marshal(report)
	if err != nil {
		return "", fmt.Errorf("encode report: %w", err)
	}
	if len(content) <= reportBytes {
		return string(content), nil
	}
	list, err := json.Marshal(report.Tables)
	if err != nil {
		return "", fmt.Errorf("encode report: %w", err)
	}
	short := struct {
		operation.Report
		TablesOmitted int    `json:"tables_omitted"`
		TablesDigest  string `json:"tables_digest"`
	}{report, len(report.Tables), wire.Digest(list)}
	short.Tables = []operation.TableReport{}
	if content, err = json.Marshal(short); err != nil {
		return "", fmt.Errorf("encode report: %w", err)
	}
	return string(content), nil
}

// flush waits for the last events to be delivered. An audit device that is away
// must not keep the operation without an end: the events stay in the spool and
// follow.
func (t *task) flush() {
	ctx, cancel := context.WithTimeout(t.end, t.runner.limits.Flush)
	defer cancel()
	if err := t.runner.options.Events.Flush(ctx, t.id); err != nil && t.end.Err() == nil {
		t.log.Warn("the last events are not delivered yet", "error", err)
	}
}

// tell finishes the claim, and forgets the operation once that is acknowledged or
// can never be.
func (t *task) tell(request wire.FinishRequest) {
	response, err := insist(t.end, t, func(ctx context.Context) (wire.FinishResponse, error) {
		return t.runner.options.Vault.Finish(ctx, t.id, request)
	})
	if err != nil {
		if t.end.Err() != nil {
			return
		}
		t.log.Error("the end of the operation is refused", "error", err, "outcome", request.Outcome)
		t.observeEnd(operation.OutcomeLost, "", "")
	} else {
		t.log.Info("operation ended", "state", response.State, "code", request.Code)
		t.observeEnd(outcomeOf(t.current().Phase, request.Outcome), request.Step, request.Code)
	}
	fault(wire.StepFinish, edgeEnd)
	if err := t.runner.options.Journal.Delete(t.id); err != nil {
		t.log.Error("cannot forget the operation", "error", err)
	}
}

// letGo removes what is left on this host and forgets the operation, without a
// word to Vault.
func (t *task) letGo(why string, o outcome) {
	t.log.Info("letting go of the operation", "reason", why)
	t.accounts.stopKeeping()
	if err := t.place.remove(t.end); err != nil {
		t.log.Error("cannot remove the sandbox", "error", err)
	}
	if t.end.Err() != nil {
		return
	}
	if err := t.recordFinished(o, o.state); err != nil {
		t.log.Error("the end of the work cannot be recorded", "error", err)
	}
	if err := t.runner.options.Journal.Delete(t.id); err != nil {
		t.log.Error("cannot forget the operation", "error", err)
	}
}
