package command

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coreos/go-systemd/v22/unit"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/config"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/vault"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

const packaging = "../../scripts/packaging"

// The example that ships is a configuration the agent takes.
func TestPackaging_AgentHCL(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile(filepath.Join(packaging, "agent.hcl"))
	require.NoError(t, err)
	c, err := config.Parse("agent.hcl", content)
	require.NoError(t, err)
	require.Equal(t, "db1", c.Name)
	require.True(t, c.Vault.AppRole.Wrapped)
	require.NotNil(t, c.Telemetry)
}

// The unit's directories are those the agent uses when its configuration is
// silent, and the hardening nobody should lose by accident is there.
func TestPackaging_SystemdUnit(t *testing.T) {
	t.Parallel()
	file, err := os.Open(filepath.Join(packaging, "dbops-agent.service"))
	require.NoError(t, err)
	defer file.Close()
	options, err := unit.DeserializeOptions(file)
	require.NoError(t, err)
	got := map[string]string{}
	for _, o := range options {
		if o.Section == "Service" {
			got[o.Name] += o.Value
		}
	}
	content, err := os.ReadFile(filepath.Join(packaging, "agent.hcl"))
	require.NoError(t, err)
	c, err := config.Parse("agent.hcl", content)
	require.NoError(t, err)
	require.Equal(t, c.StateDir, "/var/lib/"+got["StateDirectory"])
	require.Equal(t, c.RunDir, "/run/"+got["RuntimeDirectory"])
	require.True(t, strings.HasPrefix(c.Vault.AppRole.SecretIDFile, c.StateDir), "the agent must be able to remove it")
	for name, want := range map[string]string{
		"NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes", "PrivateDevices": "yes",
		"CapabilityBoundingSet": "", "RestrictNamespaces": "yes", "MemoryDenyWriteExecute": "yes", "LimitCORE": "0", "UMask": "0077",
	} {
		value, set := got[name]
		require.True(t, set, name)
		require.Equal(t, want, value, name)
	}
}

// What setup prints for an agent is a configuration that agent takes, whatever
// the names in it.
func TestSetup_AgentHCL(t *testing.T) {
	t.Parallel()
	client, err := vault.Dial(vault.Config{Address: "https://vault.example.com:8200", Mount: "team/dbops", Token: wire.NewSecret("x")})
	require.NoError(t, err)
	s := &setupCommand{toolsImage: "postgres:17", agentCACert: "/etc/ca ${x}.pem"}
	s.setup.Agent.Name, s.setup.AppRolePath = "db1", "agents"
	text, err := agentHCL(client, s, agentFiles{dir: "/etc/dbops", agent: "db1"})
	require.NoError(t, err)
	c, err := config.Parse("agent.hcl", []byte(text))
	require.NoError(t, err)
	require.Equal(t, "team/dbops", c.Vault.Mount)
	require.Equal(t, "agents", c.Vault.AppRole.Mount)
	require.Equal(t, "/etc/ca ${x}.pem", c.Vault.CACert)
	require.Equal(t, "/etc/dbops/db1.wrapped-secret-id", c.Vault.AppRole.SecretIDFile)
	require.True(t, c.Vault.AppRole.RemoveSecretIDAfterRead)

	_, err = agentHCL(client, &setupCommand{}, agentFiles{dir: "/etc/dbops", agent: "db1"})
	require.Equal(t, wire.CodeUsage, vault.CodeOf(err), "no image, no configuration")
}
