package plugin

import (
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// What the rest of the engine relies on holds for every product.
func TestProducts(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, p := range products() {
		require.False(t, seen[p.pluginName], p.pluginName)
		seen[p.pluginName] = true
		require.NotEmpty(t, p.engine)
		require.NotEmpty(t, p.title)
		require.True(t, p.secret("password"), "%s: a password is never read back", p.pluginName)
		name, err := p.usernames.name("abcdefgh", "a display name beyond all measure", "a-role-name-beyond-all-measure", time.Now())
		require.NoError(t, err)
		require.True(t, p.usernames.fits(name), "%s: %q", p.pluginName, name)
		require.GreaterOrEqual(t, p.usernames.random, 11, "%s: what makes a name unique", p.pluginName)
		found, err := productOf(p.pluginName)
		require.NoError(t, err)
		require.Equal(t, p.pluginName, found.pluginName)
	}
	_, err := productOf("oracle-database-plugin")
	var refusal *wire.Error
	require.ErrorAs(t, err, &refusal)
	require.Equal(t, "plugin_name", refusal.Field)
	require.Contains(t, refusal.Reason, "oracle-database-plugin")
	require.Contains(t, refusal.Reason, mysqlPluginName)
}

// A connection that changes its product leads to another server.
func TestConfig_AnotherProductIsAnotherServer(t *testing.T) {
	t.Parallel()
	m := newMount(t, &logical.InmemStorage{})
	m.config("prod", map[string]any{"connection_url": "postgresql://{{username}}:{{password}}@localhost:3306/x"})
	before, err := m.connections.get(t.Context(), m.storage, "prod")
	require.NoError(t, err)
	m.must(logical.UpdateOperation, "config/prod", map[string]any{"plugin_name": mysqlPluginName, "connection_url": "{{username}}:{{password}}@tcp(localhost:3306)/x"})
	after, err := m.connections.get(t.Context(), m.storage, "prod")
	require.NoError(t, err)
	require.NotEqual(t, before.ID, after.ID)
}
