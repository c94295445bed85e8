package plugin

import (
	"fmt"
	"sync"
	"testing"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// A poll whose answer was lost gives the same claim again; the plugin's restart
// changes nothing about that, and a claim that ended is dropped.
func TestPoll_LostAnswerAndRestart(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	op := m.clone()
	first := m.poll("a1")
	require.Equal(t, first.Claims, m.poll("a1").Claims)
	require.Empty(t, m.poll("a2").Claims)
	m.restart()
	again := m.poll("a1")
	require.Equal(t, first.Claims, again.Claims)
	require.Empty(t, m.poll("a1", op.ID+":1").Claims)
	require.Empty(t, m.poll("a1", op.ID+":1").Drop)

	text, _ := planText()
	running := into[wire.PlanResponse](m, m.must(m.sendPlan("a1", op.ID, "1", text)))
	lost := m.poll("a1", op.ID+":1") // it did not get the answer to its plan
	require.Empty(t, lost.Drop)
	require.Len(t, lost.Claims, 1)
	require.Equal(t, running.Claim.Fence, lost.Claims[0].Fence)
	m.restart()
	repeated := into[wire.PlanResponse](m, m.must(m.sendPlan("a1", op.ID, "1", text)))
	require.Equal(t, running, repeated)

	resp, err := m.work("a1", op.ID, "accounts/source", "fence", "1")
	m.refused(wire.CodeStaleClaim, resp, err)
	resp, err = m.work("a1", op.ID, "finish", "fence", "1", "outcome", "failed", "code", "engine")
	m.refused(wire.CodeStaleClaim, resp, err)
	m.must(m.work("a1", op.ID, "finish", "fence", "2", "outcome", "failed", "code", "engine", "reason", "no"))
	require.Equal(t, []string{op.ID + ":2"}, m.poll("a1", op.ID+":2").Drop)
}

// No work goes to an agent without an audit device, without a free slot, in drain,
// or that a connection does not permit; max_operations holds under parallel polls.
func TestPoll_WhoGetsWork(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	var ops []string
	m.must(m.write("", "policies/dev", "targets", "staging*"))
	for i := range 5 {
		ops = append(ops, m.cloneInto(fmt.Sprint("staging", i)))
	}
	for _, audit := range []string{"0", "-1", "", "many"} {
		require.Empty(t, m.pollWith("a1", 4, audit).Claims)
	}
	require.Empty(t, m.pollWith("a1", 0, "1").Claims)
	m.must(m.write("", "agents/a1", "drain", true))
	require.Empty(t, m.poll("a1").Claims)
	m.must(m.write("", "agents/a1", "drain", false))
	m.must(m.write("", "connections/prod", "agents", "a2,b*"))
	require.Empty(t, m.poll("a1").Claims)
	m.must(m.write("", "connections/prod", "agents", ""))
	m.must(m.write("", "agents/a1", "max_operations", 3))
	var wait sync.WaitGroup
	for range 10 {
		wait.Go(func() { m.poll("a1") })
	}
	wait.Wait()
	polled := m.poll("a1")
	require.Len(t, polled.Claims, 3)
	for i, c := range polled.Claims { // oldest first
		require.Equal(t, ops[i], c.OperationID)
	}
	require.Len(t, m.must(m.read("", "agents/a1"))["operations"], 3)
	resp, err := m.handle("", logical.DeleteOperation, "agents/a1")
	m.refused(wire.CodeConflict, resp, err)
	resp, err = m.handle("", logical.DeleteOperation, "connections/prod")
	m.refused(wire.CodeConflict, resp, err)
	require.InDelta(t, 250, polled.NextPollMS, 51)
	require.InDelta(t, 1000, m.pollWith("a2", 0, "1").NextPollMS, 201)
}

// One operation at a time works into a database, under whichever of its names,
// and the next one starts when it has ended; parallel polls of two agents do not
// get around it.
func TestPoll_OneOperationPerTarget(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.must(m.write("", "policies/dev", "targets", "staging*"))
	first, second := m.clone(), m.clone()
	other := m.cloneInto("staging9")
	m.must(m.write("", "agents/a1", "max_operations", 3))
	m.must(m.write("", "agents/a2", "max_operations", 3))
	claims := make(chan string, 100)
	var wait sync.WaitGroup
	for i := range 10 {
		wait.Go(func() {
			for _, c := range m.poll([]string{"a1", "a2"}[i%2]).Claims {
				claims <- c.OperationID
			}
		})
	}
	wait.Wait()
	close(claims)
	seen := map[string]bool{}
	for id := range claims {
		seen[id] = true
	}
	require.Equal(t, map[string]bool{first.ID: true, other: true}, seen)

	text, _ := planText()
	holder := m.operation(first.ID).Agent
	into[wire.PlanResponse](m, m.must(m.sendPlan(holder, first.ID, "1", text))) // identities are known now
	m.must(m.work(holder, first.ID, "finish", "fence", "2", "outcome", "failed", "code", "engine", "reason", "no"))
	m.settle()
	require.Len(t, m.poll("a1", other+":1").Claims, 1)
	require.Equal(t, wire.StatePlanning, m.operation(second.ID).State)

	// Another name of the same database is the same target.
	alias := m.cloneInto("staging-too")
	m.b.ops.mu.Lock()
	facts := m.b.ops.connections["staging-too"]
	facts.Identity = m.b.ops.connections["staging"].Identity
	m.b.ops.connections["staging-too"] = facts
	m.b.ops.mu.Unlock()
	for _, c := range m.poll("a2").Claims {
		require.NotEqual(t, alias, c.OperationID)
	}
}

// All agents together stay below 200 polls a second.
func TestPoll_PaceOfManyAgents(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	for i := range 1000 {
		m.b.ops.heard[fmt.Sprint("x", i)] = agentHeard{At: m.clock.now()}
	}
	require.InDelta(t, 5000, m.pollWith("a2", 0, "1").NextPollMS, 1100)
}
