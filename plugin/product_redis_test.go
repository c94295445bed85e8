package plugin

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

func redisConfig(r *testenv.RedisServer, more map[string]any) map[string]any {
	config := map[string]any{
		"plugin_name": redisPluginName, "host": r.Host, "port": r.Port, "username": r.User, "password": r.Password, "allowed_roles": "*",
	}
	for key, value := range more {
		config[key] = value
	}
	return config
}

func withRedis(t *testing.T, options testenv.RedisOptions, role map[string]any) (*engine, *testenv.RedisServer) {
	t.Helper()
	r := testenv.Redis(t, options)
	m := newMount(t, &logical.InmemStorage{})
	more := map[string]any{}
	if options.TLS {
		more["tls"], more["ca_cert"] = true, string(r.Certificate.CA)
	}
	m.must(logical.CreateOperation, "config/cache", redisConfig(r, more))
	full := map[string]any{"db_name": "cache", "default_ttl": "10m", "max_ttl": "1h"}
	for key, value := range role {
		full[key] = value
	}
	m.must(logical.CreateOperation, "roles/app", full)
	return m, r
}

// redisDriver is the driver of the connection, to look at the server with.
func redisDriver(t *testing.T, m *engine) account.Driver {
	t.Helper()
	c, err := m.connections.get(t.Context(), m.storage, "cache")
	require.NoError(t, err)
	driver, err := c.open()
	require.NoError(t, err)
	return driver
}

// Terraform's provider crashes on any other JSON type.
func TestRedis_ReadHasTerraformsTypes(t *testing.T) {
	t.Parallel()
	m := newMount(t, &logical.InmemStorage{})
	m.must(logical.CreateOperation, "config/cache", map[string]any{
		"plugin_name": redisPluginName, "verify_connection": false, "host": "cache.example.test", "port": "6380",
		"username": "root", "password": "planted-password", "tls": "true", "insecure_tls": false, "ca_cert": "", "max_open_connections": "8",
	})
	for range 2 {
		content, err := json.Marshal(m.must(logical.ReadOperation, "config/cache", nil).Data["connection_details"])
		require.NoError(t, err)
		require.JSONEq(t, `{"host":"cache.example.test","port":6380,"username":"root","tls":true,"insecure_tls":false,"ca_cert":"","max_open_connections":8}`, string(content))
		m.connections.clear()
	}
	before, err := m.connections.get(t.Context(), m.storage, "cache")
	require.NoError(t, err)
	m.must(logical.UpdateOperation, "config/cache", map[string]any{"port": 6381})
	moved, err := m.connections.get(t.Context(), m.storage, "cache")
	require.NoError(t, err)
	require.NotEqual(t, before.ID, moved.ID, "another port is another server")
}

func TestRedis_ConfigRefusals(t *testing.T) {
	t.Parallel()
	r := testenv.Redis(t, testenv.RedisOptions{})
	m := newMount(t, &logical.InmemStorage{})
	for name, test := range map[string]struct {
		change map[string]any
		field  string
	}{
		"no host":        {map[string]any{"host": ""}, "host"},
		"no port":        {map[string]any{"port": ""}, "port"},
		"no user":        {map[string]any{"username": ""}, "username"},
		"no password":    {map[string]any{"password": ""}, "password"},
		"no number":      {map[string]any{"port": "many"}, "port"},
		"out of range":   {map[string]any{"port": 70000}, "port"},
		"no flag":        {map[string]any{"tls": "perhaps"}, "tls"},
		"no certificate": {map[string]any{"tls": true, "ca_cert": "none"}, "ca_cert"},
		"no tls":         {map[string]any{"insecure_tls": true}, "tls"},
		"plain server":   {map[string]any{"tls": true, "insecure_tls": true}, "host"},
		"nobody there":   {map[string]any{"port": 1}, "host"},
		"wrong password": {map[string]any{"password": "planted-wrong"}, "password"},
	} {
		refusal, status := m.refused(logical.CreateOperation, "config/cache", redisConfig(r, test.change))
		require.Equal(t, 400, status, name)
		require.Equal(t, test.field, refusal.Field, "%s: %v", name, refusal)
	}
	require.Empty(t, keys(t, m.storage, prefixConfig))
}

func TestRedis_LifeOfALogin(t *testing.T) {
	t.Parallel()
	m, r := withRedis(t, testenv.RedisOptions{TLS: true, Users: testenv.RedisUsersInACLFile}, nil)
	driver := redisDriver(t, m)
	response := m.must(logical.ReadOperation, "creds/app", nil)
	username, password := response.Data["username"].(string), response.Data["password"].(string)
	require.Regexp(t, `^V_[A-Z2-7]{8}_TOKEN-ALICE_APP_[A-Z0-9]{20}_[0-9]{10}$`, username)
	require.NoError(t, driver.Login(t.Context(), username, wire.NewSecret(password)))
	require.Len(t, keys(t, m.storage, prefixAccount), 1)

	response.Secret.Increment, response.Secret.IssueTime = 30*time.Minute, time.Now()
	renewed, err := m.renew(response.Secret)
	require.NoError(t, err)
	require.Equal(t, 30*time.Minute, renewed.Secret.TTL)

	// Over a crash of the server, after the role and the connection are gone.
	r.Kill()
	r.Start()
	require.NoError(t, driver.Login(t.Context(), username, wire.NewSecret(password)))
	m.must(logical.DeleteOperation, "roles/app", nil)
	m.must(logical.DeleteOperation, "config/cache", nil)
	_, err = m.revoke(response.Secret)
	require.NoError(t, err)
	require.Error(t, driver.Login(t.Context(), username, wire.NewSecret(password)))
	require.Empty(t, keys(t, m.storage, prefixAccount))
	_, err = m.revoke(response.Secret)
	require.NoError(t, err, "a login that is gone is revoked")
	_, err = m.renew(response.Secret)
	require.ErrorContains(t, err, string(wire.CodeLeaseLost))
}

func TestRedis_WrongStatements(t *testing.T) {
	t.Parallel()
	m, _ := withRedis(t, testenv.RedisOptions{}, map[string]any{"creation_statements": []string{`["~*"]`, `["+@planted"]`}})
	refusal, status := m.refused(logical.ReadOperation, "creds/app", nil)
	require.Equal(t, 400, status)
	require.Contains(t, refusal.Reason, "ACL rule 2")
	m.must(logical.UpdateOperation, "roles/app", map[string]any{"creation_statements": `~* +planted`})
	_, status = m.refused(logical.ReadOperation, "creds/app", nil)
	require.Equal(t, 400, status)
	require.Empty(t, keys(t, m.storage, prefixAccount), "what was not made has no record")
}

// A name is never cut, so its random part never is.
func TestRedis_LongNames(t *testing.T) {
	t.Parallel()
	rule := redisProduct().usernames
	name, err := rule.name("abcdefgh", strings.Repeat("ä'", 200), strings.Repeat("role", 100), time.Unix(1700000000, 0))
	require.NoError(t, err)
	require.Regexp(t, `^V_ABCDEFGH_[-]{64}_[ROLE]{64}_[A-Z0-9]{20}_1700000000$`, name)
}

// A login with this mount's id and without a record is ended, another mount's is
// not.
func TestRedis_Orphans(t *testing.T) {
	t.Parallel()
	m, _ := withRedis(t, testenv.RedisOptions{}, nil)
	driver := redisDriver(t, m)
	id, err := m.mountID(t.Context(), m.storage)
	require.NoError(t, err)
	rule := redisProduct().usernames
	orphan, foreign := rule.prefix(id)+"ORPHAN", rule.prefix("zzzzzzzz")+"FOREIGN"
	for _, name := range []string{orphan, foreign} {
		require.NoError(t, driver.Create(t.Context(), account.CreateRequest{Username: name, Password: wire.NewSecret("pw")}))
	}
	m.start()
	require.Eventually(t, func() bool {
		names, err := driver.Logins(t.Context(), "V_")
		return err == nil && len(names) == 1 && names[0].Name == foreign
	}, 30*time.Second, 20*time.Millisecond)
}

// Operations do not work on Redis, and say so.
func TestRedis_NoOperations(t *testing.T) {
	t.Parallel()
	m, _ := withRedis(t, testenv.RedisOptions{}, nil)
	_, _, err := m.endpoint(t.Context(), m.storage, "cache")
	var refusal *wire.Error
	require.ErrorAs(t, err, &refusal)
	require.Equal(t, wire.CodeUnsupported, refusal.Code)
}
