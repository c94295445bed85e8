package runner

import (
	"context"
	"encoding/json"
	"strconv"
	"sync"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/journal"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/worker"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// run does the approved work, up to the switched, verified target.
func (t *task) run(claim wire.Claim) (outcome, error) {
	if err := t.enter(claim); err != nil {
		return outcome{}, err
	}
	if t.unsure {
		done, err := t.place.worker.Cleanup(t.work, t.id)
		if err != nil {
			return outcome{}, t.place.explain(err)
		}
		if done.Switched {
			t.log.Warn("the operation had been done by a start of this agent that lost its state")
			return outcome{}, nil
		}
	}
	if t.shape == nil {
		// Planned by another claim. The plan is a function of both catalogs, and the
		// plugin compares what comes out with what was approved.
		plan, err := t.inspect(claim)
		if err != nil {
			return outcome{}, err
		}
		t.shape = plan.Shape
	}
	if err := t.record(t.work, wire.EventBulkDataExport, func(e *wire.Event) {
		e.Phase, e.Outcome, e.Detail = wire.StepSnapshot, outcomeStarted, claim.PlanDigest
	}); err != nil {
		return outcome{}, err
	}
	h := &host{task: t, claim: claim, began: make(map[wire.Step]time.Time)}
	report, err := t.place.worker.Run(t.work, worker.RunRequest{
		OperationID: t.id, Options: claim.Options, Shape: t.shape, MaxRows: claim.MaxRows, MaxBytes: claim.MaxBytes,
	}, h)
	if err != nil {
		return outcome{}, t.place.explain(err)
	}
	return outcome{report: &report}, nil
}

// host is the agent as a running engine sees it. The worker's client calls it
// one at a time, Progress apart.
type host struct {
	task  *task
	claim wire.Claim

	mu     sync.Mutex // guards the rest
	began  map[wire.Step]time.Time
	report operation.Report
	events []wire.Event // of verified tables, not recorded yet
}

var _ engine.Host = (*host)(nil)

// verifiedAtOnce is how many tables share one write to the spool.
const verifiedAtOnce = 64

// untouching are the steps that leave the target alone.
func untouching(step wire.Step) bool { return step == wire.StepSnapshot || step == wire.StepCleanup }

// Begin records the intention. It is the place where an operation that shall
// stop, does: nothing begins without an audit device, without its shape still
// being the approved one, or after a reason to stop. Undoing always may.
func (h *host) Begin(ctx context.Context, step wire.Step, detail json.RawMessage) error {
	err := h.begin(ctx, step, detail)
	if err != nil {
		failed := failure(step, err)
		h.task.log.Info("step refused", "step", step, "code", failed.Code, "error", err)
		return failed
	}
	fault(step, edgeBegin)
	return nil
}

func (h *host) begin(ctx context.Context, step wire.Step, detail json.RawMessage) error {
	t := h.task
	h.mu.Lock()
	h.began[step] = time.Now()
	h.mu.Unlock()
	if step == wire.StepCleanup {
		return t.begin(ctx, step)
	}
	if t.work.Err() != nil {
		return context.Cause(t.work)
	}
	if err := t.runner.options.Audit.Await(t.work, t.runner.limits.AuditWait); err != nil {
		return err
	}
	if step == wire.StepSwitch {
		return h.beginSwitch(step)
	}
	if err := t.begin(ctx, step); err != nil {
		return err
	}
	if step != wire.StepSnapshot {
		return nil
	}
	_, err := t.sendPlan(t.work, h.claim, string(detail))
	return err
}

// beginSwitch makes sure that everything up to here stands in the record before
// the target changes for others, and that a crash right after finds the report.
func (h *host) beginSwitch(step wire.Step) error {
	t := h.task
	t.setProgress(func(p *wire.Progress) { p.Step = step })
	if err := h.recordVerified(t.work); err != nil {
		return err
	}
	if err := t.audited(); err != nil {
		return err
	}
	if err := t.record(t.work, wire.EventStepStarted, func(e *wire.Event) { e.Phase, e.Outcome = step, outcomeStarted }); err != nil {
		return err
	}
	if err := t.runner.options.Events.Flush(t.work, t.id); err != nil {
		return err
	}
	h.mu.Lock()
	report := h.report
	h.mu.Unlock()
	if err := t.complete(&report); err != nil {
		return err
	}
	return t.note(func(e *journal.Entry) {
		e.Step, e.Begun, e.Touched, e.Switching, e.Report = step, time.Now().UTC(), true, true, &report
	})
}

// audited asks Vault now whether events are recorded, and waits a while for a
// device where none is.
func (t *task) audited() error {
	_, err := insist(t.work, t, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, t.runner.options.Audit.Check(ctx)
	})
	if err != nil && codeOf(err) == wire.CodeAuditUnavailable {
		err = t.runner.options.Audit.Await(t.work, t.runner.limits.AuditWait)
	}
	if err != nil {
		return err
	}
	t.mu.Lock()
	t.audit = &wire.AuditCheck{Devices: t.runner.options.Audit.Count(), CheckedAt: time.Now().UTC()}
	t.mu.Unlock()
	return nil
}

// complete adds to a report what the agent itself has observed: where the worker
// ran, and the last look at the audit devices. What a former start has noted stays.
func (t *task) complete(report *operation.Report) error {
	root, err := operation.TablesRoot(report.Tables)
	if err != nil {
		return err
	}
	report.TablesRoot = root
	if report.Sandbox == nil {
		report.Sandbox = t.place.facts
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if report.Audit == nil || t.audit != nil {
		report.Audit = t.audit
	}
	return nil
}

// noteStep puts the intention into the journal.
func (t *task) noteStep(step wire.Step) error {
	return t.note(func(e *journal.Entry) {
		e.Step, e.Begun = step, time.Now().UTC()
		e.Touched = e.Touched || e.Claim.Phase == wire.PhaseRunning && ofEngine(step) && !untouching(step)
	})
}

// ofEngine reports whether a step is the engine's, not the agent's own.
func ofEngine(step wire.Step) bool {
	switch step {
	case wire.StepSandbox, wire.StepInspect, wire.StepPlan, wire.StepAccounts, wire.StepRevoke, wire.StepFinish:
		return false
	default:
		return true
	}
}

// End records that a step is done.
func (h *host) End(ctx context.Context, step wire.Step, rows, bytes int64) error {
	h.mu.Lock()
	began, known := h.began[step]
	h.mu.Unlock()
	if !known {
		began = time.Now()
	}
	if err := h.recordVerified(ctx); err != nil {
		return failure(step, err)
	}
	if err := h.task.record(ctx, wire.EventStepFinished, func(e *wire.Event) {
		closeStep(e, step, began, nil)
		e.Rows, e.Bytes = decimal(rows), decimal(bytes)
	}); err != nil {
		return failure(step, err)
	}
	h.task.runner.options.Observer.StepFinished(step, time.Since(began))
	fault(step, edgeEnd)
	return nil
}

// Progress is kept for the next poll.
func (h *host) Progress(p wire.Progress) {
	h.task.setProgress(func(kept *wire.Progress) { *kept = p })
}

// Verified records one table; several share a write, at the latest with the end
// of the step.
func (h *host) Verified(ctx context.Context, table operation.TableReport) error {
	e := h.task.event(wire.EventTableVerified, func(e *wire.Event) {
		e.Phase, e.Object, e.Rows, e.Bytes = wire.StepVerify, table.Schema+"."+table.Name, decimal(table.Rows), decimal(table.Bytes)
		e.Detail = table.Digest
		if !table.Match {
			e.Outcome, e.Severity, e.Code = outcomeFailure, wire.SeverityError, wire.CodeCheckFailed
			e.Detail = "source " + table.SourceDigest + ", target " + table.Digest
		}
	})
	h.mu.Lock()
	h.events = append(h.events, e)
	h.report.Tables = append(h.report.Tables, table)
	h.report.Rows += table.Rows
	h.report.Bytes += table.Bytes
	full := len(h.events) >= verifiedAtOnce
	h.mu.Unlock()
	if !full {
		return nil
	}
	if err := h.recordVerified(ctx); err != nil {
		return failure(wire.StepVerify, err)
	}
	return nil
}

func (h *host) recordVerified(ctx context.Context) error {
	h.mu.Lock()
	events := h.events
	h.events = nil
	h.mu.Unlock()
	if len(events) == 0 {
		return nil
	}
	return h.task.recordAll(ctx, events...)
}

func tables(report *operation.Report) string { return strconv.Itoa(len(report.Tables)) }
