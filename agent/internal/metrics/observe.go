package metrics

import (
	"slices"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// What the runner and the client of Vault tell. Their interfaces say when.

// PollAnswered notes the time.
func (m *Metrics) PollAnswered() {
	now := time.Now()
	m.polled.Store(&now)
}

// OperationEnded counts the end of the work on a claim.
func (m *Metrics) OperationEnded(kind wire.Kind, outcome operation.Outcome, step wire.Step, code wire.Code) {
	m.operations.WithLabelValues(known(kind, wire.Kinds()), known(outcome, operation.Outcomes())).Inc()
	if outcome == operation.OutcomeFailed || outcome == operation.OutcomeCleanupFailed {
		m.failures.WithLabelValues(known(code, wire.Codes())).Inc()
		m.failedAt.WithLabelValues(known(step, wire.Steps())).Inc()
	}
}

// StepFinished counts a step that was done.
func (m *Metrics) StepFinished(step wire.Step, took time.Duration) {
	m.steps.WithLabelValues(known(step, wire.Steps())).Observe(took.Seconds())
}

// WorkerStarted counts a sandbox that was asked for.
func (m *Metrics) WorkerStarted(err error) { m.workers.WithLabelValues(outcomeOf(err == nil)).Inc() }

// WorkerDied counts a worker that ended while it was needed.
func (m *Metrics) WorkerDied(outOfMemory bool) {
	reason := "exit"
	if outOfMemory {
		reason = "memory"
	}
	m.died.WithLabelValues(reason).Inc()
}

// LeftoverFound counts a sandbox that belongs to no work. One that could not be
// removed is found, and counted, again.
func (m *Metrics) LeftoverFound(err error) {
	outcome := "removed"
	if err != nil {
		outcome = "left"
	}
	m.leftovers.WithLabelValues(outcome).Inc()
}

// VaultAnswered counts a request.
func (m *Metrics) VaultAnswered(code wire.Code) {
	m.requests.WithLabelValues(outcomeOf(code == "")).Inc()
	if code != "" {
		m.refusals.WithLabelValues(known(code, wire.Codes())).Inc()
	}
}

// LoggedIn counts a login.
func (m *Metrics) LoggedIn(code wire.Code) { m.logins.WithLabelValues(outcomeOf(code == "")).Inc() }

// TokenRenewed counts a renewal.
func (m *Metrics) TokenRenewed(code wire.Code) {
	m.renewals.WithLabelValues(outcomeOf(code == "")).Inc()
}

func outcomeOf(ok bool) string {
	if ok {
		return succeeded
	}
	return failed
}

// known is the word itself if it is on the list: what came from a plugin of another
// version must not become a series of its own.
func known[T ~string](word T, list []T) string {
	if slices.Contains(list, word) {
		return string(word)
	}
	return other
}
