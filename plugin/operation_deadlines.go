package plugin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// watchInterval is how often deadlines are looked at.
const watchInterval = time.Second

// watchDeadlines looks at deadlines until the instance is cleaned up.
func (b *backend) watchDeadlines(ctx context.Context, s logical.Storage) {
	for range rounds(ctx, watchInterval, nil) {
		if err := b.enforceDeadlines(ctx, s); err != nil && !errors.Is(err, context.Canceled) {
			b.Logger().Error("deadlines of operations were not enforced", "error", err)
		}
	}
}

// enforceDeadlines ends operations that nobody approved or took, whose agent fell silent, or
// that are longer than they may be, and ends accounts of those that have ended.
// It makes no database call itself.
func (b *backend) enforceDeadlines(ctx context.Context, s logical.Storage) error {
	if err := b.loadOperations(ctx, s); err != nil {
		return err
	}
	busy := b.ops.busyOperations()
	if len(busy) == 0 || !b.WriteSafeReplicationState() {
		return nil
	}
	now := b.now().UTC()
	var errs []error
	for _, r := range busy {
		if b.overdue(r, now) != nil {
			ended, err := b.updateOperation(ctx, s, r.ID, func(r *operationRecord) error {
				if act := b.overdue(r, now); act != nil {
					return act(r)
				}
				return errUnchanged
			})
			if err != nil && !errors.Is(err, errUnchanged) {
				errs = append(errs, fmt.Errorf("end operation %s: %w", r.ID, err))
				continue
			}
			if err == nil && ended != nil && ended.State.Final() {
				b.noteOverdue(ended)
			}
		}
		if current := b.ops.operation(r.ID); current != nil && current.EndAccounts && current.Claim == nil {
			b.endAccountsSoon(s, r.ID)
		} else if current != nil {
			b.receiptSoon(s, current)
		}
	}
	return errors.Join(errs...)
}

// errUnchanged leaves an operation as it is.
var errUnchanged = errors.New("unchanged")

// overdue returns what has to happen to the operation now, or nil.
func (b *backend) overdue(r *operationRecord, now time.Time) func(*operationRecord) error {
	o := b.ops
	o.mu.RLock()
	started := o.started.UTC()
	heard := o.claimHeard[r.ID]
	grace := defaultGrace
	if r.Claim != nil {
		grace = o.agents[r.Claim.Agent].grace()
	}
	o.mu.RUnlock()

	if r.Claim == nil {
		if act := r.overdueApproval(now); act != nil {
			return act
		}
		if at := b.hoursOpen(r, now); !at.Equal(r.NotBefore) {
			return func(r *operationRecord) error {
				r.NotBefore = at
				return nil
			}
		}
		if (r.State == wire.StateRequested || r.State == wire.StateQueued) && now.Sub(latest(r.UpdatedAt, started, r.NotBefore)) > maxWait {
			return func(r *operationRecord) error {
				r.Result = b.notTaken(r, now)
				return r.become(wire.StateExpired, now)
			}
		}
		return nil
	}
	if since := latest(heard, r.Claim.ClaimedAt, started); now.Sub(since) > grace {
		return func(r *operationRecord) error { return b.loseAgent(r, now) }
	}
	if r.Claim.Phase == wire.PhaseCleanup {
		if now.Sub(r.Claim.ClaimedAt) > defaultMaxDuration+deadlineSlack {
			return func(r *operationRecord) error {
				r.cleanupLost(now)
				return nil
			}
		}
		return nil
	}
	if now.Sub(r.StartedAt) > r.maxDuration()+deadlineSlack {
		return func(r *operationRecord) error {
			return r.fail(wire.Result{Code: wire.CodeDeadline, Reason: fmt.Sprintf("longer than %s", r.maxDuration())}, now)
		}
	}
	return nil
}

// hoursOpen is when allowed_hours let a queued operation run that is outside of them,
// or was while it waited; zero for any other. The time is set once for each wait, so
// that an operation which no agent takes in those hours either does not wait for ever.
func (b *backend) hoursOpen(r *operationRecord, now time.Time) time.Time {
	if r.State != wire.StateQueued || r.NotBefore.After(r.UpdatedAt) {
		return r.NotBefore
	}
	if at, ok := b.ops.policySet().Opens(r.Decision.Policies, now); ok && at.After(now) {
		return at.UTC()
	}
	return r.NotBefore
}

// notTaken is the result of an operation that no agent took in time.
func (b *backend) notTaken(r *operationRecord, now time.Time) *wire.Result {
	set := b.ops.policySet()
	if _, ok := set.Opens(r.Decision.Policies, now); r.State == wire.StateQueued && !ok {
		return &wire.Result{
			Code:   wire.CodeExpired,
			Reason: "within two weeks there is no time at which allowed_hours of policies " + strings.Join(set.WithHours(r.Decision.Policies), ", ") + " let it run",
			Hint:   "change them so that they have a time in common, then ask again",
		}
	}
	return &wire.Result{
		Code: wire.CodeExpired, Reason: "no agent took it in time",
		Hint: "is an agent running that policies and both connections permit and that has a working audit device?",
	}
}

// loseAgent takes the claim from an agent that fell silent.
func (b *backend) loseAgent(r *operationRecord, now time.Time) error {
	lost := wire.Result{
		Code: wire.CodeAgentLost, Reason: fmt.Sprintf("agent %s fell silent", r.Claim.Agent),
		Hint: "ask again when the agent is back; what it left at the target is removed by the next agent that can",
	}
	switch r.Claim.Phase {
	case wire.PhaseCleanup:
		r.cleanupLost(now)
		return nil
	case wire.PhasePlanning:
		if r.CancelRequested {
			return r.cancel(now)
		}
		if r.PlanningAttempts >= maxPlanningAttempts {
			return r.fail(lost, now)
		}
		if err := r.become(wire.StateRequested, now); err != nil {
			return err
		}
		r.endClaim(now)
		return nil
	default:
		return r.fail(lost, now)
	}
}

// cancel ends an operation of which nothing has happened at the target.
func (r *operationRecord) cancel(now time.Time) error {
	if err := r.become(wire.StateCancelled, now); err != nil {
		return err
	}
	reason := "cancelled on request"
	if c := r.Cancellation; c != nil {
		reason += " of " + c.Name
		if c.Reason != "" {
			reason += ": " + c.Reason
		}
	}
	r.Result = &wire.Result{Code: wire.CodeCancelled, Reason: reason}
	r.endClaim(now)
	return nil
}

func latest(times ...time.Time) time.Time {
	var last time.Time
	for _, t := range times {
		if t.After(last) {
			last = t
		}
	}
	return last
}

const (
	// endAccountsTimeout bounds one attempt to end an operation's accounts.
	endAccountsTimeout = 60 * time.Second
	// endAccountsPause is between attempts. The accounts themselves are retried by
	// the sweep too; this only notices that they have ended.
	endAccountsPause = 30 * time.Second
)

// endAccountsSoon ends the accounts of an operation in the background, one
// attempt at a time; the watcher repeats what did not work.
func (b *backend) endAccountsSoon(s logical.Storage, id string) {
	o := b.ops
	o.mu.Lock()
	if o.ending[id] || b.now().Before(o.endAfter[id]) {
		o.mu.Unlock()
		return
	}
	o.ending[id] = true
	o.mu.Unlock()
	b.work.run(func(ctx context.Context) {
		defer func() {
			o.mu.Lock()
			delete(o.ending, id)
			o.mu.Unlock()
		}()
		ctx, cancel := context.WithTimeout(ctx, endAccountsTimeout)
		defer cancel()
		if err := o.accounts.endOperationAccounts(ctx, s, id, ""); err != nil {
			b.Logger().Warn("accounts of an ended operation are not ended yet", "operation_id", id, "error", err)
			o.mu.Lock()
			o.endAfter[id] = b.now().Add(endAccountsPause)
			o.mu.Unlock()
			return
		}
		next, err := b.updateOperation(ctx, s, id, func(r *operationRecord) error {
			// A claim that was made meanwhile has an end of its own; and who looked while
			// the attempt before this one ended has begun a needless one.
			if r.Claim != nil || !r.EndAccounts {
				return errUnchanged
			}
			r.EndAccounts = false
			return nil
		})
		if err != nil && !errors.Is(err, errUnchanged) {
			b.Logger().Warn("ended accounts could not be recorded", "operation_id", id, "error", err)
		}
		if err == nil && next != nil {
			b.receiptSoon(s, next)
		}
	})
}
