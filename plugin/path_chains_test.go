package plugin

import (
	"testing"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

func (m *desk) chains() wire.Chains {
	m.t.Helper()
	resp, err := m.b.HandleRequest(m.t.Context(), &logical.Request{
		Operation: logical.ReadOperation, Path: "chains", Storage: m.storage, MountPoint: "dbops/",
	})
	return into[wire.Chains](m, m.must(resp, err))
}

// The ends of chains are told with the entities the events were written as, those
// of deleted agents and of records of an earlier version included.
func TestChains_EndsAndEntities(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	require.Equal(t, wire.Chains{Agents: map[string]wire.AgentChain{}, Facts: wire.Chain{Epoch: "0", Seq: "0"}, At: m.clock.now()}, m.chains())

	id, fence := m.running()
	op, chain := m.operation(id), &testChain{agent: "a1", epoch: 1}
	m.must(m.events("a1", id, chain.event(op), chain.event(op)))
	want := wire.AgentChain{Chain: wire.Chain{Epoch: "1", Seq: "2", Head: chain.head}, Entities: []string{agentOne}}
	require.Equal(t, want, m.chains().Agents["a1"])

	// The agent is set up anew, and has another entity.
	m.system.add(&logical.Entity{ID: "entity-new", Aliases: m.system.aliases(agentOne)})
	again := chain.event(op)
	m.must(m.events("a1", id, again))
	m.must(m.write("entity-new", "agents/a1/operations/"+id+"/events", wire.EventsKey, []string{again}))
	m.must(m.work("a1", id, "finish", "fence", fence, "outcome", "failed", "code", "engine"))
	m.restart()
	require.Equal(t, []string{agentOne, "entity-new"}, m.chains().Agents["a1"].Entities)

	require.NoError(t, putStored(t.Context(), m.storage, prefixChain+"old", map[string]any{"epoch": "3", "seq": "7", "head": "h", "last": []string{"h"}}))
	old := m.chains().Agents["old"]
	require.Equal(t, wire.Chain{Epoch: "3", Seq: "7", Head: "h"}, old.Chain)
	require.Empty(t, old.Entities)
}

// Only so many identities of an agent are remembered, the last ones, each once.
func TestChains_EntitiesAreBounded(t *testing.T) {
	t.Parallel()
	var known []string
	for i := range 3 * entitiesKept {
		known = withEntity(known, string(rune('A'+i%(2*entitiesKept))))
	}
	require.Len(t, known, entitiesKept)
	require.Equal(t, []string{"b", "c", "a"}, withEntity([]string{"a", "b", "c"}, "a"))
}
