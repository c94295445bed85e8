package plugin

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// What an agent says of cleaning stands beside the way out of the operation's own
// failure, and how often it was tried is answered, also when it was not.
func TestFinish_CleanupKeepsTheOperationsHint(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	id, fence := m.running()
	require.EqualValues(t, 0, m.must(m.read(alice, "operations/"+id))["cleanup_attempts"])
	m.fails(id, fence, "hint", "grant it BYPASSRLS")
	for attempt := 1; attempt <= maxCleanupAttempts; attempt++ {
		m.settle()
		m.clock.pass(10 * time.Minute)
		claim := m.poll("a1").Claims[0]
		require.EqualValues(t, attempt, m.must(m.read("", "all/operations/"+id))["cleanup_attempts"])
		hint := ""
		if attempt < 3 {
			hint = fmt.Sprintf("try %d: no space left", attempt)
		}
		m.fails(id, claim.Fence, "reason", "y", "hint", hint)
		op := m.operation(id)
		require.Equal(t, "grant it BYPASSRLS", op.Result.Hint)
		require.Equal(t, fmt.Sprintf("try %d: no space left", min(attempt, 2)), op.Result.CleanupHint)
	}
	m.restart()
	for _, data := range []map[string]any{
		m.must(m.read(alice, "operations/"+id)),
		m.must(m.read("", "all/operations", "state", string(wire.StateFailed)))["operations"].([]any)[0].(map[string]any),
		m.must(m.write(bob, "all/operations/"+id+"/acknowledge", "reason", "dropped it")),
	} {
		require.EqualValues(t, maxCleanupAttempts, data["cleanup_attempts"])
		result := data["result"].(map[string]any)
		require.Equal(t, []any{"grant it BYPASSRLS", "try 2: no space left"}, []any{result["hint"], result["cleanup_hint"]})
	}
}
