package plugin_test

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

const member = `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' IN ROLE dbops_read; ALTER ROLE "{{name}}" SET role TO dbops_read;`

func vaultWithDatabase(t *testing.T, options testenv.VaultOptions) (*testenv.VaultServer, *testenv.PostgresServer) {
	t.Helper()
	p := testenv.Postgres(t, testenv.PostgresOptions{})
	p.Exec("postgres", `CREATE ROLE dbops_read NOLOGIN`, `CREATE ROLE dbops_root LOGIN CREATEROLE PASSWORD 'planted-root-password'`)
	v := testenv.Vault(t, options)
	put(t, v, "dbops/config/prod", map[string]any{
		"plugin_name": "postgresql-database-plugin", "connection_url": p.ConnectionURL("postgres"),
		"username": "dbops_root", "password": "planted-root-password", "allowed_roles": "app,short", "max_open_connections": "6",
	})
	put(t, v, "dbops/roles/app", map[string]any{"db_name": "prod", "creation_statements": member, "default_ttl": "10m", "max_ttl": "1h"})
	put(t, v, "dbops/roles/short", map[string]any{"db_name": "prod", "creation_statements": member, "default_ttl": "3s", "max_ttl": "3s"})
	return v, p
}

func put(t *testing.T, v *testenv.VaultServer, path string, data map[string]any) {
	t.Helper()
	_, err := v.Client.Logical().WriteWithContext(t.Context(), path, data)
	require.NoError(t, err, path)
}

func creds(t *testing.T, v *testenv.VaultServer, role string) *api.Secret {
	t.Helper()
	secret, err := v.Client.Logical().ReadWithContext(t.Context(), "dbops/creds/"+role)
	require.NoError(t, err)
	return secret
}

func logins(t *testing.T, p *testenv.PostgresServer) string {
	t.Helper()
	return p.Value("postgres", `SELECT count(*) FROM pg_roles WHERE rolname LIKE 'dbops-%'`)
}

func status(t *testing.T, err error) int {
	t.Helper()
	var response *api.ResponseError
	require.True(t, errors.As(err, &response), "%v", err)
	require.NotContains(t, err.Error(), "planted")
	return response.StatusCode
}

// The engine behind a real Vault: leases, statuses, what audit devices see.
func TestVault_Credentials(t *testing.T) {
	t.Parallel()
	v, p := vaultWithDatabase(t, testenv.VaultOptions{})
	logical := v.Client.Logical()

	config, err := logical.ReadWithContext(t.Context(), "dbops/config/prod")
	require.NoError(t, err)
	details := config.Data["connection_details"].(map[string]any)
	require.Equal(t, json.Number("6"), details["max_open_connections"])
	require.Equal(t, []any{"app", "short"}, config.Data["allowed_roles"])
	require.NotContains(t, details, "password")
	require.Empty(t, config.Warnings)

	secret := creds(t, v, "app")
	require.Equal(t, 600, secret.LeaseDuration)
	require.True(t, secret.Renewable)
	renewed, err := v.Client.Sys().RenewWithContext(t.Context(), secret.LeaseID, 1200)
	require.NoError(t, err)
	require.Equal(t, 1200, renewed.LeaseDuration)
	require.NoError(t, v.Client.Sys().RevokeWithContext(t.Context(), secret.LeaseID))
	require.Eventually(t, func() bool { return logins(t, p) == "0" }, 30*time.Second, 20*time.Millisecond)

	// ttl travels as a query parameter of the GET.
	shorter, err := logical.ReadWithDataWithContext(t.Context(), "dbops/creds/app", map[string][]string{"ttl": {"2m"}})
	require.NoError(t, err)
	require.Equal(t, 120, shorter.LeaseDuration)

	// A lease that runs out is revoked by Vault itself.
	creds(t, v, "short")
	require.Eventually(t, func() bool { return logins(t, p) == "1" }, 30*time.Second, 100*time.Millisecond)

	for path, want := range map[string]int{"dbops/creds/unknown": http.StatusBadRequest} {
		_, err := logical.ReadWithContext(t.Context(), path)
		require.Equal(t, want, status(t, err), path)
	}
	missing, err := logical.ReadWithContext(t.Context(), "dbops/config/unknown")
	require.NoError(t, err, "vault/api takes a 404 without errors for nothing")
	require.Nil(t, missing)
	for field, data := range map[string]map[string]any{
		"passwrod":    {"passwrod": "planted-typo"},
		"default_ttl": {"db_name": "prod", "default_ttl": "planted-soon"},
	} {
		path := "dbops/config/prod"
		if field == "default_ttl" {
			path = "dbops/roles/app"
		}
		_, err := logical.WriteWithContext(t.Context(), path, data)
		require.Equal(t, http.StatusBadRequest, status(t, err), field)
		require.ErrorContains(t, err, `field="`+field+`"`)
	}
	_, err = logical.DeleteWithContext(t.Context(), "dbops/config/unknown")
	require.NoError(t, err)

	var refusals int
	for _, entry := range v.AuditEntries() {
		text := string(entry)
		require.NotContains(t, text, "planted", "an audit entry holds a secret")
		if strings.Contains(text, `invalid: `) && strings.Contains(text, `field=\"passwrod\"`) {
			refusals++
		}
	}
	require.Positive(t, refusals, "the refusal stands in clear in the audit device")
}

// The plugin's process is killed while logins live: the next instance ends them
// when their time is over, and renews and revokes as if nothing had happened.
func TestVault_PluginKilled(t *testing.T) {
	t.Parallel()
	v, p := vaultWithDatabase(t, testenv.VaultOptions{})
	secret := creds(t, v, "app")
	creds(t, v, "short")
	require.NoError(t, syscall.Kill(v.PluginPID(), syscall.SIGKILL))
	require.Eventually(t, func() bool {
		_, err := v.Client.Logical().ReadWithContext(t.Context(), "dbops/info")
		return err == nil
	}, 30*time.Second, 50*time.Millisecond)
	_, err := v.Client.Sys().RenewWithContext(t.Context(), secret.LeaseID, 900)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return logins(t, p) == "1" }, 20*time.Second, 100*time.Millisecond)
	require.NoError(t, v.Client.Sys().RevokeWithContext(t.Context(), secret.LeaseID))
	require.Eventually(t, func() bool { return logins(t, p) == "0" }, 30*time.Second, 20*time.Millisecond)
}

// A mount with live leases on a database that swallows packets is removed
// quickly, and the log names each login that may be left.
func TestVault_UnmountWithDeadDatabase(t *testing.T) {
	t.Parallel()
	v, p := vaultWithDatabase(t, testenv.VaultOptions{})
	var names []string
	for range 3 {
		names = append(names, creds(t, v, "app").Data["username"].(string))
	}
	p.Pause()
	began := time.Now()
	require.NoError(t, v.Client.Sys().UnmountWithContext(t.Context(), "dbops"))
	require.Less(t, time.Since(began), 30*time.Second)
	log := v.Log()
	for _, name := range names {
		require.Contains(t, log, name)
	}
	p.Unpause()
}

// A dead database does not hold up another one behind the same mount.
func TestVault_BlackHole(t *testing.T) {
	t.Parallel()
	v, _ := vaultWithDatabase(t, testenv.VaultOptions{})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, listener.Close()) })
	put(t, v, "dbops/config/hole", map[string]any{
		"plugin_name": "postgresql-database-plugin", "connection_url": "postgresql://{{username}}:{{password}}@" + listener.Addr().String() + "/x",
		"username": "u", "password": "p", "allowed_roles": "*", "verify_connection": false,
	})
	put(t, v, "dbops/roles/hole", map[string]any{"db_name": "hole", "creation_statements": member})
	done := make(chan error, 8)
	for range 8 {
		go func() {
			_, err := v.Client.Logical().ReadWithContext(t.Context(), "dbops/creds/hole")
			done <- err
		}()
	}
	for range 5 {
		began := time.Now()
		creds(t, v, "app")
		require.Less(t, time.Since(began), account.ConnectTimeout, "as long as the others wait")
	}
	for range 8 {
		require.Equal(t, http.StatusServiceUnavailable, status(t, <-done))
	}
}
