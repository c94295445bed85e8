package command

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// How often agents have tried to clean, and what the last try told, stand beside the way
// out of the operation's own failure.
func TestOperation_CleanupTries(t *testing.T) {
	t.Parallel()
	op := wire.Operation{
		ID: "op-01KAYS", State: wire.StateFailed, Cleanup: wire.CleanupFailed, CleanupAttempts: 5,
		Result: &wire.Result{Code: wire.CodeEngine, Reason: "no", Hint: "grant it", CleanupHint: "a try to clean the target failed: no\x1b space"},
	}
	var shown, lines bytes.Buffer
	printOperation(&shown, vaultFlags{}, op, nil)
	require.Regexp(t, `(?m)^Hint +grant it$`, shown.String())
	require.Regexp(t, `(?m)^Tries +5$`, shown.String())
	require.Regexp(t, `(?m)^Last try +a try to clean the target failed: no\\x1b space$`, shown.String())
	op.CleanupAttempts = 0
	(&console{stdout: &lines, stderr: &lines}).show(vaultFlags{format: formatJSON}, op, nil)
	require.Contains(t, lines.String(), `"cleanup_attempts":0`)
	require.Contains(t, lines.String(), `"cleanup_hint":"a try`)
}

// What a run left at its target is shown as Vault answers it: how far agents are,
// whose word it is that it is gone, and what somebody has to do. Lists tell only where
// something is still to be done.
func TestOperation_Cleanup(t *testing.T) {
	t.Parallel()
	said := `,"cleanup_acknowledged":{"entity_id":"e2","name":"carol","at":"2026-11-26T12:00:00Z","reason":"dropped\u001b it"}`
	for answer, want := range map[string]struct{ shown, todo, listed string }{
		``:                                    {"", "", "failed (engine)"},
		`,"cleanup":"pending"`:                {`pending: something may be left at staging`, `nothing while an agent runs`, "failed (engine), cleanup pending"},
		`,"cleanup":"done"`:                   {`done: what the run had left at staging is removed`, "", "failed (engine)"},
		`,"cleanup":"failed"`:                 {`failed: agents have given up`, `dbops_…_01kays;.*vault write dbops/all/operations/op-01KAYS/acknowledge reason=`, "failed (engine), cleanup failed"},
		`,"cleanup":"acknowledged"` + said:    {`acknowledged: cleaned by hand, says carol at 2026-11-26 .*: dropped\\x1b it`, "", "failed (engine)"},
		`,"cleanup":"of a later version"`:     {`of a later version`, "", "failed (engine)"},
		`,"cleanup":"acknowledged","more":{}`: {`acknowledged`, "", "failed (engine)"},
	} {
		var op wire.Operation
		require.NoError(t, json.Unmarshal([]byte(`{"id":"op-01KAYS","source":"prod","target":"staging","state":"failed","result":{"code":"engine"}`+answer+`}`), &op))
		op.CreatedAt, op.UpdatedAt = time.Now(), time.Now()
		require.Equal(t, want.listed, listedState(op))

		var shown, lines bytes.Buffer
		printOperation(&shown, vaultFlags{}, op, nil)
		if want.shown == "" {
			require.NotContains(t, shown.String(), "Cleanup")
		} else {
			require.Regexp(t, `(?m)^Cleanup +`+want.shown, shown.String())
		}
		require.NotContains(t, shown.String(), "Tries")
		require.NotContains(t, shown.String(), "Last try")
		if want.todo == "" {
			require.NotContains(t, shown.String(), "To do")
		} else {
			require.Regexp(t, `(?m)^To do +.*`+want.todo, shown.String())
		}

		(&console{stdout: &lines, stderr: &lines}).show(vaultFlags{format: formatJSON}, op, nil)
		var again struct {
			Cleanup      wire.CleanupState            `json:"cleanup"`
			Acknowledged *wire.ReceiptAcknowledgement `json:"cleanup_acknowledged"`
		}
		require.NoError(t, json.Unmarshal(lines.Bytes(), &again))
		require.Equal(t, op.Cleanup, again.Cleanup)
		require.Equal(t, op.Acknowledged, again.Acknowledged)
	}
}
