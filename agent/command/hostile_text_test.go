package command

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/auditlog"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Names and words that agents and requesters chose reach no terminal as they are.
func TestTables_SteerNoTerminal(t *testing.T) {
	t.Parallel()
	const steering = "x\x1b[2Jy\u202ez"
	var tables strings.Builder
	printTables(&tables, []operation.TableReport{{Schema: steering, Name: steering, Digest: steering, SourceDigest: steering}})
	for name, shown := range map[string]string{
		"tables of a report": tables.String(),
		"an event":           plainRow(hitRow(auditlog.Hit{Event: &wire.Event{Agent: "a", Object: steering, User: wire.User{Name: steering}}})),
		"a fact":             plainRow(hitRow(auditlog.Hit{Fact: &wire.Fact{Object: steering}})),
		"a verification": verifyText(auditlog.Report{
			Problems: []auditlog.Problem{{Message: steering}}, Notes: []string{steering}, Examples: []auditlog.Example{{Why: steering}},
		}),
	} {
		require.NotContains(t, shown, "\x1b", name)
		require.NotContains(t, shown, "\u202e", name)
		require.Contains(t, shown, `\x1b`, name)
	}
}

// A plan or report that nobody can read does not keep a responder from the rest of
// the evidence.
func TestEvidence_UnreadableTexts(t *testing.T) {
	t.Parallel()
	for _, texts := range [][2]string{{"", `{"tables":"none"}`}, {`{"shape":5}`, ""}} {
		touched := touchedTables{OperationID: "op-1", Tables: []touchedTable{}}
		touched.read(texts[0], texts[1])
		require.NotEmpty(t, touched.Problem)
		require.Empty(t, touched.Tables)
	}
	touched := touchedTables{}
	touched.read("", `{"tables":[{"schema":"public","name":"orders","rows":3}]}`)
	require.Empty(t, touched.Problem)
	require.Len(t, touched.Tables, 1)
}
