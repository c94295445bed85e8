package runner

import (
	"context"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/journal"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/wait"
)

// forgetPatience bounds what is done within the poll loop.
const forgetPatience = 10 * time.Second

// recover removes the sandboxes of the last start and keeps its journal entries
// until the plugin gives their claims back.
func (r *Runner) recover(ctx context.Context) error {
	entries, err := r.options.Journal.List()
	if err != nil {
		// The others can be ended; this one's claim will come without an entry and
		// be looked at with care.
		r.log.Error("journal entries cannot be read", "error", err)
	}
	for _, e := range entries {
		r.log.Info("found unfinished work of the last start", "operation_id", e.Claim.OperationID, "phase", e.Claim.Phase, "step", e.Step)
		r.found[e.Claim.OperationID] = e
	}
	return r.sweep(ctx)
}

// sweep removes every sandbox that belongs to no operation at work.
func (r *Runner) sweep(ctx context.Context) error {
	infos, err := r.options.Sandbox.List(ctx)
	if err != nil {
		return err
	}
	for _, info := range infos {
		r.mu.Lock()
		_, working := r.active[info.OperationID]
		r.mu.Unlock()
		if working {
			continue
		}
		r.log.Info("removing a sandbox that belongs to nothing", "operation_id", info.OperationID, "container_id", info.ID)
		err := r.options.Sandbox.Clean(ctx, info.OperationID)
		if err != nil {
			r.log.Error("cannot remove a sandbox", "operation_id", info.OperationID, "error", err)
		}
		r.options.Observer.LeftoverFound(err)
	}
	return nil
}

// reconcile sweeps from time to time: an answer of the container engine may have
// been lost.
func (r *Runner) reconcile(ctx context.Context) {
	for wait.For(ctx, r.limits.Reconcile) {
		if err := r.sweep(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("cannot look for forgotten sandboxes", "error", err)
		}
	}
}

// forget drops entries whose claims the plugin has not given back for a while: it
// has ended those operations itself, and their accounts. If one has left
// something at its target, a cleanup claim will come.
func (r *Runner) forget(ctx context.Context, started time.Time) {
	if time.Since(started) < r.limits.Forget {
		return
	}
	r.mu.Lock()
	var stale []journal.Entry
	for id, e := range r.found {
		stale = append(stale, e)
		delete(r.found, id)
	}
	r.mu.Unlock()
	for _, e := range stale {
		id := e.Claim.OperationID
		r.log.Warn("the plugin has ended an operation of the last start", "operation_id", id, "step", e.Step)
		limited, cancel := context.WithTimeout(ctx, forgetPatience)
		if err := r.options.Vault.Revoke(limited, id); err != nil {
			r.log.Warn("cannot give accounts back", "operation_id", id, "error", err)
		}
		cancel()
		if err := r.options.Journal.Delete(id); err != nil {
			r.log.Error("cannot forget an operation", "operation_id", id, "error", err)
		}
	}
}
