package plugin

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// A lockdown stops everything a mount does and ends everything it gave, until
// somebody else lifts it. The state is stored before anything follows from it, so
// it holds through a crash, a restart and a change of the active node; what is
// left to be ended is read from the records of accounts and operations
// themselves and from the servers, so that work goes on where it stopped.

// Storage keys of lockdowns.
const (
	keyLockdown   = "lockdown"
	keyBreakGlass = "break-glass"
)

// lockdownRecord is the entry under lockdown.
type lockdownRecord struct {
	Locked bool          `json:"locked"`
	At     time.Time     `json:"locked_at,omitzero"`
	By     lockdownParty `json:"locked_by,omitzero"`
	Reason string        `json:"reason,omitempty"`
	// RotateSince is when it was asked that credentials be rotated, and which asking
	// that was; zero: they are not.
	RotateSince time.Time `json:"rotate_since,omitzero"`
	// BreakGlass is what was set when it was locked.
	BreakGlass *breakGlass          `json:"break_glass,omitempty"`
	History    []wire.LockdownEntry `json:"history,omitempty"` // the newest first
}

// lockdownHistory is how many former lockdowns are kept.
const lockdownHistory = 20

// lockdownParty is a person as they can be recognised again: by entity, and by
// aliases, which outlive a merge of entities.
type lockdownParty struct {
	wire.LockdownParty
	Aliases []partyAlias `json:"aliases,omitempty"`
}

type partyAlias struct {
	MountAccessor string `json:"mount_accessor"`
	Name          string `json:"name"`
}

// same reports whether two parties are one person: one entity, or one login. A
// party without an entity is nobody we could recognise.
func (p lockdownParty) same(other lockdownParty) bool {
	if p.EntityID != "" && p.EntityID == other.EntityID {
		return true
	}
	return slices.ContainsFunc(p.Aliases, func(a partyAlias) bool { return slices.Contains(other.Aliases, a) })
}

// breakGlass is the entry under break-glass: how long after a lockdown whoever
// locked may unlock alone, as somebody else has decided before.
type breakGlass struct {
	After time.Duration `json:"after"`
	By    lockdownParty `json:"by"`
	SetAt time.Time     `json:"set_at"`
}

// shortestBreakGlass is less than which waiting is no second thought.
const shortestBreakGlass = 15 * time.Minute

// breakGlassAt is from when whoever locked may unlock; zero is never.
func (r *lockdownRecord) breakGlassAt() time.Time {
	if !r.Locked || r.By.EntityID == "" || r.BreakGlass == nil || r.BreakGlass.By.same(r.By) {
		return time.Time{}
	}
	return r.At.Add(r.BreakGlass.After)
}

// refusal is what a request is answered that a lockdown does not let through.
func (r *lockdownRecord) refusal() *wire.Error {
	return &wire.Error{
		Code:   wire.CodeLocked,
		Reason: fmt.Sprintf("locked down since %s by %s: %s", r.At.UTC().Format(time.RFC3339), r.By, r.Reason),
		Hint:   "reading, cancelling and revoking go on; somebody else than who locked may lift it: dbops unlock -reason=…",
	}
}

// lockdown is the state of a mount in memory.
type lockdown struct {
	// current is the stored record; nil: not read yet.
	current atomic.Pointer[lockdownRecord]
	// inFlight counts requests let in while the mount was not locked.
	inFlight atomic.Int64
	// wake starts a round of what a lockdown does; it holds at most one wish.
	wake chan struct{}

	mu      sync.Mutex
	changes uint64 // of current, so that no older record replaces a newer one
	// since tells which lockdown the rest is about.
	since    time.Time
	searches map[string]*lockdownSearch // by connection id
	failed   map[rotationKey]*wire.Error
}

func newLockdown() *lockdown { return &lockdown{wake: make(chan struct{}, 1)} }

// set replaces what is known; nil: it must be read again.
func (l *lockdown) set(r *lockdownRecord) {
	l.mu.Lock()
	l.changes++
	l.current.Store(r)
	l.mu.Unlock()
	l.poke()
}

func (l *lockdown) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// holds reports whether the mount is locked, or not known not to be.
func (l *lockdown) holds() bool {
	r := l.current.Load()
	return r == nil || r.Locked
}

// locked reports whether the mount is known to be locked.
func (b *backend) locked() bool {
	r := b.lockdown.current.Load()
	return r != nil && r.Locked
}

// lockdownRecord returns the state, which nobody may change.
func (b *backend) lockdownRecord(ctx context.Context, s logical.Storage) (*lockdownRecord, error) {
	l := b.lockdown
	if r := l.current.Load(); r != nil {
		return r, nil
	}
	l.mu.Lock()
	changes := l.changes
	l.mu.Unlock()
	stored, err := getStored[lockdownRecord](ctx, s, keyLockdown)
	if err != nil {
		return nil, err
	}
	if stored == nil {
		stored = &lockdownRecord{}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changes != changes {
		if newer := l.current.Load(); newer != nil {
			return newer, nil
		}
		return stored, nil // what is newer is read by the next request
	}
	l.current.Store(stored)
	return stored, nil
}

// admit lets a request in or refuses it because of a lockdown. With counted it is
// among those in flight until [backend.leave].
func (b *backend) admit(ctx context.Context, req *logical.Request) (counted bool, err error) {
	if allowedWhileLocked(nil, req.Operation) || strings.TrimSuffix(req.Path, "/") == keyLockdown {
		return false, nil
	}
	// Counted before the look at the state: whoever locks and then sees no request
	// in flight knows that none comes after.
	b.lockdown.inFlight.Add(1)
	state, err := b.lockdownRecord(ctx, req.Storage)
	if err == nil && !state.Locked {
		return true, nil
	}
	b.leave()
	if err != nil {
		return false, err
	}
	if allowedWhileLocked(b.Route(req.Path), req.Operation) {
		return false, nil
	}
	return false, state.refusal()
}

func (b *backend) leave() { b.lockdown.inFlight.Add(-1) }

// refuseLocked is for work that was let in before a lockdown and is about to give
// something away.
func (b *backend) refuseLocked(ctx context.Context, s logical.Storage) error {
	state, err := b.lockdownRecord(ctx, s)
	if err != nil || !state.Locked {
		return err
	}
	return state.refusal()
}

// unlockDecision decides whether who may lift the lockdown now, leaving behind the
// connections and static roles named. Alone says that it is who locked.
func unlockDecision(r *lockdownRecord, who lockdownParty, left wire.LockdownLeft, leave []string, now time.Time) (alone bool, err error) {
	if !r.Locked {
		return false, &wire.Error{Code: wire.CodeConflict, Reason: "the mount is not locked down"}
	}
	if alone = r.By.same(who); alone {
		if err := breakGlassDecision(r, now); err != nil {
			return false, err
		}
	}
	still := func(format string, args ...any) (bool, error) {
		return false, &wire.Error{
			Code: wire.CodeConflict, Reason: fmt.Sprintf(format, args...) + ", and the lockdown must hold until that is over",
			Hint: "read lockdown to see what is left, and try again when nothing is",
		}
	}
	switch {
	case left.Requests > 0:
		return still("%d requests from before are still being answered", left.Requests)
	case left.Operations > 0:
		return still("%d operations are still being stopped", left.Operations)
	}
	var waiting []string
	for _, server := range left.Servers {
		waiting = append(waiting, server.Connection)
	}
	for _, rotation := range left.Rotations {
		waiting = append(waiting, rotation.Name)
	}
	waiting = slices.DeleteFunc(waiting, func(name string) bool { return slices.Contains(leave, name) })
	if len(waiting) > 0 {
		slices.Sort(waiting)
		return false, &wire.Error{
			Code: wire.CodeConflict, Reason: "not searched for logins or not rotated yet: " + strings.Join(slices.Compact(waiting), ", "),
			Hint: "read lockdown to see why; name those that are gone for good in leave",
		}
	}
	return alone, nil
}

// breakGlassDecision decides whether who locked may unlock alone.
func breakGlassDecision(r *lockdownRecord, now time.Time) error {
	refused := &wire.Error{
		Code: wire.CodeDenied, Rule: "unlock_by_another",
		Reason: "you locked it, so somebody else has to lift it; another login of the same person does not count",
	}
	at := r.breakGlassAt()
	switch {
	case !at.IsZero() && !now.Before(at):
		return nil
	case !at.IsZero():
		refused.RetryAt = at
		refused.Hint = "lockdown/break-glass lets you do it alone from then on"
	default:
		refused.Hint = "ask another responder; for the next time somebody else can write lockdown/break-glass"
	}
	return refused
}
