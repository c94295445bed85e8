package plugin

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// An agent that falls silent while planning loses the claim; after three the
// operation fails. Its old claim is worth nothing.
func TestLostAgent_Planning(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	op := m.clone()
	for attempt := 1; attempt <= 3; attempt++ {
		polled := m.poll("a1")
		require.Len(t, polled.Claims, 1, attempt)
		fence := polled.Claims[0].Fence
		require.Equal(t, strconv.Itoa(attempt), fence)
		m.must(m.work("a1", op.ID, "accounts/inspect/source", "fence", fence))
		m.clock.pass(59 * time.Second)
		m.settle()
		require.Equal(t, wire.StatePlanning, m.operation(op.ID).State)
		m.clock.pass(2 * time.Second)
		m.settle()
		m.settle()
		require.Empty(t, m.db.openAccounts())
		resp, err := m.work("a1", op.ID, "accounts/inspect/source", "fence", fence)
		m.refused(wire.CodeStaleClaim, resp, err)
		if attempt < 3 {
			require.Equal(t, wire.StateRequested, m.operation(op.ID).State)
		}
	}
	end := m.operation(op.ID)
	require.Equal(t, wire.StateFailed, end.State)
	require.Equal(t, wire.CodeAgentLost, end.Result.Code)
}

// An agent that falls silent while running: the operation fails, its accounts are
// ended, and what it left is cleaned up by itself or, later, by another agent. The
// grace begins anew with an instance of the plugin.
func TestLostAgent_RunningThenCleanup(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.must(m.write("", "agents/a1", "grace", "30s"))
	id, fence := m.running()
	require.Len(t, m.db.openAccounts(), 2)
	m.clock.pass(25 * time.Second)
	m.poll("a1", id+":"+fence)
	m.clock.pass(25 * time.Second)
	m.restart()
	require.NoError(t, m.b.initialize(context.Background(), &logical.InitializationRequest{Storage: m.storage}))
	m.clock.pass(25 * time.Second)
	m.settle()
	require.Equal(t, wire.StateRunning, m.operation(id).State)
	m.clock.pass(6 * time.Second)
	m.settle()
	m.settle()
	end := m.operation(id)
	require.Equal(t, wire.StateFailed, end.State)
	require.Equal(t, wire.CodeAgentLost, end.Result.Code)
	require.Empty(t, m.db.openAccounts())
	require.Equal(t, "pending", m.must(m.read("", "all/operations/"+id))["cleanup"])

	require.Empty(t, m.poll("a2").Claims, "the agent that left it has the first turn")
	back := m.pollWith("a1", 4, "1", id+":"+fence)
	require.Equal(t, []string{id + ":" + fence}, back.Drop)
	require.Len(t, back.Claims, 1)
	require.Equal(t, wire.PhaseCleanup, back.Claims[0].Phase)
	cleanup := back.Claims[0].Fence
	resp, err := m.work("a1", id, "accounts/source", "fence", cleanup)
	m.refused(wire.CodeConflict, resp, err)
	m.must(m.work("a1", id, "accounts/target", "fence", cleanup))

	// It falls silent again; another one finishes the job.
	m.clock.pass(31 * time.Second)
	m.settle()
	m.settle()
	m.clock.pass(61 * time.Second)
	other := m.poll("a2")
	require.Len(t, other.Claims, 1)
	m.must(m.work("a2", id, "accounts/target", "fence", other.Claims[0].Fence))
	m.must(m.work("a2", id, "finish", "fence", other.Claims[0].Fence, "outcome", "succeeded"))
	m.settle()
	require.Empty(t, m.db.openAccounts())
	require.Equal(t, "done", m.must(m.read("", "all/operations/"+id))["cleanup"])
	require.Equal(t, wire.StateFailed, m.operation(id).State)
	require.Empty(t, m.poll("a2").Claims)
}

// A silent agent whose events told of the switch leaves a success: the copy is in
// place, only its cleaning up is missing.
func TestLostAgent_AfterTheSwitch(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	id, fence := m.running()
	chain := &testChain{agent: "a1", epoch: 1}
	m.must(m.events("a1", id, chain.event(m.operation(id), step(wire.EventStepFinished, wire.StepSwitch, "success"))))
	resp, err := m.write(alice, "operations/"+id+"/cancel")
	m.refused(wire.CodeConflict, resp, err)
	m.clock.pass(2 * time.Minute)
	m.settle()
	require.Equal(t, wire.StateSucceeded, m.operation(id).State)
	require.Equal(t, "pending", m.must(m.read("", "all/operations/"+id))["cleanup"])
	require.Equal(t, "succeeded", m.must(m.work("a1", id, "finish", "fence", fence, "outcome", "succeeded"))["state"])
	require.Equal(t, "done", m.must(m.read("", "all/operations/"+id))["cleanup"])
}

// Nobody takes it: expired. Too long: failed, the claim dropped, accounts ended.
func TestDeadlines(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	op := m.clone()
	m.clock.pass(59 * time.Minute)
	m.settle()
	require.Equal(t, wire.StateRequested, m.operation(op.ID).State)
	m.clock.pass(2 * time.Minute)
	m.settle()
	require.Equal(t, wire.StateExpired, m.operation(op.ID).State)
	require.Equal(t, wire.CodeExpired, m.operation(op.ID).Result.Code)

	m.must(m.write("", "policies/dev", "max_duration", "10m"))
	id, fence := m.running()
	for range 20 {
		m.clock.pass(30 * time.Second)
		require.Empty(t, m.poll("a1", id+":"+fence).Drop)
		m.settle()
	}
	resp, err := m.work("a1", id, "accounts/source", "fence", fence)
	require.True(t, err != nil || resp.Secret.TTL <= time.Second)
	m.clock.pass(31 * time.Second)
	m.settle()
	m.settle()
	require.Equal(t, wire.CodeDeadline, m.operation(id).Result.Code)
	require.Equal(t, []string{id + ":" + fence}, m.pollWith("a1", 0, "1", id+":"+fence).Drop)
	require.Empty(t, m.db.openAccounts())
}

// Cancelling: at once when nobody works on it, through the agent otherwise; a
// success of a cancelled operation is refused.
func TestCancel(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	op := m.clone()
	require.Equal(t, "cancelled", m.must(m.write(alice, "operations/"+op.ID+"/cancel"))["state"])
	require.Equal(t, "cancelled", m.must(m.write(alice, "operations/"+op.ID+"/cancel"))["state"])
	require.Empty(t, m.poll("a1").Claims)

	id, fence := m.running()
	data := m.must(m.write("", "all/operations/"+id+"/cancel"))
	require.Equal(t, "running", data["state"])
	require.Equal(t, true, data["cancel_requested"])
	require.Equal(t, []string{id}, m.poll("a1", id+":"+fence).Cancel)
	resp, err := m.work("a1", id, "finish", "fence", fence, "outcome", "succeeded")
	m.refused(wire.CodeConflict, resp, err)
	m.must(m.work("a1", id, "finish", "fence", fence, "outcome", "cancelled"))
	require.Equal(t, wire.StateCancelled, m.operation(id).State)
	resp, err = m.work("a1", id, "finish", "fence", fence, "outcome", "succeeded")
	m.refused(wire.CodeConflict, resp, err)
	resp, err = m.write(alice, "operations/"+op.ID+"/cancel")
	m.must(resp, err)

	// Asked while the switch was happening: it is in place, so it has succeeded.
	id, fence = m.running()
	m.must(m.write(alice, "operations/"+id+"/cancel"))
	chain := &testChain{agent: "a1", epoch: 1}
	m.must(m.events("a1", id, chain.event(m.operation(id), step(wire.EventStepFinished, wire.StepSwitch, "success"))))
	resp, err = m.work("a1", id, "finish", "fence", fence, "outcome", "cancelled")
	m.refused(wire.CodeConflict, resp, err)
	require.Equal(t, "succeeded", m.must(m.work("a1", id, "finish", "fence", fence, "outcome", "succeeded"))["state"])

	// Nobody asked: an agent cannot cancel by itself.
	id, fence = m.running()
	resp, err = m.work("a1", id, "finish", "fence", fence, "outcome", "cancelled")
	m.refused(wire.CodeConflict, resp, err)

	// While planning.
	m.must(m.work("a1", id, "finish", "fence", fence, "outcome", "failed", "code", "engine"))
	op = m.clone()
	require.Len(t, m.poll("a1").Claims, 1)
	m.must(m.write(alice, "operations/"+op.ID+"/cancel"))
	text, _ := planText()
	require.Equal(t, "cancelled", m.must(m.sendPlan("a1", op.ID, "1", text))["state"])
	require.Equal(t, "cancelled", m.must(m.work("a1", op.ID, "finish", "fence", "1", "outcome", "cancelled"))["state"])
}
