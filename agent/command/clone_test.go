package command

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/stack"
)

// The life of a request that no agent takes, with the program against the real
// engine: asked, listed, asked again with the same id, cancelled, followed.
func TestClone_AskRepeatCancel(t *testing.T) {
	s := stack.New(t, stack.Options{WithoutAgent: true})
	t.Setenv("VAULT_ADDR", s.Vault.Address)
	t.Setenv("VAULT_TOKEN", s.RequesterToken)
	run := func(arguments ...string) (string, int) {
		var out bytes.Buffer
		code := runCLI(arguments, &console{stdout: &out, stderr: &out, version: "test", signals: make(chan os.Signal)})
		return out.String(), code
	}
	ask := []string{"clone", "-source=prod", "-target=staging", "-request-id=r1", "-detach", "-format=json"}

	text, code := run(ask...)
	require.Equal(t, 0, code, text)
	var op wire.Operation
	require.NoError(t, json.Unmarshal([]byte(text), &op))
	require.Equal(t, wire.StateRequested, op.State)
	require.Equal(t, "2", op.Options[wire.OptionJobs])

	text, code = run(ask...)
	require.Equal(t, 0, code, text)
	require.Contains(t, text, `"id":"`+op.ID+`"`, "the same request is the same operation")
	text, code = run(append(ask, "-jobs=3")...)
	require.Equal(t, wire.CodeRequestIDReused.Info().Exit, code, text)
	require.Contains(t, text, `"code":"request_id_reused"`)

	text, code = run("operations", "-state=requested")
	require.Equal(t, 0, code, text)
	require.Contains(t, text, op.ID)
	text, code = run("operations", "-state=running")
	require.Equal(t, 0, code, text)
	require.Equal(t, "No operations.\n", text)
	text, code = run("operations", "-state=running", "-format=json")
	require.Equal(t, 0, code, text)
	require.Equal(t, `{"operations":[],"more":false}`+"\n", text)

	text, code = run("clone", "-source=prod", "-target=staging", "-detach", "-format=json")
	require.Equal(t, 0, code, text)
	var later wire.Operation
	require.NoError(t, json.Unmarshal([]byte(text), &later))
	for limit, want := range map[string]shownOperations{
		"1": {Operations: []wire.Operation{later}, More: true},
		"2": {Operations: []wire.Operation{later, op}},
	} {
		text, code = run("operations", "-format=json", "-limit="+limit)
		require.Equal(t, 0, code, text)
		var listed shownOperations
		require.NoError(t, json.Unmarshal([]byte(text), &listed))
		require.Equal(t, want.More, listed.More, limit)
		require.Len(t, listed.Operations, len(want.Operations))
		for i, each := range want.Operations {
			require.Equal(t, each.ID, listed.Operations[i].ID)
		}
	}

	text, code = run("plan", op.ID)
	require.Equal(t, 2, code, text)
	require.Contains(t, text, "has no plan")

	text, code = run("operation", op.ID, "-cancel", "-reason=wrong day")
	require.Equal(t, 0, code, text)
	require.Regexp(t, `Cancel\s+requested by .+: wrong day\n`, text)
	require.Regexp(t, `State\s+cancelled`, text)
	text, code = run("operation", "-cancel", op.ID)
	require.Equal(t, 0, code, "cancelling twice is no error: "+text)

	text, code = run("operation", "-follow", op.ID)
	require.Equal(t, wire.CodeCancelled.Info().Exit, code, text)
	lines := strings.Split(strings.TrimSpace(text), "\n")
	require.Contains(t, lines[len(lines)-1], `"type":"result"`)

	text, code = run("operation", "op-"+strings.Repeat("0", 26))
	require.Equal(t, 2, code, text)
	require.Contains(t, text, "not_found")
}
