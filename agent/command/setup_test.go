package command

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/config"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/vault"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// The command as an operator types it: the agent's files are for their owner only,
// neither token nor secret-id is printed, what is printed is a configuration, and a
// second run gives out no second secret-id.
func TestSetupCommand(t *testing.T) {
	server := testenv.Vault(t, testenv.VaultOptions{SkipPlugin: true, SkipAudit: true})
	plugin := filepath.Join(server.PluginDir, vault.PluginName)
	content, err := os.ReadFile(testenv.Plugin(t))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(plugin, content, 0o700))
	t.Setenv("VAULT_ADDR", server.Address)
	t.Setenv("VAULT_TOKEN", server.RootToken)
	out := filepath.Join(t.TempDir(), "db1")
	run := func(more ...string) (string, int) {
		var printed bytes.Buffer
		code := runCLI(append([]string{"setup", "-plugin-path=" + plugin, "-agent=db1", "-out=" + out}, more...),
			&console{stdout: &printed, stderr: &printed, version: "test"})
		return printed.String(), code
	}

	text, code := run("-dry-run", "-show-commands")
	require.Equal(t, 0, code, text)
	require.Contains(t, text, "would create mount dbops/")
	require.Contains(t, text, "vault audit enable file")
	require.NoDirExists(t, out)

	text, code = run()
	require.Equal(t, 0, code, text)
	secrets := map[string]string{}
	for _, name := range []string{"db1.role-id", "db1.wrapped-secret-id"} {
		info, err := os.Stat(filepath.Join(out, name))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), name)
		content, err := os.ReadFile(filepath.Join(out, name))
		require.NoError(t, err)
		secrets[name] = strings.TrimSpace(string(content))
	}
	require.NotContains(t, text, secrets["db1.wrapped-secret-id"])
	require.NotContains(t, text, server.RootToken)
	_, hcl, found := strings.Cut(text, "# agent.hcl")
	require.True(t, found)
	parsed, err := config.Parse("agent.hcl", []byte("# "+hcl))
	require.NoError(t, err)
	require.Equal(t, filepath.Join(out, "db1.wrapped-secret-id"), parsed.Vault.AppRole.SecretIDFile)

	// The agent has used it up.
	require.NoError(t, os.Remove(filepath.Join(out, "db1.wrapped-secret-id")))
	text, code = run("-format=json")
	require.Equal(t, 0, code, text)
	var done struct {
		Actions []vault.Action `json:"actions"`
	}
	require.NoError(t, json.Unmarshal([]byte(text), &done))
	for _, action := range done.Actions {
		require.Contains(t, []vault.Verb{vault.VerbKeep, vault.VerbWarn}, action.Verb, action.Object)
	}
	require.NoFileExists(t, filepath.Join(out, "db1.wrapped-secret-id"))

	text, code = run("-new-secret-id")
	require.Equal(t, 0, code, text)
	require.FileExists(t, filepath.Join(out, "db1.wrapped-secret-id"))
}
