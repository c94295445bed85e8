package plugin

import (
	"context"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

const carol = "entity-carol"

// respond adds carol, and a login to alice and bob.
func (m *desk) respond() {
	login := func(name string) []*logical.Alias {
		return []*logical.Alias{{MountAccessor: "auth_oidc_1", Name: name}}
	}
	m.system.alias(alice, login("alice")...)
	m.system.alias(bob, login("bob")...)
	m.system.add(&logical.Entity{ID: carol, Name: "carol", Aliases: login("carol")})
}

// round does what the background does once.
func (m *desk) round() {
	m.t.Helper()
	state, err := m.b.lockdownRecord(context.Background(), m.storage)
	require.NoError(m.t, err)
	if state.Locked {
		require.NoError(m.t, m.b.lockdownOnce(context.Background(), m.storage, state))
	}
	m.settle()
}

func (m *desk) lockdown() wire.Lockdown {
	m.t.Helper()
	return into[wire.Lockdown](m, m.must(m.read("", "lockdown")))
}

// Operations in every state end with code locked and a reason that says who, when
// and why; claims and accounts go; agents are told to drop; nothing is claimed; a
// restart changes none of it. A copy that was in place stays a success.
func TestLockdown_StopsOperations(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.respond()
	// One that runs with its shape confirmed, one that has switched, one that is
	// being planned, one that nobody has taken.
	m.must(m.write("", "policies/dev", "targets", "*"))
	m.must(m.write("", "agents/a2", "max_operations", 4))
	running, fence := m.running()
	switched := m.cloneInto("second")
	claim := m.poll("a2").Claims[0]
	require.Equal(t, switched, claim.OperationID)
	text, shape := planText(func(h *wire.ShapeHead, _ *wire.Estimates) { h.Target.Server = "1003" })
	answer := into[wire.PlanResponse](m, m.must(m.sendPlan("a2", switched, claim.Fence, text)))
	for _, side := range []string{"source", "target"} {
		m.must(m.work("a2", switched, "accounts/"+side, "fence", answer.Claim.Fence))
	}
	m.must(m.sendPlan("a2", switched, answer.Claim.Fence, shape))
	chain := &testChain{agent: "a2", epoch: 1}
	m.must(m.events("a2", switched, chain.event(m.operation(switched), step(wire.EventStepFinished, wire.StepSwitch, "success"))))
	planning := m.cloneInto("third")
	third := m.poll("a2", switched+":"+answer.Claim.Fence).Claims[0]
	require.Equal(t, planning, third.OperationID)
	m.must(m.work("a2", planning, "accounts/inspect/source", "fence", third.Fence))
	requested := m.cloneInto("fourth")
	require.Len(t, m.db.openAccounts(), 5)

	locked := into[wire.Lockdown](m, m.must(m.write(alice, "lockdown", "reason", "stolen laptop")))
	require.True(t, locked.Locked)
	require.False(t, locked.Done)
	require.Equal(t, 4, locked.Left.Operations)
	require.Zero(t, locked.Left.Requests)
	require.Equal(t, wire.LockdownParty{EntityID: alice, Name: "alice"}, *locked.By)

	m.round()
	require.Empty(t, m.db.openAccounts())
	for id, state := range map[string]wire.State{
		running: wire.StateCancelled, planning: wire.StateCancelled, requested: wire.StateCancelled, switched: wire.StateSucceeded,
	} {
		op := m.operation(id)
		require.Equal(t, state, op.State, id)
		require.Contains(t, op.Result.Reason, "locked down since 2026-11-24T12:00:00Z by alice (entity entity-alice): stolen laptop")
		if state == wire.StateCancelled {
			require.Equal(t, wire.CodeLocked, op.Result.Code)
			require.NotEmpty(t, op.Result.Hint)
		}
	}
	require.Zero(t, m.lockdown().Left.Operations)
	require.True(t, m.lockdown().Done)

	m.restart()
	require.True(t, m.lockdown().Locked)
	polled := m.poll("a1", running+":"+fence)
	require.Empty(t, polled.Claims)
	require.Equal(t, []string{running + ":" + fence}, polled.Drop)
	_, err := m.work("a1", running, "accounts/target", "fence", fence)
	require.ErrorContains(t, err, "locked: ")
	// The agent's last words are taken.
	m.fails(running, fence)
	require.Equal(t, wire.StateCancelled, m.operation(running).State)
	m.must(m.events("a2", switched, chain.event(m.operation(switched))))

	// After the lockdown the target is cleaned and new operations run.
	m.round()
	m.must(m.write(bob, "unlock", "reason", "laptop found"))
	cleanup := m.poll("a1").Claims
	require.Len(t, cleanup, 1)
	require.Equal(t, wire.PhaseCleanup, cleanup[0].Phase)
	m.must(m.work("a1", running, "finish", "fence", cleanup[0].Fence, "outcome", "succeeded"))
	m.clone()
	require.Len(t, m.poll("a1").Claims, 1)
}

// A claim to clean up is taken too, and given again after the lockdown.
func TestLockdown_TakesCleanupClaims(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.respond()
	id := m.failed()
	require.Len(t, m.poll("a1").Claims, 1)
	m.must(m.write(alice, "lockdown", "reason", "drill"))
	require.Equal(t, 1, m.lockdown().Left.Operations)
	m.round()
	require.True(t, m.lockdown().Done)
	require.Equal(t, wire.CodeEngine, m.operation(id).Result.Code, "how it had ended stays")
	require.Empty(t, m.poll("a1").Claims)
	m.must(m.write(bob, "unlock", "reason", "over"))
	require.Equal(t, wire.PhaseCleanup, m.poll("a1").Claims[0].Phase)
}

// Who may lift a lockdown: somebody else with an entity, when nothing is left. A
// second login of who locked, or an entity theirs was merged into, is the same
// person.
func TestUnlock_NeedsSomebodyElse(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.respond()
	m.refusedField("reason")(m.write(alice, "lockdown"))
	m.must(m.write(alice, "lockdown", "reason", "drill"))
	m.refuses(wire.CodeNoIdentity, "", "unlock", "reason", "root says so")
	denied := m.refuses(wire.CodeDenied, alice, "unlock", "reason", "I changed my mind")
	require.Equal(t, "unlock_by_another", denied.Rule)
	require.NotEmpty(t, denied.Hint)

	// Vault's merge moves the aliases and takes the old entity away.
	m.system.add(&logical.Entity{ID: "entity-merged", Name: "a.lice", Aliases: append([]*logical.Alias{{MountAccessor: "auth_userpass_1", Name: "al"}}, m.system.aliases(alice)...)})
	m.system.remove(alice)
	m.system.disable(bob)
	m.refuses(wire.CodeDenied, "entity-merged", "unlock", "reason", "as somebody else")
	m.refuses(wire.CodeNoIdentity, alice, "unlock", "reason", "as nobody")
	m.refuses(wire.CodeNoIdentity, bob, "unlock", "reason", "disabled")
	m.refusedField("reason")(m.write(carol, "unlock"))
	m.must(m.write(carol, "unlock", "reason", "drill is over"))
	m.refuses(wire.CodeConflict, carol, "unlock", "reason", "again")

	history := m.lockdown().History
	require.Len(t, history, 1)
	require.Equal(t, "drill", history[0].Reason)
	require.Equal(t, "drill is over", history[0].UnlockReason)
	require.Equal(t, "carol", history[0].UnlockedBy.Name)
	require.False(t, history[0].BreakGlass)
}

// refuses writes and checks that it is refused with code.
func (m *desk) refuses(code wire.Code, entity, path string, fields ...any) wire.Error {
	m.t.Helper()
	resp, err := m.write(entity, path, fields...)
	return m.refused(code, resp, err)
}

func (m *desk) refusedField(field string) func(*logical.Response, error) {
	m.t.Helper()
	return func(resp *logical.Response, err error) {
		m.t.Helper()
		require.Equal(m.t, field, m.refused(wire.CodeInvalid, resp, err).Field)
	}
}

// Anybody the ACL lets write may lock, without an entity too. Locking again changes
// neither who nor why, and adds rotation.
func TestLockdown_ByRootAndAgain(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.respond()
	m.must(m.write("", "lockdown", "reason", "root acts"))
	m.clock.pass(time.Minute)
	m.must(m.write(alice, "lockdown", "reason", "me too", "rotate", true))
	state := m.lockdown()
	require.Equal(t, "root acts", state.Reason)
	require.Empty(t, state.By.EntityID)
	require.True(t, state.Rotate)
	require.Equal(t, time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC), state.At)
	m.refuses(wire.CodeNoIdentity, "", "unlock", "reason", "root again")
	m.must(m.write(alice, "unlock", "reason", "checked"))
}

// Break-glass: after the time that somebody else has set beforehand, who locked may
// unlock alone. Neither what was set by themselves, nor by nobody, nor during the
// lockdown, nor after it began counts.
func TestUnlock_BreakGlass(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.respond()
	m.refuses(wire.CodeNoIdentity, "", "lockdown/break-glass", "after", "1h")
	m.refusedField("after")(m.write(bob, "lockdown/break-glass", "after", "14m59s"))
	m.must(m.write(bob, "lockdown/break-glass", "after", "1h"))
	require.EqualValues(t, 3600, m.must(m.read("", "lockdown/break-glass"))["after"])

	// Who has set it is not helped by it.
	m.must(m.write(bob, "lockdown", "reason", "drill"))
	m.clock.pass(48 * time.Hour)
	require.True(t, m.refuses(wire.CodeDenied, bob, "unlock", "reason", "mine").RetryAt.IsZero())
	m.must(m.write(alice, "unlock", "reason", "over"))

	m.must(m.write(alice, "lockdown", "reason", "for real"))
	at := m.clock.now().Add(time.Hour)
	require.Equal(t, at, m.lockdown().BreakGlassAt)
	_, err := m.write(alice, "lockdown/break-glass", "after", "15m")
	require.ErrorContains(t, err, "locked: ")
	_, err = m.handle(alice, logical.DeleteOperation, "lockdown/break-glass")
	require.ErrorContains(t, err, "locked: ")
	m.clock.pass(time.Hour - time.Second)
	require.Equal(t, at, m.refuses(wire.CodeDenied, alice, "unlock", "reason", "alone").RetryAt)
	m.restart()
	m.clock.pass(time.Second)
	m.must(m.write(alice, "unlock", "reason", "alone here"))
	require.True(t, m.lockdown().History[0].BreakGlass)

	m.must(m.handle(bob, logical.DeleteOperation, "lockdown/break-glass"))
	m.must(m.write(alice, "lockdown", "reason", "once more"))
	m.clock.pass(1000 * time.Hour)
	m.refuses(wire.CodeDenied, alice, "unlock", "reason", "alone")
}

// What is left keeps a lockdown from being lifted; what is gone for good can be
// named.
func TestUnlockDecision(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	person := func(id string) lockdownParty {
		return lockdownParty{LockdownParty: wire.LockdownParty{EntityID: id, Name: id}}
	}
	locked := &lockdownRecord{Locked: true, At: now, By: person("a"), Reason: "r"}
	for name, test := range map[string]struct {
		record *lockdownRecord
		who    string
		left   wire.LockdownLeft
		leave  []string
		code   wire.Code
	}{
		"another":           {record: locked, who: "b"},
		"same":              {record: locked, who: "a", code: wire.CodeDenied},
		"not locked":        {record: &lockdownRecord{}, who: "b", code: wire.CodeConflict},
		"requests":          {record: locked, who: "b", left: wire.LockdownLeft{Requests: 1}, leave: []string{"x"}, code: wire.CodeConflict},
		"operations":        {record: locked, who: "b", left: wire.LockdownLeft{Operations: 1}, leave: []string{"x"}, code: wire.CodeConflict},
		"server":            {record: locked, who: "b", left: wire.LockdownLeft{Servers: []wire.LockdownServer{{Connection: "x"}}}, code: wire.CodeConflict},
		"other server":      {record: locked, who: "b", left: wire.LockdownLeft{Servers: []wire.LockdownServer{{Connection: "x"}}}, leave: []string{"y"}, code: wire.CodeConflict},
		"server left":       {record: locked, who: "b", left: wire.LockdownLeft{Accounts: 3, Servers: []wire.LockdownServer{{Connection: "x"}}}, leave: []string{"x"}},
		"rotation":          {record: locked, who: "b", left: wire.LockdownLeft{Rotations: []wire.LockdownRotation{{Name: "app"}}}, code: wire.CodeConflict},
		"rotation left":     {record: locked, who: "b", left: wire.LockdownLeft{Rotations: []wire.LockdownRotation{{Name: "app"}}}, leave: []string{"app"}},
		"same with nothing": {record: locked, who: "a", leave: []string{"x"}, code: wire.CodeDenied},
	} {
		_, err := unlockDecision(test.record, person(test.who), test.left, test.leave, now)
		if test.code == "" {
			require.NoError(t, err, name)
			continue
		}
		var refusal *wire.Error
		require.ErrorAs(t, err, &refusal, name)
		require.Equal(t, test.code, refusal.Code, name)
	}
	require.False(t, lockdownParty{}.same(lockdownParty{}), "who has no entity is nobody")
}

// What another node has stored takes effect with the next request.
func TestLockdown_Invalidate(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.clone()
	require.NoError(t, putStored(context.Background(), m.storage, keyLockdown, lockdownRecord{Locked: true, At: m.clock.now(), Reason: "elsewhere"}))
	m.b.invalidate(context.Background(), keyLockdown)
	_, err := m.write(alice, "clone/prod/staging")
	require.ErrorContains(t, err, "elsewhere")
	require.NoError(t, deleteStored(context.Background(), m.storage, keyLockdown))
	m.b.invalidate(context.Background(), keyLockdown)
	m.clone()
}

// A request that was let in before the lockdown and makes an account during it
// gets none, is seen in what is left, and keeps the lockdown from being lifted.
func TestLockdown_RequestInFlight(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.respond()
	op := m.clone()
	fence := m.poll("a1").Claims[0].Fence
	var during wire.Lockdown
	var unlock error
	hook := func() {
		m.must(m.write(alice, "lockdown", "reason", "now"))
		m.round()
		during = m.lockdown()
		_, unlock = m.write(bob, "unlock", "reason", "too early")
	}
	m.db.set(func(f *fakeAccounts) { f.onIssue = hook })
	_, err := m.work("a1", op.ID, "accounts/inspect/source", "fence", fence)
	require.ErrorContains(t, err, string(wire.CodeStaleClaim), "the claim was taken meanwhile")
	require.Empty(t, m.db.openAccounts())
	require.Equal(t, 1, during.Left.Requests)
	require.ErrorContains(t, unlock, "1 requests")
	require.True(t, m.lockdown().Done)
	require.Zero(t, m.lockdown().Left.Requests)
}

// A lockdown is only told once it is stored.
func TestLockdown_StoreFails(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	working := m.storage
	m.storage = &dies{Storage: working}
	_, err := m.write(alice, "lockdown", "reason", "now")
	require.ErrorContains(t, err, "internal: ")
	m.storage = working
	require.False(t, m.lockdown().Locked)
	m.clone()
}
