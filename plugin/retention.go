package plugin

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// An operation whose retention is over goes in three moves: its record is marked,
// its plan, report and receipt are deleted, its record is. With the mark it is gone
// for everybody who reads, on every node, so that nobody sees half of one. The record
// goes last, since it is what finds the rest again: a crash between any two writes
// leaves a marked record, and the next round goes on with it.

// Bounds of one round. What is left waits for the next, a minute later.
const (
	prunedAtOnce = 100 // operations
	pruneTimeout = 30 * time.Second
)

// Where builds for tests can be killed, see fault.go.
const (
	kindRetention rotationKind  = "retention"
	pointMarked   rotationPoint = "marked"  // the record says that it is being removed
	pointEmptied  rotationPoint = "emptied" // its texts are gone
)

// pruneSoon begins a round in the background, unless one is going on. Only the node
// that may write does.
func (b *backend) pruneSoon(s logical.Storage) {
	if b.refusal.Load() != nil || !b.WriteSafeReplicationState() || !b.pruning.CompareAndSwap(false, true) {
		return
	}
	b.work.run(func(ctx context.Context) {
		defer b.pruning.Store(false)
		limited, cancel := context.WithTimeout(ctx, pruneTimeout)
		defer cancel()
		pruned, err := b.prune(limited, s)
		if pruned > 0 {
			b.Logger().Info("operations were removed whose retention was over", "operations", pruned)
		}
		if err != nil && limited.Err() == nil {
			b.Logger().Error("operations whose retention is over were not all removed", "error", err)
		}
	})
}

// prune is one round: it removes what earlier rounds have begun to remove, and then
// the oldest operations whose retention is over. It returns how many are gone.
func (b *backend) prune(ctx context.Context, s logical.Storage) (pruned int, err error) {
	set, err := b.settings(ctx, s)
	if err != nil {
		return 0, err
	}
	if err := b.loadOperations(ctx, s); err != nil {
		return 0, err
	}
	cutoff := time.Time{} // nothing is before it
	if set.Retention > 0 {
		cutoff = b.now().UTC().Add(-max(set.Retention, shortestRetention))
	}
	for _, id := range b.ops.overRetention(cutoff, prunedAtOnce) {
		gone, err := b.pruneOperation(ctx, s, id, cutoff)
		if err != nil {
			return pruned, err
		}
		if gone {
			pruned++
			b.notePruned()
		}
	}
	return pruned, nil
}

// pruneOperation removes one operation, unless something of it is open after all.
func (b *backend) pruneOperation(ctx context.Context, s logical.Storage, id string, cutoff time.Time) (gone bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	// A lockdown keeps what an investigator may need.
	if state, err := b.lockdownRecord(ctx, s); err != nil || state.Locked {
		return false, err
	}
	if b.ops.operation(id) != nil { // else it is marked
		accounts, err := listStored(ctx, s, prefixAccount+id+"/")
		if err != nil || len(accounts) > 0 {
			return false, err
		}
		_, err = b.updateOperation(ctx, s, id, func(r *operationRecord) error {
			if !r.overRetention(cutoff) {
				return errUnchanged
			}
			r.Pruned = true
			return nil
		})
		if errors.Is(err, errUnchanged) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	fault(kindRetention, pointMarked)
	for _, prefix := range []string{prefixPlan, prefixReport, prefixReceipt} {
		if err := deleteText(ctx, s, prefix+id+"/"); err != nil {
			return false, err
		}
	}
	fault(kindRetention, pointEmptied)
	if err := deleteStored(ctx, s, prefixOperation+id); err != nil {
		return false, err
	}
	b.ops.mu.Lock()
	b.ops.remove(id)
	b.ops.mu.Unlock()
	return true, nil
}

// overRetention reports whether everything about the operation is over since before
// cutoff. Where the cleaning of its target was given up somebody still has to look,
// and its record is the one thing that says so.
func (r *operationRecord) overRetention(cutoff time.Time) bool {
	return !r.busy() && r.Cleanup != cleanupFailed && latest(r.EndedAt, r.UpdatedAt, r.AdmittedAt, r.CreatedAt).Before(cutoff)
}

// overRetention returns ids of at most limit operations: those marked already, and
// the oldest ones that are over since before cutoff.
func (o *operationState) overRetention(cutoff time.Time, limit int) []string {
	o.mu.RLock()
	defer o.mu.RUnlock()
	var marked, over []string
	for id := range o.pruned {
		marked = append(marked, id)
	}
	for id, r := range o.operations {
		if r.overRetention(cutoff) {
			over = append(over, id)
		}
	}
	slices.Sort(marked)
	slices.Sort(over) // ids begin with the time
	all := append(marked, over...)
	return all[:min(len(all), limit)]
}

// deleteText removes what [putText] stored below prefix, under whatever names, the
// head first: without it there is no text, and never half of one.
func deleteText(ctx context.Context, s logical.Storage, prefix string) error {
	names, err := listStored(ctx, s, prefix)
	if err != nil {
		return err
	}
	if at := slices.Index(names, "head"); at > 0 {
		names[0], names[at] = names[at], names[0]
	}
	for _, name := range names {
		if err := deleteStored(ctx, s, prefix+name); err != nil {
			return err
		}
	}
	return nil
}

// notePruned keeps that an operation was removed: nobody asked Vault for it. Many at
// a time are one fact and another one with their count.
func (b *backend) notePruned() {
	b.metrics.pruned.Inc()
	b.noteFact(wire.Fact{EventType: wire.EventOperationPruned, Outcome: wire.OutcomeSuccess, Detail: "its retention was over"})
}
