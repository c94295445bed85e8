package runner

import (
	"context"
	"strconv"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Outcomes of an event.
const (
	outcomeStarted = "started"
	outcomeSuccess = "success"
	outcomeFailure = "failure"
)

// event is one of this operation.
func (t *task) event(kind wire.EventType, fill func(e *wire.Event)) wire.Event {
	claim := t.current()
	e := wire.Event{
		T: time.Now().UTC(), OpID: t.id, Operation: claim.Kind, Source: claim.Source.Connection, Target: claim.Target.Connection,
		User: claim.Requester, EventType: kind, Severity: wire.SeverityInfo, Outcome: outcomeSuccess,
	}
	fill(&e)
	return e
}

// record makes an event durable.
func (t *task) record(ctx context.Context, kind wire.EventType, fill func(e *wire.Event)) error {
	return t.recordAll(ctx, t.event(kind, fill))
}

// recordAll makes events durable. That they cannot be is a reason to stop.
func (t *task) recordAll(ctx context.Context, events ...wire.Event) error {
	if err := t.runner.options.Events.Record(ctx, events...); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return &operation.Error{
			Code: wire.CodeAuditUnavailable, Reason: "an event cannot be recorded on this host", Hint: "see the agent's log", Err: err,
		}
	}
	return nil
}

// step records a step of the agent's own around f.
func (t *task) step(ctx context.Context, step wire.Step, f func() error) error {
	began := time.Now()
	if err := t.begin(ctx, step); err != nil {
		return err
	}
	fault(step, edgeBegin)
	err := f()
	if recordErr := t.record(ctx, wire.EventStepFinished, func(e *wire.Event) { closeStep(e, step, began, err) }); err == nil {
		err = recordErr
	}
	if err != nil {
		return failure(step, err)
	}
	t.runner.options.Observer.StepFinished(step, time.Since(began))
	fault(step, edgeEnd)
	return nil
}

func (t *task) begin(ctx context.Context, step wire.Step) error {
	t.setProgress(func(p *wire.Progress) { p.Step = step })
	if err := t.noteStep(step); err != nil {
		return failure(step, err)
	}
	if err := t.record(ctx, wire.EventStepStarted, func(e *wire.Event) { e.Phase, e.Outcome = step, outcomeStarted }); err != nil {
		return failure(step, err)
	}
	return nil
}

func closeStep(e *wire.Event, step wire.Step, began time.Time, err error) {
	e.Phase = step
	e.DurMS = strconv.FormatInt(time.Since(began).Milliseconds(), 10)
	if err != nil {
		e.Outcome, e.Severity, e.Code = outcomeFailure, wire.SeverityError, failure(step, err).Code
	}
}

func decimal(n int64) string { return strconv.FormatInt(n, 10) }
