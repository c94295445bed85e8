package plugin

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// cancelFacts are the facts about cancellations that wait.
func (m *desk) cancelFacts() []wire.Fact {
	m.t.Helper()
	require.NoError(m.t, m.b.storeFacts(m.t.Context(), m.storage))
	var found []wire.Fact
	for _, text := range m.must(m.read("", "facts"))[wire.FactsKey].([]string) {
		var f wire.Fact
		require.NoError(m.t, json.Unmarshal([]byte(text), &f))
		if f.EventType == wire.EventCancelRequested {
			found = append(found, f)
		}
	}
	return found
}

// Who cancelled, when and why is there for whoever reads the operation, in its receipt
// and in a fact, over a restart too; what looks personal is in none of them.
func TestCancellation_WhoAndWhy(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	id, fence := m.running()
	at := m.clock.now()
	answer := m.must(m.write(bob, "all/operations/"+id+"/cancel", "reason", " wrong day, says eve@example.com "))
	want := &wire.Cancellation{User: wire.User{EntityID: bob, Name: "bob"}, Time: at, Reason: "wrong day, says [email]"}
	require.Equal(t, want, into[wire.Operation](m, answer).Cancellation)
	require.Equal(t, want.Reason, answer["comment"], "audit devices show it")
	facts := m.cancelFacts()
	require.Len(t, facts, 1)
	require.Equal(t, []string{id, bob, "staging", "all/operations/" + id + "/cancel", want.Reason},
		[]string{facts[0].OpID, facts[0].EntityID, facts[0].Connection, facts[0].Object, facts[0].Detail})
	m.restart()
	m.must(m.work("a1", id, "finish", "fence", fence, "outcome", "cancelled"))
	m.settle()
	require.Equal(t, want, m.operation(id).Cancellation)
	end := m.receipt(id).Predicate.Attested.End
	require.True(t, end.Cancelled)
	require.Equal(t, want, end.Cancellation)

	// Without a reason, one's own that nobody works on.
	id = m.clone().ID
	answer = m.must(m.write(alice, "operations/"+id+"/cancel"))
	require.NotContains(t, answer, "comment")
	m.settle()
	end = m.receipt(id).Predicate.Attested.End
	require.Equal(t, wire.User{EntityID: alice, Name: "alice"}, end.Cancellation.User)
	require.Equal(t, "cancelled on request of alice", end.Reason)

	// A token without an entity may stop things, and goes by its display name.
	id = m.clone().ID
	m.must(m.b.HandleRequest(t.Context(), &logical.Request{
		Operation: logical.UpdateOperation, Path: "all/operations/" + id + "/cancel", Storage: m.storage, DisplayName: "root", MountPoint: "dbops/",
		Data: map[string]any{"reason": "gone wild"},
	}))
	require.Equal(t, wire.User{Name: "root"}, m.operation(id).Cancellation.User)
	require.Equal(t, "cancelled on request of root: gone wild", m.operation(id).Result.Reason)

	// A lockdown ends operations without anybody's asking for that one.
	id = m.clone().ID
	m.must(m.write(bob, "lockdown", "reason", "case 17"))
	require.NoError(t, m.b.stopOperations(t.Context(), m.storage, m.b.lockdown.current.Load()))
	require.Equal(t, wire.StateCancelled, m.operation(id).State)
	require.Nil(t, m.operation(id).Cancellation)
}

// The first one who asks is who cancelled: a later one gets the same answer and stands
// nowhere, also when both ask at the same moment.
func TestCancellation_TheFirstCounts(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	id, _ := m.running()
	var both sync.WaitGroup
	for _, who := range []string{alice, bob} {
		both.Go(func() {
			_, err := m.write(who, "all/operations/"+id+"/cancel", "reason", "of "+who)
			if err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	first := m.operation(id).Cancellation
	require.Equal(t, "of "+first.EntityID, first.Reason)
	m.clock.pass(1)
	other := alice
	if first.EntityID == alice {
		other = bob
	}
	answer := m.must(m.write(other, "all/operations/"+id+"/cancel", "reason", "another one"))
	require.Equal(t, first, into[wire.Operation](m, answer).Cancellation)
	require.NotContains(t, answer, "comment", "what is not kept is not shown as if it were")
	require.Len(t, m.cancelFacts(), 1)
	resp, err := m.write(alice, "operations/"+id+"/cancel", "reason", strings.Repeat("x", maxReasonBytes+1))
	require.Equal(t, "reason", m.refused(wire.CodeInvalid, resp, err).Field)
}

// Many cancellations leave facts about everything else their room, and each its own.
func TestCancellation_ManyPushNothingOut(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	for range 3 {
		m.must(m.write(alice, "operations/"+m.clone().ID+"/cancel"))
	}
	require.Len(t, m.cancelFacts(), 3)
	require.True(t, often(m.cancelFacts()[0]))
}
