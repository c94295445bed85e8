package plugin

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// withRole makes a mount with a connection and a role for it.
func withRole(t *testing.T, p *testenv.PostgresServer, role map[string]any) *engine {
	t.Helper()
	m := newMount(t, &logical.InmemStorage{})
	m.configure("prod", p)
	full := map[string]any{"db_name": "prod", "creation_statements": createMember, "default_ttl": "10m", "max_ttl": "1h"}
	for key, value := range role {
		full[key] = value
	}
	m.must(logical.CreateOperation, "roles/app", full)
	return m
}

func TestCreds_LifeOfALogin(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, nil)
	began := time.Now()
	response := m.must(logical.ReadOperation, "creds/app", nil)
	username, password := response.Data["username"].(string), response.Data["password"].(string)
	require.Regexp(t, `^dbops-[a-z2-7]{8}-token-al-app-[A-Za-z0-9]{20}$`, username)
	require.Equal(t, 10*time.Minute, response.Secret.TTL)
	require.Equal(t, time.Hour, response.Secret.MaxTTL)
	require.Equal(t, []string{username}, accountNames(m))

	conn, err := login(t, p, username, password)
	require.NoError(t, err)
	var role string
	require.NoError(t, conn.QueryRow(t.Context(), `SELECT current_user`).Scan(&role))
	require.Equal(t, "dbops_read", role)
	// good checks that the login is good for its lease and expirySlack, from when it was
	// asked for, to the second.
	good := func(lease time.Duration) {
		t.Helper()
		left, err := strconv.Atoi(p.Value("postgres", `SELECT extract(epoch FROM rolvaliduntil - now())::int::text FROM pg_roles WHERE rolname = $1`, username))
		require.NoError(t, err)
		longest := (lease + expirySlack).Seconds()
		require.LessOrEqual(t, float64(left), longest)
		require.GreaterOrEqual(t, float64(left), longest-time.Since(began).Seconds()-2)
	}
	good(10 * time.Minute)

	response.Secret.Increment = 30 * time.Minute
	began = time.Now()
	response.Secret.IssueTime = began
	renewed, err := m.renew(response.Secret)
	require.NoError(t, err)
	require.Equal(t, 30*time.Minute, renewed.Secret.TTL)
	good(30 * time.Minute)

	_, err = m.revoke(response.Secret)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return conn.Ping(context.Background()) != nil }, 30*time.Second, 10*time.Millisecond)
	require.Equal(t, "0", logins(t, p))
	require.Empty(t, keys(t, m.storage, prefixAccount))
	_, err = m.revoke(response.Secret)
	require.NoError(t, err, "a login that is gone is revoked")
	_, err = m.renew(response.Secret)
	require.ErrorContains(t, err, string(wire.CodeLeaseLost))
}

func TestCreds_TTL(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, nil)
	response := m.must(logical.ReadOperation, "creds/app", map[string]any{"ttl": "5m"})
	require.Equal(t, 5*time.Minute, response.Secret.TTL)
	response.Secret.IssueTime = time.Now()
	renewed, err := m.renew(response.Secret)
	require.NoError(t, err)
	require.Equal(t, 5*time.Minute, renewed.Secret.TTL, "the next term is as long as the one asked for")
	response = m.must(logical.ReadOperation, "creds/app", map[string]any{"ttl": "9h"})
	require.Equal(t, time.Hour, response.Secret.TTL)
	require.Len(t, response.Warnings, 1)
	for _, ttl := range []any{"-1s", 0, "x"} {
		refusal, status := m.refused(logical.ReadOperation, "creds/app", map[string]any{"ttl": ttl})
		require.Equal(t, 400, status)
		require.Equal(t, "ttl", refusal.Field)
	}
}

func TestCreds_Refusals(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, nil)
	m.must(logical.CreateOperation, "roles/nowhere", map[string]any{"db_name": "nowhere", "creation_statements": createLogin})
	m.must(logical.CreateOperation, "roles/empty", map[string]any{"db_name": "prod"})
	m.must(logical.CreateOperation, "roles/broken", map[string]any{"db_name": "prod", "creation_statements": `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' IN ROLE no_such_role`})
	m.must(logical.CreateOperation, "roles/super", map[string]any{"db_name": "prod", "creation_statements": `CREATE ROLE "{{name}}" SUPERUSER LOGIN PASSWORD '{{password}}'`})
	m.must(logical.CreateOperation, "roles/open", map[string]any{"db_name": "prod", "creation_statements": `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}`})
	m.must(logical.CreateOperation, "roles/policy", map[string]any{"db_name": "prod", "creation_statements": createLogin, "credential_config": map[string]any{"password_policy": "none"}})
	for role, want := range map[string]struct {
		code   wire.Code
		status int
	}{
		"unknown": {wire.CodeInvalid, 400},
		"nowhere": {wire.CodeConflict, 409},
		"empty":   {wire.CodeInvalid, 400},
		"broken":  {wire.CodeEngine, 409},
		"super":   {wire.CodePrivilege, 409},
		"open":    {wire.CodeInvalid, 400},
		"policy":  {wire.CodeInvalid, 400},
	} {
		refusal, status := m.refused(logical.ReadOperation, "creds/"+role, nil)
		require.Equal(t, want.status, status, "%s: %v", role, refusal)
		require.Equal(t, want.code, refusal.Code, role)
	}
	m.must(logical.UpdateOperation, "config/prod", map[string]any{"allowed_roles": "reporting-*"})
	refusal, status := m.refused(logical.ReadOperation, "creds/app", nil)
	require.Equal(t, 403, status)
	require.Equal(t, wire.CodeDenied, refusal.Code)
	require.Empty(t, keys(t, m.storage, prefixAccount), "what was not made has no record")
	require.Equal(t, "0", logins(t, p))
}

// A lease can be revoked after its role and its connection are gone; the secret
// of the connection is kept exactly as long.
func TestCreds_RevokeAfterRoleAndConnectionAreGone(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, map[string]any{"revocation_statements": `COMMENT ON ROLE dbops_read IS 'embedded {{name}}'; DROP ROLE "{{name}}"`})
	m.start()
	response := m.must(logical.ReadOperation, "creds/app", nil)
	m.must(logical.DeleteOperation, "roles/app", nil)
	m.must(logical.DeleteOperation, "config/prod", nil)
	m.clock.advance(2 * retiredKept)
	m.tick()
	never(t, 300*time.Millisecond, func() bool { return len(keys(t, m.storage, prefixRetired)) == 0 })

	_, err := m.revoke(response.Secret)
	require.NoError(t, err)
	require.Equal(t, "0", logins(t, p))
	require.Equal(t, "embedded "+response.Data["username"].(string), p.Value("postgres", `SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = 'dbops_read'`))
	m.ticksUntil(func() bool { return len(keys(t, m.storage, prefixRetired)) == 0 })
}

func TestCreds_CustomUsernameTemplate(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, nil)
	template := func(text string) {
		m.must(logical.UpdateOperation, "config/prod", map[string]any{"username_template": text})
	}
	template(`{{.RoleName}}_{{.MountID}}_{{random 8}}`)
	response := m.must(logical.ReadOperation, "creds/app", nil)
	require.Regexp(t, `^app_[a-z2-7]{8}_[A-Za-z0-9]{8}$`, response.Data["username"])
	_, err := m.revoke(response.Secret)
	require.NoError(t, err)

	// A display name cannot break out of the statement.
	template(`{{.DisplayName}}"'; DROP ROLE dbops_read; --{{random 4}}`)
	response = m.must(logical.ReadOperation, "creds/app", nil)
	_, err = login(t, p, response.Data["username"].(string), response.Data["password"].(string))
	require.NoError(t, err)
	_, err = m.revoke(response.Secret)
	require.NoError(t, err)
	require.Equal(t, "1", p.Value("postgres", `SELECT count(*) FROM pg_roles WHERE rolname = 'dbops_read'`))

	template(strings.Repeat("x", 60) + `{{random 20}}`)
	refusal, status := m.refused(logical.ReadOperation, "creds/app", nil)
	require.Equal(t, 400, status)
	require.Equal(t, "username_template", refusal.Field)
}

func TestCreds_DefaultUsernamesFit(t *testing.T) {
	t.Parallel()
	m := newMount(t, &logical.InmemStorage{})
	m.config("prod", map[string]any{"connection_url": someURL})
	c, err := m.connections.get(t.Context(), m.storage, "prod")
	require.NoError(t, err)
	seen := map[string]bool{}
	for range 200 {
		name, err := m.username(t.Context(), m.storage, c, strings.Repeat("ä\"';$ ", 30), strings.Repeat("r", 100), "")
		require.NoError(t, err)
		require.LessOrEqual(t, len(name), 63)
		require.Regexp(t, `^[A-Za-z0-9_-]+-[A-Za-z0-9]{20}$`, name)
		require.False(t, seen[name])
		seen[name] = true
	}
}

// Vault's other way to write a role's password into the server's log is closed
// unless asked for.
func TestCreds_PasswordNeverReachesTheServer(t *testing.T) {
	t.Parallel()
	p := testenv.Postgres(t, testenv.PostgresOptions{Conf: []string{"log_statement = 'all'"}})
	p.Exec("postgres", `CREATE ROLE dbops_read`, `CREATE ROLE dbops_root LOGIN CREATEROLE PASSWORD '`+rootPassword+`'`, `GRANT dbops_read TO dbops_root WITH ADMIN OPTION`)
	m := withRole(t, p, nil)
	scram := m.must(logical.ReadOperation, "creds/app", nil).Data
	m.must(logical.UpdateOperation, "config/prod", map[string]any{"password_authentication": "password"})
	plain := m.must(logical.ReadOperation, "creds/app", nil).Data
	for _, data := range []map[string]any{scram, plain} {
		_, err := login(t, p, data["username"].(string), data["password"].(string))
		require.NoError(t, err)
	}
	log := p.Logs()
	require.Contains(t, log, scram["username"].(string))
	require.NotContains(t, log, scram["password"].(string))
	require.Contains(t, log, plain["password"].(string), "the test can see passwords in the log")
}
