package command

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/auditlog"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// Names and words that agents and requesters chose reach no terminal as they are.
func TestTables_SteerNoTerminal(t *testing.T) {
	t.Parallel()
	const steering = "x\x1b[2Jy\u202ez"
	var tables, receiptText, operationText strings.Builder
	printTables(&tables, []operation.TableReport{{Schema: steering, Name: steering, Digest: steering, SourceDigest: steering}})
	printAttested(&receiptText, wire.Attested{Request: wire.ReceiptRequest{Reason: steering}})
	printOperation(&operationText, vaultFlags{}, wire.Operation{Reason: steering, Cleanup: steering, Target: steering}, nil)
	printed := func(print func(c *console)) string {
		var out strings.Builder
		print(&console{stdout: &out, stderr: &out})
		return out.String()
	}
	for name, shown := range map[string]string{
		"tables of a report": tables.String(),
		"a receipt":          receiptText.String(),
		"an operation":       operationText.String(),
		"an error": printed(func(c *console) {
			c.fail("clone", vaultFlags{format: formatTable}, &wire.Error{Code: wire.CodeLocked, Reason: "locked by a: " + steering, Hint: steering})
		}),
		"a lockdown": printed(func(c *console) { c.showLockdown(formatTable, wire.Lockdown{Locked: true, Reason: steering}) }),
		"a finding": printed(func(c *console) {
			_ = (&postureCommand{console: c}).print(wire.Posture{Findings: []wire.Finding{{Seen: steering}}})
		}),
		"an event": plainRow(hitRow(auditlog.Hit{Event: &wire.Event{Agent: "a", Object: steering, User: wire.User{Name: steering}}})),
		"a fact":   plainRow(hitRow(auditlog.Hit{Fact: &wire.Fact{Object: steering}})),
		"a verification": verifyText(auditlog.Report{
			Problems: []auditlog.Problem{{Message: steering}}, Notes: []string{steering}, Examples: []auditlog.Example{{Why: steering}},
		}),
	} {
		require.NotContains(t, shown, "\x1b", name)
		require.NotContains(t, shown, "\u202e", name)
		require.Contains(t, shown, `\x1b`, name)
	}
}

// The bar moves the cursor itself; what it is told to print does not.
func TestBarView_SteersNoTerminal(t *testing.T) {
	t.Parallel()
	const steering = "x\x1b[2Jy\u202ez"
	var out testenv.Buffer
	view := newBarView(&out, vaultFlags{}, time.Now)
	op := inState(wire.StateRunning)
	op.Decision.Reason, op.Progress = steering, &wire.Progress{Step: steering}
	view.Update(op)
	view.Leave()
	require.NotContains(t, out.String(), steering)
	require.Contains(t, out.String(), `x\x1b[2Jy\u202ez`)
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
