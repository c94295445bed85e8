package plugin

import (
	"testing"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// Rotated passwords, the connection's own included, hold over a crash of the
// server; the built-in engine never has Redis save them.
func TestRedis_Rotation(t *testing.T) {
	t.Parallel()
	m, r := withRedis(t, testenv.RedisOptions{Users: testenv.RedisUsersInACLFile}, nil)
	r.Command("ACL", "SETUSER", "dbops_root", "on", ">first", "~*", "+@all")
	r.Command("ACL", "SETUSER", "report", "on", ">first", "~*", "+@read")
	r.Command("ACL", "SAVE")
	m.must(logical.UpdateOperation, "config/cache", map[string]any{"username": "dbops_root", "password": "first"})
	m.must(logical.UpdateOperation, "rotate-root/cache", nil)
	m.must(logical.CreateOperation, "static-roles/report", map[string]any{"db_name": "cache", "username": "report", "rotation_period": "1h"})
	password := m.must(logical.ReadOperation, "static-creds/report", nil).Data["password"].(string)
	r.Kill()
	r.Start()
	driver := redisDriver(t, m)
	require.NoError(t, driver.Verify(t.Context()))
	for _, name := range []string{"dbops_root", "report"} {
		require.Error(t, driver.Login(t.Context(), name, wire.NewSecret("first")), name)
	}
	require.NoError(t, driver.Login(t.Context(), "report", wire.NewSecret(password)))
}
