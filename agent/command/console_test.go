package command

import (
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// A command that is printed reaches the mount that was asked for when somebody pastes
// it: the mount, and the namespace and address where they were given.
func TestPrintedCommands_ReachTheMount(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		at                   vaultFlags
		options, vault, path string
	}{
		{vaultFlags{}, "", "", "dbops/all/operations/op-01KAYS/acknowledge"},
		{vaultFlags{mount: "dbops"}, "", "", "dbops/all/operations/op-01KAYS/acknowledge"},
		{vaultFlags{mount: "/dbops/"}, "", "", "dbops/all/operations/op-01KAYS/acknowledge"},
		{vaultFlags{mount: "team/db/"}, " -mount=team/db", "", "team/db/all/operations/op-01KAYS/acknowledge"},
		{vaultFlags{mount: "dbops", namespace: "eu"}, " -namespace=eu", " -namespace=eu", "dbops/all/operations/op-01KAYS/acknowledge"},
		{
			vaultFlags{mount: "a b'c", address: "https://v:8200"},
			` -mount='a b'\''c' -address=https://v:8200`, " -address=https://v:8200", `'a b'\''c'/all/operations/op-01KAYS/acknowledge`,
		},
	} {
		var shown strings.Builder
		printOperation(&shown, c.at, wire.Operation{ID: "op-01KAYS", Target: "staging", State: wire.StateFailed, Cleanup: wire.CleanupFailed}, nil)
		require.Contains(t, shown.String(), "then: vault write"+plain(c.vault)+" "+plain(c.path)+" reason=…\n")

		shown.Reset()
		op := inState(wire.StateAwaitingApproval)
		op.ApprovalNeeds = []wire.ApprovalStatus{{ApprovalNeed: wire.ApprovalNeed{Policy: "prod", Count: 1, Groups: []string{"g1"}}, Missing: 1}}
		require.NoError(t, printPlan(&shown, c.at, op, planOfShop, "sha256:abc"))
		require.Contains(t, shown.String(), "\n  dbops approve"+plain(c.options)+" -plan-digest=sha256:abc clone-1\n")
		require.Contains(t, shown.String(), "\n  dbops reject"+plain(c.options)+" -reason=… clone-1\n")

		below, _ := strings.CutSuffix(c.path, "/all/operations/op-01KAYS/acknowledge")
		for hint, want := range map[string]string{
			"read the plan again: dbops plan op-1":     "read the plan again: dbops plan" + c.options + " op-1",
			"may lift it: dbops unlock -reason=…":      "may lift it: dbops unlock" + c.options + " -reason=…",
			"vault write -f dbops/rotate-root/<name>":  "vault write" + c.vault + " -f " + below + "/rotate-root/<name>",
			"vault read -field=pem dbops/keys has all": "vault read" + c.vault + " -field=pem " + below + "/keys has all",
			"that dbops and plugin are compatible":     "that dbops and plugin are compatible",
			"":                                         "",
		} {
			require.Equal(t, want, c.at.commands(hint))
			for _, format := range []string{formatTable, formatJSON} {
				var out strings.Builder
				at := c.at
				at.format = format
				(&console{stdout: &out, stderr: &out}).fail("plan", at, &wire.Error{Code: wire.CodeConflict, Reason: "x", Hint: hint})
				if format == formatTable {
					require.Contains(t, out.String(), plain(want))
				}
			}
		}
	}
	var out strings.Builder
	(&console{stdout: &out, stderr: &out}).fail("plan", vaultFlags{mount: "db", format: formatJSON}, &wire.Error{Code: wire.CodeConflict, Reason: "x", Hint: "dbops plan op-1"})
	require.Contains(t, out.String(), `"hint":"dbops plan -mount=db op-1"`)
}

// As seen on the command line.
func TestPrintedCommands_OnTheCommandLine(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	c := &console{stdout: &out, stderr: &out, version: "test", signals: make(chan os.Signal)}
	require.Equal(t, exitUsage, runCLI([]string{"approve", "-mount=team/db", "-namespace=eu", "op-01KAYS"}, c))
	require.Contains(t, out.String(), "dbops plan -mount=team/db -namespace=eu op-01KAYS prints it")
}

// So does what is told when following ends before the operation does.
func TestFollow_LeavingNamesTheMount(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		signals := make(chan os.Signal, 1)
		time.AfterFunc(time.Second, func() { signals <- os.Interrupt })
		view := &recordingView{}
		reader := &scriptedReader{answers: []any{running(wire.StepCopy, 1)}}
		code, err := (&follower{reader: reader, view: view, signals: signals, options: vaultFlags{mount: "db"}.options()}).follow(inState(wire.StateRequested))
		require.NoError(t, err)
		require.Equal(t, wire.ExitInterrupted, code)
		require.Contains(t, view.notes, "follow it with: dbops operation -mount=db -follow clone-1")
		require.Contains(t, view.notes, "cancel it with: dbops operation -mount=db -cancel clone-1")
	})
}
