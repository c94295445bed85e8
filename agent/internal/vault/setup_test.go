package vault_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/vault"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// newVault is a Vault with our binary in the plugin directory and nothing else
// done to it.
func newVault(t *testing.T) (*testenv.VaultServer, *vault.Client, vault.Setup) {
	t.Helper()
	server := testenv.Vault(t, testenv.VaultOptions{SkipPlugin: true, SkipAudit: true})
	client, err := vault.Dial(vault.Config{Address: server.Address, Token: wire.NewSecret(server.RootToken)})
	require.NoError(t, err)
	content, err := os.ReadFile(testenv.Plugin(t))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(server.PluginDir, vault.PluginName), content, 0o700))
	sum := sha256.Sum256(content)
	return server, client, vault.Setup{
		PluginName: vault.PluginName, PluginCommand: vault.PluginName, PluginSHA256: hex.EncodeToString(sum[:]),
		AuditFile: filepath.Join(t.TempDir(), "audit.log"), AppRolePath: "approle",
		Agent: vault.AgentSetup{
			Name: "db1", TokenPeriod: time.Hour, WrapTTL: 10 * time.Minute, NewSecretID: true,
			Labels: map[string]string{"site": "a"}, BoundCIDRs: []string{"127.0.0.1/32"},
		},
	}
}

func apply(t *testing.T, client *vault.Client, s vault.Setup, dryRun bool) ([]vault.Action, vault.SetupResult) {
	t.Helper()
	var actions []vault.Action
	result, err := vault.NewOperator(client, dryRun, func(a vault.Action) { actions = append(actions, a) }).Apply(context.Background(), s)
	require.NoError(t, err, "after %+v", actions)
	return actions, result
}

func verbs(actions []vault.Action) map[string]vault.Verb {
	all := map[string]vault.Verb{}
	for _, a := range actions {
		all[a.Object] = a.Verb
	}
	return all
}

// A bare Vault becomes one that dbops can work in: a dry run changes nothing and
// tells the same steps, the real one does them, the second finds nothing to do.
func TestSetup_BareVault(t *testing.T) {
	t.Parallel()
	server, client, setup := newVault(t)

	planned, _ := apply(t, client, setup, true)
	mounts, err := server.Client.Sys().ListMounts()
	require.NoError(t, err)
	require.NotContains(t, mounts, "dbops/")

	done, result := apply(t, client, setup, false)
	require.Equal(t, verbs(planned), verbs(done))
	for object, verb := range verbs(done) {
		require.Equal(t, vault.VerbCreate, verb, object)
	}
	require.NotEmpty(t, result.RoleID)
	require.False(t, result.WrappingToken.Empty())

	mounts, err = server.Client.Sys().ListMounts()
	require.NoError(t, err)
	require.ElementsMatch(t, wire.AuditNonHMACRequestKeys(), mounts["dbops/"].Config.AuditNonHMACRequestKeys)
	require.ElementsMatch(t, wire.AuditNonHMACResponseKeys(), mounts["dbops/"].Config.AuditNonHMACResponseKeys)

	setup.Agent.NewSecretID = false
	again, _ := apply(t, client, setup, false)
	for object, verb := range verbs(again) {
		require.Equal(t, vault.VerbKeep, verb, object)
	}
}

// What drifted is put right again, and keys that somebody added stay.
func TestSetup_RepairsDrift(t *testing.T) {
	t.Parallel()
	server, client, setup := newVault(t)
	setup.Agent.NewSecretID = false
	apply(t, client, setup, false)

	_, err := server.Client.Logical().Write("sys/mounts/dbops/tune", map[string]any{
		"audit_non_hmac_request_keys": []string{"mine", "reason"},
	})
	require.NoError(t, err)
	require.NoError(t, server.Client.Sys().PutPolicy("dbops-agent", `path "*" { capabilities = ["read"] }`))
	_, err = server.Client.Logical().Write("auth/approle/role/db1", map[string]any{"token_type": "batch", "token_period": "0"})
	require.NoError(t, err)

	actions, _ := apply(t, client, setup, false)
	got := verbs(actions)
	for object, want := range map[string]vault.Verb{
		"mount dbops/": vault.VerbUpdate, "policy dbops-agent": vault.VerbUpdate, "approle db1": vault.VerbUpdate,
		"policy dbops-requester": vault.VerbKeep, "auth method approle/": vault.VerbKeep,
	} {
		require.Equal(t, want, got[object], object)
	}
	mounts, err := server.Client.Sys().ListMounts()
	require.NoError(t, err)
	require.Contains(t, mounts["dbops/"].Config.AuditNonHMACRequestKeys, "mine")
	require.Subset(t, mounts["dbops/"].Config.AuditNonHMACRequestKeys, wire.AuditNonHMACRequestKeys())
	require.NotContains(t, mounts["dbops/"].Config.AuditNonHMACRequestKeys, "reason", "an earlier version showed it")
}

// A path taken by something else is left alone.
func TestSetup_PathTaken(t *testing.T) {
	t.Parallel()
	server, client, setup := newVault(t)
	_, err := server.Client.Logical().Write("sys/mounts/dbops", map[string]any{"type": "kv"})
	require.NoError(t, err)
	_, err = vault.NewOperator(client, false, func(vault.Action) {}).Apply(context.Background(), setup)
	require.Equal(t, wire.CodeConflict, vault.CodeOf(err))
	require.ErrorContains(t, err, "kv")
}

// Without an audit device nothing is enabled behind the operator's back.
func TestSetup_WarnsOfMissingAudit(t *testing.T) {
	t.Parallel()
	_, client, setup := newVault(t)
	setup.AuditFile, setup.Agent.Name = "", ""
	actions, _ := apply(t, client, setup, false)
	require.Equal(t, vault.VerbWarn, verbs(actions)["audit devices"])
}

// Two mounts can have duties of one policy name. Setting up the second does not give
// its rights to whom the first one trusts.
func TestSetup_PolicyOfAnotherMount(t *testing.T) {
	t.Parallel()
	server, client, setup := newVault(t)
	setup.Agent.Name = ""
	apply(t, client, setup, false)
	before, err := server.Client.Sys().GetPolicy("dbops-connection-admin")
	require.NoError(t, err)

	second, err := vault.Dial(vault.Config{Address: server.Address, Token: wire.NewSecret(server.RootToken), Mount: "dbops-connection"})
	require.NoError(t, err)
	_, err = vault.NewOperator(second, false, func(vault.Action) {}).Apply(context.Background(), setup)
	require.Equal(t, wire.CodeConflict, vault.CodeOf(err), "%v", err)
	require.ErrorContains(t, err, "dbops-connection-admin")
	after, err := server.Client.Sys().GetPolicy("dbops-connection-admin")
	require.NoError(t, err)
	require.Equal(t, before, after)
}
