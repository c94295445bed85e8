package runner

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/wait"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// accounts are the leased logins of a task. The running ones are renewed until
// they are given back.
type accounts struct {
	task *task

	mu      sync.Mutex
	leased  map[wire.Side]wire.Account
	ends    map[wire.Side]time.Time
	asked   bool // there may be leases at Vault
	stop    context.CancelFunc
	renewed sync.WaitGroup
}

// lease gets the accounts that a phase has on the sides given.
func (a *accounts) lease(ctx context.Context, claim wire.Claim, sides ...wire.Side) error {
	a.mu.Lock()
	a.asked = true
	a.mu.Unlock()
	group, limited := errgroup.WithContext(ctx)
	for _, side := range sides {
		purpose, ok := claim.Phase.Purposes()[side]
		if !ok {
			return &operation.Error{Step: wire.StepAccounts, Code: wire.CodeInternal, Reason: fmt.Sprintf("a %s claim has no account on the %s", claim.Phase, side)}
		}
		group.Go(func() error { return a.leaseOne(limited, claim, purpose, side) })
	}
	return group.Wait()
}

func (a *accounts) leaseOne(ctx context.Context, claim wire.Claim, purpose wire.Purpose, side wire.Side) error {
	t := a.task
	asked := time.Now()
	account, err := insist(ctx, t, func(ctx context.Context) (wire.Account, error) {
		asked = time.Now()
		return t.runner.options.Vault.Account(ctx, t.id, purpose, side, claim.Fence)
	})
	if err != nil {
		return failure(wire.StepAccounts, err)
	}
	a.mu.Lock()
	if a.leased == nil {
		a.leased, a.ends = make(map[wire.Side]wire.Account), make(map[wire.Side]time.Time)
	}
	a.leased[side] = account
	a.ends[side] = asked.Add(time.Duration(account.TTLMilli) * time.Millisecond)
	a.mu.Unlock()
	return t.record(ctx, wire.EventAccessGranted, func(e *wire.Event) {
		e.Phase, e.Object, e.Detail = wire.StepAccounts, account.Username, string(purpose)+" on the "+string(side)
	})
}

// open returns the accounts for a worker.
func (a *accounts) open() map[wire.Side]wire.Account {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.leased)
}

// usable reports whether the account of a side lives at least for d from now.
func (a *accounts) usable(side wire.Side, d time.Duration) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.leased[side]
	return ok && time.Until(a.ends[side]) > d
}

// keep renews the accounts at a third of their life until stopKeeping or giveBack.
// One that cannot be renewed before its end stops the work, since it may have
// been ended for a reason.
func (a *accounts) keep() {
	a.stopKeeping()
	ctx, cancel := context.WithCancel(a.task.end)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stop = cancel
	for side := range a.leased {
		a.renewed.Go(func() { a.renew(ctx, side) })
	}
}

func (a *accounts) stopKeeping() {
	a.mu.Lock()
	stop := a.stop
	a.mu.Unlock()
	if stop != nil {
		stop()
	}
	a.renewed.Wait()
}

func (a *accounts) renew(ctx context.Context, side wire.Side) {
	t := a.task
	a.mu.Lock()
	account := a.leased[side]
	a.mu.Unlock()
	ttl := time.Duration(account.TTLMilli) * time.Millisecond
	for wait.For(ctx, ttl/3) {
		a.mu.Lock()
		end := a.ends[side]
		a.mu.Unlock()
		// Until the end of the account, and not for ever, Vault may be away.
		limited, cancel := context.WithDeadlineCause(ctx, end, errors.New("the account has ended"))
		asked := time.Now()
		got, err := insist(limited, t, func(ctx context.Context) (time.Duration, error) {
			asked = time.Now()
			return t.runner.options.Vault.Renew(ctx, t.id, account.LeaseID, ttl)
		})
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			t.log.Error("an account cannot be renewed", "side", side, "error", err)
			t.stop(&operation.Error{
				Code: wire.CodeLeaseLost, Reason: "the account on the " + string(side) + " could not be renewed", Hint: "see the agent's log", Err: err,
			})
			return
		}
		a.mu.Lock()
		a.ends[side] = asked.Add(got)
		a.mu.Unlock()
	}
}

// giveBack ends every lease of the operation, one whose answer was lost too. It
// insists until the accounts have ended by themselves.
func (a *accounts) giveBack(ctx context.Context) error {
	a.stopKeeping()
	a.mu.Lock()
	asked, end := a.asked, time.Now().Add(time.Minute)
	leased := maps.Clone(a.leased)
	for _, each := range a.ends {
		if each.After(end) {
			end = each
		}
	}
	a.mu.Unlock()
	if !asked {
		return nil
	}
	t := a.task
	limited, cancel := context.WithDeadlineCause(ctx, end, errors.New("the accounts have ended by themselves"))
	defer cancel()
	_, err := insist(limited, t, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, t.runner.options.Vault.Revoke(ctx, t.id)
	})
	a.mu.Lock()
	a.leased, a.ends, a.asked = nil, nil, false
	a.mu.Unlock()
	var events []wire.Event
	for side, account := range leased {
		events = append(events, t.event(wire.EventLogout, func(e *wire.Event) {
			e.Phase, e.Object, e.Detail = wire.StepRevoke, account.Username, string(side)
			if err != nil {
				e.Outcome, e.Severity, e.Code = outcomeFailure, wire.SeverityWarning, codeOf(err)
			}
		}))
	}
	if len(events) > 0 {
		if recordErr := t.recordAll(ctx, events...); recordErr != nil {
			return errors.Join(err, recordErr)
		}
	}
	return err
}
