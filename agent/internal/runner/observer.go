package runner

import (
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Observer is told what a runner does, for metrics. It is called from many
// goroutines and must not block. It learns no name but words of fixed lists.
type Observer interface {
	// PollAnswered: Vault has answered a poll now.
	PollAnswered()
	// OperationEnded: the work on a claim has ended. Step and code are empty unless
	// it failed.
	OperationEnded(kind wire.Kind, outcome operation.Outcome, step wire.Step, code wire.Code)
	// StepFinished: a step was done and recorded.
	StepFinished(step wire.Step, took time.Duration)
	// WorkerStarted: a sandbox was asked for; err is nil when there is one.
	WorkerStarted(err error)
	// WorkerDied: a worker ended that was needed, by itself or for want of memory.
	WorkerDied(outOfMemory bool)
	// LeftoverFound: a sandbox was found that belongs to no work; err is nil when it
	// is gone now.
	LeftoverFound(err error)
}

// unobserved is the observer where there is none.
type unobserved struct{}

var _ Observer = unobserved{}

func (unobserved) PollAnswered()                                                     {}
func (unobserved) OperationEnded(wire.Kind, operation.Outcome, wire.Step, wire.Code) {}
func (unobserved) StepFinished(wire.Step, time.Duration)                             {}
func (unobserved) WorkerStarted(error)                                               {}
func (unobserved) WorkerDied(bool)                                                   {}
func (unobserved) LeftoverFound(error)                                               {}

// Status is what a runner has in hand.
type Status struct {
	// Claims are those at work, by phase.
	Claims map[wire.Phase]int
	// Unclaimed are operations of the last start whose claims the plugin has not
	// given back yet.
	Unclaimed int
	// Slots is how many claims may be at work at once; FreeSlots how many more are
	// asked for: none while the agent drains, no image is made or no audit device
	// records events.
	Slots, FreeSlots int
}

// Status is how things stand now.
func (r *Runner) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	status := Status{Claims: map[wire.Phase]int{}, Unclaimed: len(r.found), Slots: r.options.MaxOperations, FreeSlots: r.freeSlots()}
	for _, t := range r.active {
		status.Claims[t.current().Phase]++
	}
	return status
}

// freeSlots is how many claims may be given. r.mu is held.
func (r *Runner) freeSlots() int {
	if !r.options.Audit.Ready() || !r.prepared.Load() || r.draining {
		return 0
	}
	return max(0, r.options.MaxOperations-len(r.active))
}

// observeEnd tells the observer how the work on a claim ended.
func (t *task) observeEnd(outcome operation.Outcome, step wire.Step, code wire.Code) {
	t.runner.options.Observer.OperationEnded(t.current().Kind, outcome, step, code)
}

// outcomeOf is what a finished claim counts as. A cleanup claim's success is none
// of the operation.
func outcomeOf(phase wire.Phase, state wire.State) operation.Outcome {
	switch {
	case phase == wire.PhaseCleanup && state == wire.StateSucceeded:
		return operation.OutcomeCleaned
	case phase == wire.PhaseCleanup:
		return operation.OutcomeCleanupFailed
	case state == wire.StateSucceeded:
		return operation.OutcomeSucceeded
	case state == wire.StateCancelled:
		return operation.OutcomeCancelled
	default:
		return operation.OutcomeFailed
	}
}
