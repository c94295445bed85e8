package plugin

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// givenUp is an operation whose target no agent could clean.
func (m *desk) givenUp() string {
	m.t.Helper()
	id, fence := m.running()
	m.fails(id, fence)
	for range maxCleanupAttempts {
		m.settle()
		m.clock.pass(10 * time.Minute)
		claim := m.poll("a1").Claims[0]
		require.Equal(m.t, wire.PhaseCleanup, claim.Phase)
		m.fails(id, claim.Fence, "reason", "still there")
	}
	m.settle()
	require.Equal(m.t, "failed", m.must(m.read("", "all/operations/"+id))["cleanup"])
	return id
}

// An operation that agents could not clean stays for ever, until a person says to have
// cleaned by hand, and why: that stands in the operation, in its receipt and in a fact.
// Then it goes like any other, counted from that moment.
func TestAcknowledge_WholeWay(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	id := m.givenUp()
	first := m.must(m.read(alice, "operations/"+id+"/receipt"))
	require.Equal(t, "failed", m.receipt(id).Predicate.Attested.End.Cleanup)
	m.clock.pass(2 * defaultRetention)
	require.Zero(t, m.prune())

	at := m.clock.now()
	path := "all/operations/" + id + "/acknowledge"
	for range 2 { // an answer that was lost is given again
		answer := m.must(m.write(bob, path, "reason", "dropped it, told eve@example.com"))
		require.Equal(t, "acknowledged", answer["cleanup"])
		require.Equal(t, "dropped it, told [email]", answer["comment"])
		said := answer["cleanup_acknowledged"].(map[string]any)
		require.Equal(t, bob, said["entity_id"])
		require.Equal(t, "dropped it, told [email]", said["reason"])
	}
	resp, err := m.write(bob, path, "reason", "another one")
	m.refused(wire.CodeConflict, resp, err)
	m.settle()
	m.restart()
	m.settle()
	a := m.receipt(id).Predicate.Attested
	require.Equal(t, "acknowledged", a.End.Cleanup)
	require.Equal(t, &wire.ReceiptAcknowledgement{User: wire.User{EntityID: bob, Name: "bob"}, At: at, Reason: "dropped it, told [email]"}, a.End.Acknowledged)
	require.Equal(t, first["receipt_digest"], a.Supersedes)

	m.clock.pass(defaultRetention)
	require.Zero(t, m.prune(), "its retention counts from there")
	m.clock.pass(time.Second)
	require.Equal(t, 1, m.prune())
	m.gone(id)
	require.Empty(t, m.keys(id))
}

// Where no agent is left that may clean the target a person can after an hour, but not
// while one does. An agent that comes later is not sent there.
func TestAcknowledge_NoAgentLeft(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	id := m.failed()
	path := "all/operations/" + id + "/acknowledge"
	refused := func() {
		t.Helper()
		resp, err := m.write(bob, path, "reason", "dropped it")
		require.Contains(t, m.refused(wire.CodeConflict, resp, err).Hint, "1h0m0s")
	}
	m.clock.pass(untendedAfter - time.Second)
	refused()
	claim := m.poll("a1").Claims[0]
	require.Equal(t, wire.PhaseCleanup, claim.Phase)
	m.clock.pass(time.Second)
	refused()
	m.fails(id, claim.Fence, "reason", "still there")
	m.settle()
	m.clock.pass(untendedAfter - time.Second)
	refused()
	m.clock.pass(10 * time.Minute) // it was not to be tried at once

	require.Equal(t, "acknowledged", m.must(m.write(bob, path, "reason", "dropped it"))["cleanup"])
	m.settle()
	require.Empty(t, m.poll("a1").Claims)
	require.Equal(t, "acknowledged", m.receipt(id).Predicate.Attested.End.Cleanup)
	m.clock.pass(defaultRetention + time.Second)
	require.Equal(t, 1, m.prune())
}

// The fact names operation, entity and reason.
func TestAcknowledge_Fact(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	id := m.givenUp()
	m.must(m.write(bob, "all/operations/"+id+"/acknowledge", "reason", "dropped it"))
	require.NoError(t, m.b.storeFacts(t.Context(), m.storage))
	var found int
	for _, text := range m.must(m.read("", "facts"))[wire.FactsKey].([]string) {
		if strings.Contains(text, string(wire.EventCleanupAcknowledged)) {
			found++
			for _, want := range []string{`"op_id":"` + id, `"entity_id":"` + bob, `"detail":"dropped it"`, `"connection":"staging"`, `"severity":"warning"`} {
				require.Contains(t, text, want)
			}
		}
	}
	require.Equal(t, 1, found)
}

// Nobody acknowledges without a name and a reason, nor what is not given up.
func TestAcknowledge_Refusals(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	id := m.givenUp()
	path := "all/operations/" + id + "/acknowledge"
	resp, err := m.write("", path, "reason", "as root")
	m.refused(wire.CodeNoIdentity, resp, err)
	for _, reason := range []string{"", "  ", strings.Repeat("x", maxReasonBytes+1)} {
		resp, err = m.write(bob, path, "reason", reason)
		require.Equal(t, "reason", m.refused(wire.CodeInvalid, resp, err).Field)
	}
	m.must(m.write(alice, "lockdown", "reason", "case 17"))
	resp, err = m.write(bob, path, "reason", "x")
	m.refused(wire.CodeLocked, resp, err)
	require.Equal(t, "failed", m.must(m.read("", "all/operations/"+id))["cleanup"])

	m = newDesk(t)
	done := m.succeeded()
	running, fence := m.running()
	missing := "op-" + strings.Repeat("0", 26)
	for id, code := range map[string]wire.Code{done: wire.CodeConflict, running: wire.CodeConflict, missing: wire.CodeNotFound} {
		resp, err = m.write(bob, "all/operations/"+id+"/acknowledge", "reason", "x")
		m.refused(code, resp, err)
	}
	m.fails(running, fence)
	m.settle()
	resp, err = m.write(bob, "all/operations/"+running+"/acknowledge", "reason", "x")
	require.Contains(t, m.refused(wire.CodeConflict, resp, err).Hint, "wait")
}
