package plugin

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// The chain takes what continues it, the last batch and runs of it again, and
// nothing else.
func TestEvents_Chain(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	id, _ := m.running()
	op := m.operation(id)
	c := &testChain{agent: "a1", epoch: 1}
	one, two, three := c.event(op), c.event(op), c.event(op)
	broken := func(texts ...string) {
		t.Helper()
		resp, err := m.events("a1", id, texts...)
		m.refused(wire.CodeChainBroken, resp, err)
	}
	broken(two) // not the first
	m.must(m.events("a1", id, one, two))
	head := m.must(m.events("a1", id, one, two))
	require.Equal(t, "2", head["seq"])
	require.Equal(t, head, m.must(m.events("a1", id, one)))
	require.Equal(t, head, m.must(m.events("a1", id, two)))
	four := c.event(op)
	broken(four)            // gap
	broken(two, three)      // overlaps what is stored
	broken(three, three)    // twice
	broken(one, two, three) // longer than the last batch, begins before its end
	fork := &testChain{agent: "a1", epoch: 1, seq: 2, head: strings.Repeat("0", 64)}
	broken(fork.event(op))
	forked := &testChain{agent: "a1", epoch: 1}
	broken(forked.event(op, func(e *wire.Event) { e.Detail = "rewritten" }))
	m.must(m.events("a1", id, three))
	broken(one, two) // older than the last batch
	m.restart()
	require.Equal(t, "3", m.must(m.events("a1", id, three))["seq"])
	m.must(m.events("a1", id, four))

	// A new epoch links to the last head.
	wrong := &testChain{agent: "a1", epoch: 2}
	broken(wrong.event(op))
	skipped := &testChain{agent: "a1", epoch: 3, head: c.head}
	broken(skipped.event(op))
	next := &testChain{agent: "a1", epoch: 2, head: c.head}
	require.Equal(t, "2", m.must(m.events("a1", id, next.event(op)))["epoch"])
	broken(c.event(op))
	require.Equal(t, wire.Chain{Epoch: "2", Seq: "1", Head: next.head}, m.poll("a1").Chain)
}

func TestEvents_Content(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	id, _ := m.running()
	op := m.operation(id)
	invalid := func(texts ...string) {
		t.Helper()
		resp, err := m.events("a1", id, texts...)
		e := m.refused(wire.CodeInvalid, resp, err)
		require.Equal(t, wire.EventsKey, e.Field)
		require.NotContains(t, err.Error(), "secret-row")
	}
	for _, change := range []func(*wire.Event){
		func(e *wire.Event) { e.V = 2 },
		func(e *wire.Event) { e.Agent = "a2" },
		func(e *wire.Event) { e.OpID = "op-00000000000000000000000000" },
		func(e *wire.Event) { e.Source = "secret-row" },
		func(e *wire.Event) { e.User.EntityID = bob },
		func(e *wire.Event) { e.Operation = wire.KindMerge },
	} {
		invalid((&testChain{agent: "a1", epoch: 1}).event(op, change))
	}
	good := (&testChain{agent: "a1", epoch: 1}).event(op)
	invalid("secret-row")
	invalid(good + good)
	invalid(strings.Replace(good, `{"v":1`, `{"v":1,"password":"secret-row"`, 1))
	invalid()
	long := (&testChain{agent: "a1", epoch: 1}).event(op, func(e *wire.Event) { e.Detail = strings.Repeat("x", wire.EventBatchMaxLen) })
	invalid(long)
	m.must(m.events("a1", id, good))
}
