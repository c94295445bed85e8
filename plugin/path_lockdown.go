package plugin

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

func (b *backend) lockdownPaths() []*framework.Path {
	reason := &framework.FieldSchema{Type: framework.TypeString, Description: "Why; stands in every refusal, so name a case, not a person."}
	// A standby node knows the state but not what is left, and does nothing about
	// it: the active node answers.
	forwarded := func(f framework.OperationFunc) framework.OperationHandler {
		return &framework.PathOperation{Callback: f, ForwardPerformanceStandby: true}
	}
	return []*framework.Path{{
		Pattern: "lockdown/?$",
		Fields: map[string]*framework.FieldSchema{
			"reason": reason,
			"rotate": {Type: framework.TypeBool, Description: "Rotate all static roles and the connections' own users too. It breaks applications that use static roles until they read again, which they can after the lockdown."},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation:   forwarded(b.pathLockdownRead),
			logical.UpdateOperation: forwarded(b.pathLockdownWrite),
		},
		HelpSynopsis: "Stop everything and end all accounts; read what is left.",
		HelpDescription: `
A write locks the mount at once: nothing is given, begun or changed any more. Then
every operation is stopped and every account ended, in the background, until none
is left, which a read tells. Whoever the ACL lets write may lock, root too:
stopping is always safe. Writing again while it is locked only adds rotate.`,
	}, {
		Pattern: "lockdown/break-glass$",
		Fields: map[string]*framework.FieldSchema{
			"after": {Type: framework.TypeDurationSecond, Description: "How long after a lockdown whoever locked may unlock alone; at least 15 minutes."},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation:   forwarded(b.pathBreakGlassRead),
			logical.UpdateOperation: forwarded(b.pathBreakGlassWrite),
			logical.DeleteOperation: forwarded(b.pathBreakGlassDelete),
		},
		HelpSynopsis: "For sites with one responder: when who locked may unlock alone.",
		HelpDescription: `
It holds for lockdowns that begin after it was written, and not for whoever wrote
it: two people stand behind every unlock, one of them in advance. Without it, who
locked can never unlock.`,
	}, {
		Pattern: "unlock$",
		Fields: map[string]*framework.FieldSchema{
			"reason": reason,
			"leave":  {Type: framework.TypeCommaStringSlice, Description: "Connections and static roles that are gone for good: what is left of them is not waited for."},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: forwarded(b.pathUnlock),
		},
		HelpSynopsis: "Lift a lockdown.",
		HelpDescription: `
Needs another entity than the one that locked, and nothing left to be ended. A
token without an entity, such as a root token, cannot do it.`,
	}}
}

// reasonOf returns the reason that a request must have.
func reasonOf(d *framework.FieldData) (string, error) {
	reason, err := freeText(d, "reason")
	if err == nil && strings.TrimSpace(reason) == "" {
		err = invalidField("reason", "is missing; say why, for those who come later")
	}
	return reason, err
}

// partyOf is who stands behind a request. One without an entity is known by the
// display name of its token.
func (b *backend) partyOf(req *logical.Request) (lockdownParty, error) {
	party := lockdownParty{LockdownParty: wire.LockdownParty{Name: req.DisplayName}}
	if req.EntityID == "" {
		return party, nil
	}
	entity, err := b.System().EntityInfo(req.EntityID)
	if err != nil {
		return party, fmt.Errorf("read entity: %w", err)
	}
	party.EntityID = req.EntityID
	if entity == nil {
		return party, nil
	}
	party.EntityID, party.Name = entity.ID, entity.Name
	for _, alias := range entity.Aliases {
		party.Aliases = append(party.Aliases, partyAlias{MountAccessor: alias.MountAccessor, Name: alias.Name})
	}
	return party, nil
}

// person is partyOf for what needs an entity that lives.
func (b *backend) person(req *logical.Request) (lockdownParty, error) {
	if _, err := b.identify(req); err != nil {
		return lockdownParty{}, err
	}
	return b.partyOf(req)
}

func (b *backend) pathLockdownRead(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	state, err := b.lockdownRecord(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	return b.lockdownResponse(ctx, req.Storage, state)
}

func (b *backend) lockdownResponse(ctx context.Context, s logical.Storage, state *lockdownRecord) (*logical.Response, error) {
	answer := wire.Lockdown{Locked: state.Locked, History: state.History}
	if state.Locked {
		left, err := b.lockdownLeft(ctx, s, state)
		if err != nil {
			return nil, err
		}
		answer.At, answer.By, answer.Reason = state.At, &state.By.LockdownParty, state.Reason
		answer.Rotate, answer.BreakGlassAt = !state.RotateSince.IsZero(), state.breakGlassAt()
		answer.Left, answer.Done = &left, left.Nothing()
	}
	data, err := responseData(answer)
	if err != nil {
		return nil, err
	}
	return &logical.Response{Data: data}, nil
}

// lockdownWrites serialises changes of the state.
const lockdownWrites = "lockdown"

func (b *backend) pathLockdownWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	reason, err := reasonOf(d)
	if err != nil {
		return nil, err
	}
	who, err := b.partyOf(req)
	if err != nil {
		return nil, err
	}
	lock := b.configLocks.lock(lockdownWrites)
	defer lock.Unlock()
	state, err := b.lockdownRecord(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	now := b.now().UTC()
	next := *state
	if !state.Locked {
		glass, err := getStored[breakGlass](ctx, req.Storage, keyBreakGlass)
		if err != nil {
			return nil, err
		}
		next = lockdownRecord{Locked: true, At: now, By: who, Reason: reason, BreakGlass: glass, History: state.History}
	}
	if fieldOf[bool](d, "rotate") && next.RotateSince.IsZero() {
		next.RotateSince = now
	}
	if err := b.storeLockdown(ctx, req.Storage, &next); err != nil {
		return nil, err
	}
	b.Logger().Warn("the mount is locked down", "entity_id", who.EntityID, "name", who.Name, "reason", reason, "was_locked", state.Locked, "rotate", !next.RotateSince.IsZero())
	return b.lockdownResponse(ctx, req.Storage, &next)
}

// storeLockdown stores the state, and only then lets it take effect.
func (b *backend) storeLockdown(ctx context.Context, s logical.Storage, next *lockdownRecord) error {
	if err := putStored(ctx, s, keyLockdown, next); err != nil {
		b.lockdown.set(nil) // it may have been stored all the same: the storage knows
		return err
	}
	b.lockdown.set(next)
	return nil
}

func (b *backend) pathUnlock(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	who, err := b.person(req)
	if err != nil {
		return nil, err
	}
	reason, err := reasonOf(d)
	if err != nil {
		return nil, err
	}
	leave := fieldOf[[]string](d, "leave")
	lock := b.configLocks.lock(lockdownWrites)
	defer lock.Unlock()
	state, err := b.lockdownRecord(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	left, err := b.lockdownLeft(ctx, req.Storage, state)
	if err != nil {
		return nil, err
	}
	now := b.now().UTC()
	alone, err := unlockDecision(state, who, left, leave, now)
	if err != nil {
		return nil, err
	}
	lifted := wire.LockdownEntry{
		LockedAt: state.At, LockedBy: state.By.LockdownParty, Reason: state.Reason,
		UnlockedAt: now, UnlockedBy: who.LockdownParty, UnlockReason: reason, BreakGlass: alone, LeftBehind: leave,
	}
	history := slices.Concat([]wire.LockdownEntry{lifted}, state.History)
	next := &lockdownRecord{History: history[:min(len(history), lockdownHistory)]}
	if err := b.storeLockdown(ctx, req.Storage, next); err != nil {
		return nil, err
	}
	b.rotations.poke()
	b.Logger().Warn("the lockdown is lifted", "entity_id", who.EntityID, "name", who.Name, "reason", reason, "break_glass", alone, "left_behind", leave)
	return b.lockdownResponse(ctx, req.Storage, next)
}

func (b *backend) pathBreakGlassRead(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	glass, err := getStored[breakGlass](ctx, req.Storage, keyBreakGlass)
	if err != nil || glass == nil {
		return nil, err
	}
	return &logical.Response{Data: map[string]any{
		"after": int64(glass.After / time.Second), "set_at": glass.SetAt.UTC().Format(time.RFC3339),
		"set_by": map[string]any{"entity_id": glass.By.EntityID, "name": glass.By.Name},
	}}, nil
}

func (b *backend) pathBreakGlassWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	who, err := b.person(req) // who has no entity could be whoever locks later
	if err != nil {
		return nil, err
	}
	after, _, err := durationGiven(d, "after")
	if err != nil {
		return nil, err
	}
	if after < shortestBreakGlass {
		return nil, invalidField("after", "is less than %s", shortestBreakGlass)
	}
	lock := b.configLocks.lock(lockdownWrites)
	defer lock.Unlock()
	if err := b.refuseLocked(ctx, req.Storage); err != nil {
		return nil, err
	}
	return nil, putStored(ctx, req.Storage, keyBreakGlass, breakGlass{After: after, By: who, SetAt: b.now().UTC()})
}

func (b *backend) pathBreakGlassDelete(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	return nil, deleteStored(ctx, req.Storage, keyBreakGlass)
}
