package runner

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/journal"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// exitPatience is how long a worker that stopped talking has to end, so that its
// exit can tell why.
const exitPatience = 2 * time.Second

// place is a task's sandbox and the worker in it.
type place struct {
	task   *task
	box    sandbox.Box
	worker Worker
	// facts are those of the first box, in which the work is done; a later one only
	// cleans up.
	facts *wire.SandboxFacts
}

// start makes a sandbox that reaches the sides given.
func (p *place) start(ctx context.Context, claim wire.Claim, sides ...wire.Side) error {
	t := p.task
	endpoints := make(map[wire.Side]wire.Endpoint, len(sides))
	for _, side := range sides {
		endpoints[side] = claim.Source
		if side == wire.Target {
			endpoints[side] = claim.Target
		}
	}
	spec := sandbox.Spec{OperationID: t.id, Fence: claim.Fence, Endpoints: endpoints, MaxBytes: byteCeiling(claim.MaxBytes)}
	box, err := t.runner.options.Sandbox.Start(ctx, spec)
	t.runner.options.Observer.WorkerStarted(err)
	if err != nil {
		var known *operation.Error
		if errors.As(err, &known) || ctx.Err() != nil {
			return err
		}
		return &operation.Error{Step: wire.StepSandbox, Code: wire.CodeSandbox, Reason: "the sandbox cannot be started", Hint: "see the agent's log", Err: err}
	}
	p.box, p.worker = box, t.runner.options.Connect(box, t.log.Named("worker"))
	facts := box.Facts()
	if p.facts == nil {
		p.facts = &facts.SandboxFacts
	}
	if err := t.note(func(e *journal.Entry) { e.ContainerID = facts.ContainerID }); err != nil {
		return err
	}
	return t.record(ctx, wire.EventSandboxStarted, func(e *wire.Event) {
		e.Phase, e.Object = wire.StepSandbox, facts.ContainerID
		e.Detail = "worker image " + facts.WorkerImageID + ", base image " + facts.BaseImageID + ", " + facts.Runtime
	})
}

// byteCeiling is where the forwarder cuts a worker off that ignores max_bytes.
// Honest ones stop at the exact count of rows; protocol and verification come on
// top of it here.
func byteCeiling(maxBytes int64) int64 {
	const margin = 64 << 20
	switch {
	case maxBytes == 0:
		return 0
	case maxBytes > (math.MaxInt64-margin)/2:
		return math.MaxInt64
	}
	return 2*maxBytes + margin
}

// alive reports whether there is a worker to talk to.
func (p *place) alive() bool {
	if p.worker == nil {
		return false
	}
	select {
	case <-p.worker.Done():
		return false
	default:
		return true
	}
}

// explain adds to a failure of the worker why it ended.
func (p *place) explain(err error) error {
	if err == nil || p.box == nil || p.alive() || codeOf(err) != wire.CodeSandbox {
		return err
	}
	limited, cancel := context.WithTimeout(p.task.end, exitPatience)
	defer cancel()
	exit, waitErr := p.box.Wait(limited)
	if waitErr != nil {
		return err
	}
	p.task.log.Warn("the worker has ended", "exit_code", exit.Code, "oom_killed", exit.OOMKilled)
	p.task.runner.options.Observer.WorkerDied(exit.OOMKilled)
	if exit.OOMKilled {
		explained := *failure(wire.StepSandbox, err)
		explained.Reason, explained.Hint = "the worker ran out of memory", "raise memory_mib in the agent's configuration"
		return &explained
	}
	return err
}

// remove ends the worker and removes every trace of the sandbox, one whose start
// got no answer too.
func (p *place) remove(ctx context.Context) error {
	t := p.task
	var err error
	if p.worker != nil {
		if closeErr := p.worker.Close(); closeErr != nil {
			t.log.Debug("cannot close the worker's stdin", "error", closeErr)
		}
		err = p.box.Remove(ctx)
	}
	if cleanErr := t.runner.options.Sandbox.Clean(ctx, t.id); cleanErr != nil {
		err = errors.Join(err, cleanErr)
	} else {
		err = nil // what Remove could not, Clean has
	}
	if err != nil {
		return err
	}
	had := p.box
	p.box, p.worker = nil, nil
	if had == nil {
		return nil
	}
	return t.record(ctx, wire.EventSandboxRemoved, func(e *wire.Event) { e.Phase, e.Object = wire.StepFinish, had.Facts().ContainerID })
}
