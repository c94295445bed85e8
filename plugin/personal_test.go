package plugin

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// What people and agents write by way of a reason is kept, and answered in clear,
// without what looks personal; so is what a refusal repeats of a request.
func TestPersonal_NeitherKeptNorAnswered(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	asked := m.clone("reason", "refresh for bob@example.com, call +49 151 23456789", "request_id", "r1")
	require.Equal(t, "refresh for [email], call [phone]", asked.Reason)
	require.Equal(t, asked.ID, m.clone("reason", "refresh for bob@example.com, call +49 151 23456789", "request_id", "r1").ID, "a repeat is still one")
	require.Equal(t, asked.Reason, m.b.ops.operation(asked.ID).Reason)

	claim := m.poll("a1").Claims[0]
	m.must(m.work("a1", asked.ID, "finish", "fence", claim.Fence, "outcome", "failed", "code", "engine",
		"reason", "key (email)=(bob@example.com) exists", "hint", "ask bob@example.com"))
	result := m.operation(asked.ID).Result
	require.Equal(t, "key (email)=([email]) exists", result.Reason)
	require.Equal(t, "ask [email]", result.Hint)

	resp, err := m.write("", "connections/prod", "purposes", "bob@example.com=r")
	refusal := m.refused(wire.CodeInvalid, resp, err)
	require.NotContains(t, refusal.Reason+refusal.Hint, "bob@")
}

// A reason that an earlier version has stored as it was is answered without what
// looks personal.
func TestPersonal_StoredBefore(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	op := m.clone()
	_, err := m.b.updateOperation(t.Context(), m.storage, op.ID, func(r *operationRecord) error {
		r.Reason = "for bob@example.com"
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, "for [email]", m.operation(op.ID).Reason)
}

// A request_id is kept and answered without what looks personal, in storage, record and
// receipt; repeats are known all the same, over restarts, and two that look alike
// without it are two.
func TestPersonal_RequestID(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	const id = "refresh-for bob@example.com"
	asked := m.clone("request_id", id)
	require.Equal(t, "refresh-for [email]", asked.RequestID)
	require.NotEqual(t, asked.ID, m.clone("request_id", "refresh-for eve@example.com").ID)
	require.NotEqual(t, asked.ID, m.clone("request_id", "refresh-for [email]").ID)
	m.restart()
	require.Equal(t, asked.ID, m.clone("request_id", id).ID, "a repeat is still one")
	resp, err := m.write(alice, "clone/prod/staging", "request_id", id, "jobs", "3")
	m.refused(wire.CodeRequestIDReused, resp, err)
	entry, err := m.storage.Get(t.Context(), prefixOperation+asked.ID)
	require.NoError(t, err)
	require.NotContains(t, string(entry.Value), "bob@")
	m.must(m.write(alice, "operations/"+asked.ID+"/cancel"))
	m.settle()
	require.Equal(t, "refresh-for [email]", m.receipt(asked.ID).Predicate.Attested.Request.RequestID)

	// One that an earlier version has stored as it was.
	old := m.clone("request_id", "r1")
	_, err = m.b.updateOperation(t.Context(), m.storage, old.ID, func(r *operationRecord) error {
		r.RequestID, r.RequestKey = "for carol@example.com", ""
		return nil
	})
	require.NoError(t, err)
	m.restart()
	again := m.clone("request_id", "for carol@example.com")
	require.Equal(t, old.ID, again.ID)
	require.Equal(t, "for [email]", again.RequestID)
}

// Events are in the vocabulary, that of earlier agents included, whose spools may
// still hold some.
func TestEvents_Vocabulary(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	id, _ := m.running()
	op, chain := m.operation(id), &testChain{agent: "a1", epoch: 1}
	for _, word := range []wire.EventType{"account_leased", "account_returned", "data_access"} {
		m.must(m.events("a1", id, chain.event(op, step(word, wire.StepAccounts, wire.OutcomeSuccess))))
	}
	for field, change := range map[string]func(*wire.Event){
		"event_type": step("made_up", wire.StepCopy, wire.OutcomeStarted),
		"outcome":    step(wire.EventStepStarted, wire.StepCopy, "maybe"),
		"phase":      step(wire.EventStepStarted, "dinner", wire.OutcomeStarted),
		"severity":   func(e *wire.Event) { e.Severity = "loud" },
	} {
		other := *chain
		resp, err := m.events("a1", id, other.event(op, change))
		require.Contains(t, m.refused(wire.CodeInvalid, resp, err).Reason, field)
	}
}
