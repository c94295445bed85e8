package plugin

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// A clone goes from the request to its end through the work protocol, and
// everything about it can be read afterwards, also after a restart.
func TestAgent_WholeClone(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	op := m.clone("reason", "ticket 7", "acl", "keep")
	require.Equal(t, wire.StateRequested, op.State)
	require.True(t, op.Decision.Allowed)

	polled := m.poll("a1")
	require.Len(t, polled.Claims, 1)
	claim := polled.Claims[0]
	require.Equal(t, wire.Claim{
		OperationID: op.ID, Fence: "1", Phase: wire.PhasePlanning, Kind: wire.KindClone,
		Source:    wire.Endpoint{Connection: "prod", Engine: wire.EnginePostgres, Host: "db1", Port: 5432, Database: "shop", SSLMode: "verify-full"},
		Target:    wire.Endpoint{Connection: "staging", Engine: wire.EnginePostgres, Host: "db2", Port: 5432, Database: "shop", SSLMode: "verify-full"},
		Options:   map[string]string{"owner": "stable", "acl": "keep", "jobs": "2", "replace": "true"},
		Requester: wire.User{EntityID: alice, Name: "alice"}, AccountTTLMilli: 300000, MaxDurationMilli: 4 * wholeHour * 1000,
	}, claim)

	for _, side := range []string{"source", "target"} {
		resp, err := m.work("a1", op.ID, "accounts/inspect/"+side, "fence", "1")
		data := m.must(resp, err)
		require.Equal(t, "hunter2", data["password"])
		require.NotEmpty(t, data["username"])
		require.EqualValues(t, 300000, data["ttl_ms"])
		require.Equal(t, 5*time.Minute, resp.Secret.TTL)
		resp, err = m.work("a1", op.ID, "accounts/"+side, "fence", "1")
		m.refused(wire.CodeConflict, resp, err)
	}
	require.Equal(t, []string{"source/inspect", "target/inspect"}, sidesOf(m.db.openAccounts()))

	text, shape := planText()
	answer := into[wire.PlanResponse](m, m.must(m.sendPlan("a1", op.ID, "1", text)))
	require.Equal(t, wire.StateRunning, answer.State)
	require.Equal(t, wire.Digest([]byte(storedPlan(text))), answer.PlanDigest)
	require.Equal(t, wire.Digest([]byte(shape)), answer.ShapeDigest)
	require.True(t, answer.Decision.Allowed)
	require.Equal(t, wire.PhaseRunning, answer.Claim.Phase)
	require.Equal(t, "2", answer.Claim.Fence)
	require.Equal(t, answer.PlanDigest, answer.Claim.PlanDigest)

	resp, err := m.work("a1", op.ID, "accounts/inspect/source", "fence", "2")
	m.refused(wire.CodeConflict, resp, err)
	lease, err := m.work("a1", op.ID, "accounts/source", "fence", "2")
	m.must(lease, err)
	require.Equal(t, 15*time.Minute, lease.Secret.TTL)
	m.must(m.work("a1", op.ID, "accounts/target", "fence", "2"))
	require.Equal(t, []string{"source/read", "target/write"}, sidesOf(m.db.openAccounts()))
	m.must(m.sendPlan("a1", op.ID, "2", shape))

	m.clock.pass(10 * time.Minute)
	renewed, err := m.b.HandleRequest(context.Background(), &logical.Request{Operation: logical.RenewOperation, Storage: m.storage, Secret: lease.Secret})
	require.NoError(t, err)
	require.Equal(t, 15*time.Minute, renewed.Secret.TTL)

	chain := &testChain{agent: "a1", epoch: 1}
	data := m.must(m.events("a1", op.ID, chain.event(op), chain.event(op, step(wire.EventStepStarted, wire.StepVerify, "started"))))
	require.Equal(t, map[string]any{"epoch": "1", "seq": "2", "head": chain.head}, data)
	require.Equal(t, wire.StateVerifying, m.operation(op.ID).State)
	m.must(m.events("a1", op.ID, chain.event(op, step(wire.EventStepFinished, wire.StepSwitch, "success"))))

	finish := []any{"fence", "2", "outcome", "succeeded", "rows", "10", "bytes", "100", "tables", "1", "report", `{"tables":[]}`}
	require.Equal(t, "succeeded", m.must(m.work("a1", op.ID, "finish", finish...))["state"])
	require.Equal(t, "succeeded", m.must(m.work("a1", op.ID, "finish", finish...))["state"])
	resp, err = m.work("a1", op.ID, "finish", "fence", "2", "outcome", "failed", "code", "engine")
	m.refused(wire.CodeConflict, resp, err)
	m.settle()
	require.Empty(t, m.db.openAccounts())
	_, err = m.b.HandleRequest(context.Background(), &logical.Request{Operation: logical.RenewOperation, Storage: m.storage, Secret: lease.Secret})
	m.refused(wire.CodeLeaseLost, nil, err)

	m.restart()
	end := into[wire.Operation](m, m.must(m.read(alice, "operations/"+op.ID)))
	require.Equal(t, wire.StateSucceeded, end.State)
	require.Equal(t, "10", end.Result.Rows)
	require.Equal(t, wire.Digest([]byte(`{"tables":[]}`)), end.Result.ReportDigest)
	require.Equal(t, storedPlan(text), m.must(m.read(alice, "operations/"+op.ID+"/plan"))["text"])
	require.Equal(t, `{"tables":[]}`, m.must(m.read("", "all/operations/"+op.ID+"/report"))["text"])
	require.Equal(t, "1001", m.must(m.read("", "connections/prod"))["identity"].(map[string]any)["server"])
	require.Equal(t, wire.Chain{Epoch: "1", Seq: "3", Head: chain.head}, m.poll("a1").Chain)
}

// What belongs to somebody else does not exist.
func TestOperations_OnlyOnesOwn(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	op := m.clone()
	m.must(m.read(alice, "operations/"+op.ID))
	for _, path := range []string{"", "/plan", "/report"} {
		resp, err := m.read(bob, "operations/"+op.ID+path)
		m.refused(wire.CodeNotFound, resp, err)
	}
	resp, err := m.write(bob, "operations/"+op.ID+"/cancel")
	m.refused(wire.CodeNotFound, resp, err)
	resp, err = m.read("", "operations/"+op.ID)
	m.refused(wire.CodeNoIdentity, resp, err)
	require.Empty(t, m.must(m.handle(bob, logical.ListOperation, "operations/"))["keys"])
	require.Equal(t, []string{op.ID}, m.must(m.handle(alice, logical.ListOperation, "operations/"))["keys"])
	require.Equal(t, []string{op.ID}, m.must(m.handle("", logical.ListOperation, "all/operations/"))["keys"])

	m.must(m.write(alice, "operations/"+op.ID+"/cancel"))
	next := m.clone()
	found := m.must(m.read(alice, "operations", "state", "requested"))
	require.Len(t, found["operations"], 1)
	require.Equal(t, next.ID, found["operations"].([]any)[0].(map[string]any)["id"])
	found = m.must(m.read("", "all/operations", "limit", 1))
	require.Equal(t, true, found["more"])
	found = m.must(m.read("", "all/operations", "limit", 1, "after", next.ID))
	require.Equal(t, op.ID, found["operations"].([]any)[0].(map[string]any)["id"])
	resp, err = m.read(alice, "operations", "state", "lost")
	m.refused(wire.CodeInvalid, resp, err)
}

// Only the bound entity is an agent, and only on what it has claimed.
func TestAgent_Binding(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	for _, entity := range []string{alice, agentTwo} {
		resp, err := m.write(entity, "agents/a1/poll", "version", 1, "audit_devices", "1")
		m.refused(wire.CodeNotYourOperation, resp, err)
	}
	resp, err := m.write("", "agents/a1/poll", "version", 1)
	m.refused(wire.CodeNoIdentity, resp, err)
	resp, err = m.write(agentOne, "agents/unknown/poll", "version", 1)
	m.refused(wire.CodeNotFound, resp, err)
	resp, err = m.write(agentOne, "agents/a1/poll", "version", 2)
	m.refused(wire.CodeConflict, resp, err)

	op := m.clone()
	require.Len(t, m.poll("a1").Claims, 1)
	chain := &testChain{agent: "a2", epoch: 1}
	for what, fields := range map[string][]any{
		"plan":                    {"fence", "1", "part", "0", "parts", "1", "text", "{}"},
		"accounts/source":         {"fence", "1"},
		"accounts/inspect/source": {"fence", "1"},
		"events":                  {wire.EventsKey, []string{chain.event(op)}},
		"finish":                  {"fence", "1", "outcome", "failed", "code", "engine"},
	} {
		resp, err := m.work("a2", op.ID, what, fields...)
		m.refused(wire.CodeNotYourOperation, resp, err)
	}
	require.Empty(t, m.db.openAccounts())
	require.Equal(t, wire.StatePlanning, m.operation(op.ID).State)

	// By entity id instead of the role.
	m.must(m.write("", "agents/a3", "entity_id", bob))
	m.must(m.write(bob, "agents/a3/poll", "version", 1, "boot", "x", "audit_devices", "1"))
	for _, name := range []string{"A1", "a_1", strings.Repeat("a", 64), "a1+"} {
		resp, err := m.write("", "agents/"+name, "accessor", "x")
		require.True(t, err != nil || resp.IsError(), name)
	}
}

// The plan is decided upon again: limits on what was found, servers that are not
// what they were, one database behind two names.
func TestPlan_Decisions(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(m *desk)
		plan   func(*wire.ShapeHead, *wire.Estimates)
		code   wire.Code
		rule   string
	}{
		"bytes":     {func(m *desk) { m.must(m.write("", "policies/dev", "max_bytes", 99)) }, func(*wire.ShapeHead, *wire.Estimates) {}, wire.CodeLimitExceeded, "max_bytes"},
		"rows":      {func(m *desk) { m.must(m.write("", "policies/dev", "max_rows", 9)) }, func(*wire.ShapeHead, *wire.Estimates) {}, wire.CodeLimitExceeded, "max_rows"},
		"same":      {func(*desk) {}, func(h *wire.ShapeHead, _ *wire.Estimates) { h.Target.Server = h.Source.Server }, wire.CodeSameDatabase, "same_database"},
		"database":  {func(*desk) {}, func(h *wire.ShapeHead, _ *wire.Estimates) { h.Source.Database = "other" }, wire.CodeDenied, "server_identity"},
		"plaintext": {func(m *desk) { m.must(m.write("", "policies/dev", "require_tls", true)) }, func(h *wire.ShapeHead, _ *wire.Estimates) { h.Target.TLS = false }, wire.CodeDenied, "require_tls"},
		"identity":  {func(m *desk) { m.system.remove(alice) }, func(*wire.ShapeHead, *wire.Estimates) {}, wire.CodeNoIdentity, "require_authentication"},
		"policy":    {func(m *desk) { m.must(m.handle("", logical.DeleteOperation, "policies/dev")) }, func(*wire.ShapeHead, *wire.Estimates) {}, wire.CodeDenied, "default_deny"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newDesk(t)
			op := m.clone()
			require.Len(t, m.poll("a1").Claims, 1)
			m.must(m.work("a1", op.ID, "accounts/inspect/source", "fence", "1"))
			c.change(m)
			text, _ := planText(c.plan)
			answer := into[wire.PlanResponse](m, m.must(m.sendPlan("a1", op.ID, "1", text)))
			require.Equal(t, wire.StateDenied, answer.State)
			require.Nil(t, answer.Claim)
			require.False(t, answer.Decision.Allowed)
			require.Equal(t, c.code, answer.Decision.Code)
			require.Equal(t, c.rule, answer.Decision.Rule)
			require.Equal(t, c.code, m.operation(op.ID).Result.Code)
			m.settle()
			require.Empty(t, m.db.openAccounts())
			require.Equal(t, "denied", m.must(m.work("a1", op.ID, "finish", "fence", "1", "outcome", "failed", "code", "denied"))["state"])
		})
	}
}

// Another server under an unchanged config is refused until somebody says that it
// is right; under a changed one it is taken.
func TestPlan_ServerReplaced(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	id, fence := m.running()
	m.must(m.work("a1", id, "finish", "fence", fence, "outcome", "failed", "code", "engine"))
	try := func() wire.State {
		op := m.clone()
		claims := m.poll("a1").Claims
		require.Len(t, claims, 1)
		text, _ := planText(func(h *wire.ShapeHead, _ *wire.Estimates) { h.Target.Server = "2002" })
		answer := into[wire.PlanResponse](m, m.must(m.sendPlan("a1", op.ID, claims[0].Fence, text)))
		if answer.Claim != nil {
			m.must(m.work("a1", op.ID, "finish", "fence", answer.Claim.Fence, "outcome", "failed", "code", "engine"))
		}
		return answer.State
	}
	require.Equal(t, wire.StateDenied, try())
	m.must(m.write("", "connections/staging", "forget_identity", true))
	require.Equal(t, wire.StateRunning, try())
	require.Equal(t, wire.StateRunning, try())
}

// What the plan was decided on is pinned until the accounts that reach data.
func TestPlan_PinnedFacts(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(m *desk)
		code   wire.Code
	}{
		"config":     {func(m *desk) { m.db.set(func(f *fakeAccounts) { f.configs["prod"] = "c1b" }) }, wire.CodePlanChanged},
		"connection": {func(m *desk) { m.must(m.write("", "connections/staging", "labels", "tier=other")) }, wire.CodePlanChanged},
		"policy":     {func(m *desk) { m.must(m.write("", "policies/dev", "max_rows", 1000)) }, wire.CodePlanChanged},
		"new policy": {func(m *desk) {
			m.must(m.write("", "policies/more", "entities", "*", "sources", "*", "targets", "*", "allowed_operations", "*"))
		}, wire.CodePlanChanged},
		"role of the source": {func(m *desk) { m.db.grant("r", "GRANT superuser") }, wire.CodePlanChanged},
		"role of the target": {func(m *desk) { m.db.grant("w", "GRANT superuser") }, wire.CodePlanChanged},
		"role that is gone":  {func(m *desk) { m.db.grant("r", "") }, wire.CodePlanChanged},
		"server that says it is another": {func(m *desk) {
			m.db.identify("staging", wire.ServerIdentity{Engine: wire.EnginePostgres, Server: "6666", Database: "shop"})
		}, wire.CodePlanChanged},
		"server that was seen": {func(m *desk) { m.must(m.write("", "connections/prod", "forget_identity", true)) }, wire.CodePlanChanged},
		"forbidden":            {func(m *desk) { m.must(m.write("", "policies/dev", "allowed_operations", "backup")) }, wire.CodeDenied},
		"disabled":             {func(m *desk) { m.system.disable(alice) }, wire.CodeNoIdentity},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newDesk(t)
			op := m.clone()
			m.poll("a1")
			text, _ := planText()
			m.must(m.sendPlan("a1", op.ID, "1", text))
			c.change(m)
			resp, err := m.work("a1", op.ID, "accounts/target", "fence", "2")
			m.refused(c.code, resp, err)
			require.Equal(t, wire.StateFailed, m.operation(op.ID).State)
			require.Equal(t, c.code, m.operation(op.ID).Result.Code)
			require.Empty(t, m.db.openAccounts())
			require.Equal(t, "failed", m.must(m.work("a1", op.ID, "finish", "fence", "2", "outcome", "failed", "code", string(c.code)))["state"])
		})
	}
}

// A source that changed between plan and run voids the plan.
func TestPlan_ShapeChanged(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	op := m.clone()
	m.poll("a1")
	text, shape := planText()
	m.must(m.sendPlan("a1", op.ID, "1", text))
	m.must(m.work("a1", op.ID, "accounts/source", "fence", "2"))
	resp, err := m.work("a1", op.ID, "finish", "fence", "2", "outcome", "succeeded")
	m.refused(wire.CodeConflict, resp, err)
	_, other := planText(func(h *wire.ShapeHead, _ *wire.Estimates) { h.Tables = 2 })
	require.NotEqual(t, shape, other)
	resp, err = m.sendPlan("a1", op.ID, "2", other)
	m.refused(wire.CodePlanChanged, resp, err)
	require.Equal(t, wire.CodePlanChanged, m.operation(op.ID).Result.Code)
	m.settle()
	require.Empty(t, m.db.openAccounts())
	require.Nil(t, m.must(m.read("", "all/operations/"+op.ID))["cleanup"])
}

// Plans come in parts and in any order; too many bytes are refused; a restart in
// between asks for all of it again.
func TestPlan_Parts(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	op := m.clone()
	m.poll("a1")
	text, _ := planText(func(h *wire.ShapeHead, _ *wire.Estimates) { h.Why = strings.Repeat("because é ", 80000) })
	m.answerAs(op.ID, text)
	parts := splitText(text)
	require.Greater(t, len(parts), 2)
	send := func(n int) (*logical.Response, error) {
		return m.work("a1", op.ID, "plan", "fence", "1", "part", strconv.Itoa(n), "parts", strconv.Itoa(len(parts)), "text", parts[n])
	}
	m.must(send(0))
	m.restart()
	for n := 1; n < len(parts)-1; n++ {
		m.must(send(n))
	}
	resp, err := send(len(parts) - 1)
	m.refused(wire.CodeConflict, resp, err)
	for n := range len(parts) - 1 {
		require.Equal(t, "", m.must(send(n))["state"])
		m.must(send(n))
	}
	require.Equal(t, "running", m.must(send(len(parts) - 1))["state"])
	m.must(send(0))
	require.Equal(t, "running", m.must(send(len(parts) - 1))["state"])

	var read strings.Builder
	for n := range splitText(storedPlan(text)) {
		read.WriteString(m.must(m.read(alice, "operations/"+op.ID+"/plan", "part", strconv.Itoa(n)))["text"].(string))
	}
	require.Equal(t, storedPlan(text), read.String())

	next := m.clone()
	require.Empty(t, m.poll("a2").Claims, "the target is taken")
	m.must(m.work("a1", op.ID, "finish", "fence", "2", "outcome", "failed", "code", "engine", "reason", "x"))
	m.settle()
	fence := m.poll("a2").Claims[0].Fence
	big := strings.Repeat("x", wire.PlanPartBytes)
	var last error
	for n := range 201 {
		if _, last = m.work("a2", next.ID, "plan", "fence", fence, "part", strconv.Itoa(n), "parts", "300", "text", big); last != nil {
			break
		}
	}
	m.refused(wire.CodePlanTooLarge, nil, last)
	resp, err = m.work("a2", next.ID, "plan", "fence", fence, "part", "0", "parts", "1", "text", big+"x")
	m.refused(wire.CodeInvalid, resp, err)
	for _, text := range []string{"{", "{}", `{"version":1,"shape":3}`, `{"version":1,"shape":{"kind":"merge"}}`, `{"version":1,"shape":{"kind":"clone"}}`, `{"version":2,"shape":{}}`} {
		resp, err = m.sendPlan("a2", next.ID, fence, text)
		require.Equal(t, "text", m.refused(wire.CodeInvalid, resp, err).Field)
	}
}

// A second read ends the first account; three are the limit; an account made while
// the claim ended is given to nobody.
func TestAccounts_OnePerSide(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	op := m.clone()
	m.poll("a1")
	names := map[any]bool{}
	for range 3 {
		names[m.must(m.work("a1", op.ID, "accounts/inspect/source", "fence", "1"))["username"]] = true
		require.Len(t, m.db.openAccounts(), 1)
	}
	require.Len(t, names, 3)
	resp, err := m.work("a1", op.ID, "accounts/inspect/source", "fence", "1")
	m.refused(wire.CodeConflict, resp, err)
	hook := func() {
		m.db.set(func(f *fakeAccounts) { f.onIssue = nil })
		m.must(m.work("a1", op.ID, "finish", "fence", "1", "outcome", "failed", "code", "sandbox"))
	}
	m.db.set(func(f *fakeAccounts) { f.onIssue = hook })
	resp, err = m.work("a1", op.ID, "accounts/inspect/target", "fence", "1")
	m.refused(wire.CodeStaleClaim, resp, err)
	m.settle()
	require.Empty(t, m.db.openAccounts())
}

// A server that is down says which side it is and uses up no account.
func TestAccounts_ServerDown(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	op := m.clone()
	m.poll("a1")
	refused := &wire.Error{Code: wire.CodeUnavailable, Reason: "connection refused"}
	m.db.set(func(f *fakeAccounts) { f.issueFails = refused })
	for range 5 {
		_, err := m.work("a1", op.ID, "accounts/inspect/target", "fence", "1")
		require.Equal(t, wire.CodeTargetUnavailable, wire.ParseError(err.Error()).Code)
	}
	m.db.set(func(f *fakeAccounts) { f.issueFails = nil })
	m.must(m.work("a1", op.ID, "accounts/inspect/target", "fence", "1"))
}

// Accounts that cannot be ended now are tried again until they are, and an
// operation is not given to anybody meanwhile.
func TestAccounts_EndedLater(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	id, fence := m.running()
	m.db.set(func(f *fakeAccounts) { f.endFails = fmt.Errorf("server down") })
	m.fails(id, fence)
	m.settle()
	require.Len(t, m.db.openAccounts(), 2)
	require.Empty(t, m.poll("a1").Claims)
	m.db.set(func(f *fakeAccounts) { f.endFails = nil })
	m.settle()
	require.Len(t, m.db.openAccounts(), 2, "a server that is down is not asked every second")
	m.clock.pass(31 * time.Second)
	m.settle()
	m.settle()
	require.Empty(t, m.db.openAccounts())
	require.Len(t, m.poll("a1").Claims, 1)
}

// Each instance on the same storage answers alike: claims, chains, policies,
// connections and agents are all there after a restart.
func TestRestart_KeepsEverything(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	id, fence := m.running()
	before := []map[string]any{
		m.must(m.read("", "policies/dev")), m.must(m.read("", "connections/prod")), m.must(m.read("", "all/operations/"+id)),
	}
	m.restart()
	require.Equal(t, before, []map[string]any{
		m.must(m.read("", "policies/dev")), m.must(m.read("", "connections/prod")), m.must(m.read("", "all/operations/"+id)),
	})
	require.Empty(t, m.poll("a1", id+":"+fence).Drop)
	m.must(m.work("a1", id, "accounts/source", "fence", fence))
	require.Len(t, m.db.openAccounts(), 2)
	m.must(m.work("a1", id, "finish", "fence", fence, "outcome", "succeeded"))
}

// A change by another node is seen after its invalidation.
func TestInvalidate(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	op := m.clone()
	follower := &desk{t: t, disk: m.disk, system: m.system, db: m.db, clock: m.clock}
	follower.restart()
	require.Equal(t, wire.StateRequested, follower.operation(op.ID).State)
	m.must(m.write(alice, "operations/"+op.ID+"/cancel"))
	m.must(m.write("", "policies/dev", "max_rows", 7))
	require.Equal(t, wire.StateRequested, follower.operation(op.ID).State)
	for _, key := range []string{prefixOperation + op.ID, prefixPolicy + "dev"} {
		follower.b.opsInvalidate(key)
	}
	require.Equal(t, wire.StateCancelled, follower.operation(op.ID).State)
	require.EqualValues(t, 7, follower.must(follower.read("", "policies/dev"))["max_rows"])
}
