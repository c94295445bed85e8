package testenv_test

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// The plugin is mounted with the audit keys, its process can be found and killed,
// and Vault starts another one by itself.
func TestVault_PluginProcess(t *testing.T) {
	t.Parallel()
	v := testenv.Vault(t, testenv.VaultOptions{})

	mounts, err := v.Client.Sys().ListMounts()
	require.NoError(t, err)
	require.Contains(t, mounts, "dbops/")
	require.Contains(t, mounts["dbops/"].Config.AuditNonHMACRequestKeys, "dbops_events_v1")

	_, err = v.Client.Logical().Read("dbops/info")
	require.NoError(t, err)
	pid := v.PluginPID()
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	require.Eventually(t, func() bool {
		_, err := v.Client.Logical().Read("dbops/info")
		return err == nil
	}, 20*time.Second, 50*time.Millisecond)
	require.NotEqual(t, pid, v.PluginPID())

	v.ReloadPlugin()
	_, err = v.Client.Logical().Read("dbops/info")
	require.NoError(t, err)
}

// What was written stands in the audit file, and a Vault on Raft that was killed
// comes back with all it knew.
func TestVault_KillAndRestart(t *testing.T) {
	t.Parallel()
	v := testenv.Vault(t, testenv.VaultOptions{Raft: true, SkipPlugin: true})
	require.NoError(t, v.Client.Sys().PutPolicy("remembered", `path "x" { capabilities = ["read"] }`))

	v.Kill()
	_, err := v.Client.Sys().GetPolicy("remembered")
	require.Error(t, err)
	v.Restart()
	policy, err := v.Client.Sys().GetPolicy("remembered")
	require.NoError(t, err)
	require.NotEmpty(t, policy)

	var audited bool
	for _, entry := range v.AuditEntries() {
		audited = audited || strings.Contains(string(entry), `"sys/policies/acl/remembered"`)
	}
	require.True(t, audited)
}

// A cluster, here with TLS, keeps serving through a step-down and through the loss
// of a node.
func TestVault_Cluster(t *testing.T) {
	t.Parallel()
	v := testenv.Vault(t, testenv.VaultOptions{Nodes: 3, TLS: true, SkipPlugin: true})
	require.NoError(t, v.Client.Sys().PutPolicy("remembered", `path "x" { capabilities = ["read"] }`))

	before := v.Active()
	v.StepDown()
	after := v.Active()
	require.NotEqual(t, before.Name, after.Name)

	after.Kill()
	third := v.Active()
	require.NotEqual(t, after.Name, third.Name)
	require.Eventually(t, func() bool {
		policy, err := third.Client.Sys().GetPolicy("remembered")
		return err == nil && policy != ""
	}, 20*time.Second, 50*time.Millisecond)
	after.Restart()
	policy, err := after.Client.Sys().GetPolicy("remembered")
	require.NoError(t, err)
	require.NotEmpty(t, policy)
}

// The caller's own Vault is left alone: none of its settings reach ours.
func TestVault_IgnoresEnvironment(t *testing.T) {
	t.Setenv("VAULT_ADDR", "https://vault.example.test")
	t.Setenv("VAULT_TOKEN", "theirs")
	t.Setenv("VAULT_NAMESPACE", "theirs")
	v := testenv.Vault(t, testenv.VaultOptions{SkipPlugin: true})
	self, err := v.Client.Auth().Token().LookupSelf()
	require.NoError(t, err)
	require.Equal(t, "root", self.Data["display_name"])
	_, err = v.NewClient("").Auth().Token().LookupSelf()
	require.Error(t, err)
}
