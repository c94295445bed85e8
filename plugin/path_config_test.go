package plugin

import (
	"encoding/json"
	"maps"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/race"
)

const someURL = "postgresql://{{username}}:{{password}}@db.example.test:5433/shop?sslmode=verify-full"

// config writes without logging in.
func (m *engine) config(name string, data map[string]any) {
	m.t.Helper()
	full := map[string]any{"plugin_name": postgresPluginName, "verify_connection": false}
	for key, value := range data {
		full[key] = value
	}
	m.must(logical.CreateOperation, "config/"+name, full)
}

// Terraform's provider crashes on any other JSON type, and never shows secrets.
func TestConfig_ReadHasTerraformsTypes(t *testing.T) {
	t.Parallel()
	m := newMount(t, &logical.InmemStorage{})
	m.config("prod", map[string]any{
		"connection_url": someURL, "username": "root", "password": "planted-password", "private_key": "",
		"max_open_connections": "5", "max_idle_connections": 2.0, "max_connection_lifetime": 300.0,
		"disable_escaping": "true", "allowed_roles": "a,b-*", "tls_ca": "", "something_else": "kept",
		"root_rotation_statements": []string{"ALTER ROLE x"}, "plugin_version": "1.2.3",
	})
	answer := m.must(logical.ReadOperation, "config/prod", nil).Data
	content, err := json.Marshal(answer)
	require.NoError(t, err)
	require.NotContains(t, string(content), "planted")
	var read map[string]any
	require.NoError(t, json.Unmarshal(content, &read))
	require.Equal(t, map[string]any{
		"plugin_name": postgresPluginName, "plugin_version": "v1.2.3", "running_plugin_version": DefaultVersion,
		"connection_details": map[string]any{
			"connection_url": someURL, "username": "root", "max_open_connections": 5.0, "max_idle_connections": 2.0,
			"max_connection_lifetime": "300s", "disable_escaping": true, "tls_ca": "", "something_else": "kept",
		},
		"allowed_roles": []any{"a", "b-*"}, "root_credentials_rotate_statements": []any{"ALTER ROLE x"},
		"password_policy": "", "verify_connection": false, "skip_static_role_import_rotation": false,
		"rotation_schedule": "", "rotation_window": 0.0, "rotation_period": 0.0, "disable_automated_rotation": false,
	}, read)

	// What comes back from storage has the same types.
	m.connections.clear()
	again, err := json.Marshal(m.must(logical.ReadOperation, "config/prod", nil).Data)
	require.NoError(t, err)
	require.JSONEq(t, string(content), string(again))
}

func TestConfig_DefaultsAreNeverNull(t *testing.T) {
	t.Parallel()
	m := newMount(t, &logical.InmemStorage{})
	m.config("prod", map[string]any{"connection_url": someURL})
	answer := m.must(logical.ReadOperation, "config/prod", nil).Data
	require.Equal(t, []string{}, answer["allowed_roles"])
	require.Equal(t, []string{}, answer["root_credentials_rotate_statements"])
	require.Equal(t, map[string]any{"connection_url": someURL}, answer["connection_details"])
}

// An update keeps what it does not name, the password included.
func TestConfig_UpdateMergesKeyByKey(t *testing.T) {
	t.Parallel()
	m := newMount(t, &logical.InmemStorage{})
	m.config("prod", map[string]any{"connection_url": someURL, "username": "root", "password": "planted-password", "allowed_roles": "*"})
	before, err := m.connections.get(t.Context(), m.storage, "prod")
	require.NoError(t, err)
	m.must(logical.UpdateOperation, "config/prod", map[string]any{"username": "other", "max_open_connections": 8, "verify_connection": false})
	after, err := m.connections.get(t.Context(), m.storage, "prod")
	require.NoError(t, err)
	require.Equal(t, "planted-password", after.Secrets["password"])
	require.Equal(t, "other", after.detail("username"))
	require.Equal(t, 8, after.number("max_open_connections"))
	require.Equal(t, []string{"*"}, after.AllowedRoles)
	require.Equal(t, before.ID, after.ID, "the server is the same")
	require.NotEqual(t, before.digest, after.digest)

	// Another address is another server; what accounts there need is kept.
	m.must(logical.UpdateOperation, "config/prod", map[string]any{"connection_url": "postgresql://{{username}}:{{password}}@new.example.test/shop"})
	moved, err := m.connections.get(t.Context(), m.storage, "prod")
	require.NoError(t, err)
	require.NotEqual(t, after.ID, moved.ID)
	old, err := m.connectionOf(t.Context(), m.storage, "prod", after.ID)
	require.NoError(t, err)
	require.Equal(t, "db.example.test", old.location.Host)
	require.Equal(t, "planted-password", old.Secrets["password"])
}

// The digest pins what a plan was made for; a new password changes no plan.
func TestConfig_DigestHoldsNoSecret(t *testing.T) {
	t.Parallel()
	m := newMount(t, &logical.InmemStorage{})
	m.config("prod", map[string]any{"connection_url": someURL, "username": "root", "password": "planted-one"})
	_, before, err := m.endpoint(t.Context(), m.storage, "prod")
	require.NoError(t, err)
	m.must(logical.UpdateOperation, "config/prod", map[string]any{"password": "planted-two"})
	endpoint, after, err := m.endpoint(t.Context(), m.storage, "prod")
	require.NoError(t, err)
	require.Equal(t, before, after)
	require.Equal(t, wire.Endpoint{
		Connection: "prod", Engine: wire.EnginePostgres, Host: "db.example.test", Port: 5433, Database: "shop", SSLMode: "verify-full",
	}, endpoint)
}

func TestConfig_RefusalsNameTheField(t *testing.T) {
	t.Parallel()
	m := newMount(t, &logical.InmemStorage{})
	for _, test := range []struct {
		field string
		data  map[string]any
	}{
		{"plugin_name", map[string]any{"plugin_name": ""}},
		{"plugin_name", map[string]any{"plugin_name": "oracle-database-plugin"}},
		{"plugin_version", map[string]any{"plugin_version": "latest"}},
		{"connection_url", map[string]any{"connection_url": ""}},
		{"connection_url", map[string]any{"connection_url": "mysql://planted"}},
		{"connection_url", map[string]any{"connection_url": "postgres://u:planted@h:99999/d"}},
		{"passwrod", map[string]any{"passwrod": "planted"}},
		{"conection_url", map[string]any{"conection_url": "planted"}},
		{"allowed-roles", map[string]any{"allowed-roles": "x"}},
		{"max_open_connections", map[string]any{"max_open_connections": "many"}},
		{"max_connection_lifetime", map[string]any{"max_connection_lifetime": "long"}},
		{"disable_escaping", map[string]any{"disable_escaping": "perhaps"}},
		{"password_authentication", map[string]any{"password_authentication": "md5"}},
		{"auth_type", map[string]any{"auth_type": "gcp_iam"}},
		{"rotation_period", map[string]any{"rotation_period": "4s"}},
		{"username_template", map[string]any{"username_template": "{{ nonsense }}"}},
		{"tls_ca", map[string]any{"tls_ca": "no pem"}},
		{"password", map[string]any{"password": map[string]any{"planted": 1}}},
	} {
		data := map[string]any{"plugin_name": postgresPluginName, "connection_url": someURL, "username": "root", "password": "planted-password", "verify_connection": false}
		for key, value := range test.data {
			data[key] = value
		}
		refusal, status := m.refused(logical.CreateOperation, "config/prod", data)
		require.Equal(t, 400, status, "%v", test)
		require.Equal(t, wire.CodeInvalid, refusal.Code)
		require.Equal(t, test.field, refusal.Field)
	}
	require.Empty(t, keys(t, m.storage, prefixConfig))
}

func TestConfig_ListReadDelete(t *testing.T) {
	t.Parallel()
	m := newMount(t, &logical.InmemStorage{})
	m.config("a", map[string]any{"connection_url": someURL})
	m.config("b", map[string]any{"connection_url": someURL})
	require.Equal(t, []string{"a", "b"}, m.must(logical.ListOperation, "config/", nil).Data["keys"])
	require.Nil(t, m.must(logical.DeleteOperation, "config/a", nil))
	require.Nil(t, m.must(logical.DeleteOperation, "config/a", nil), "deleting what is gone is no error")
	require.Nil(t, m.must(logical.ReadOperation, "config/a", nil), "Vault makes a 404 of it")
	require.Equal(t, []string{"b"}, m.must(logical.ListOperation, "config/", nil).Data["keys"])
}

func TestConfig_WarnsOfPasswordInURL(t *testing.T) {
	t.Parallel()
	m := newMount(t, &logical.InmemStorage{})
	response := m.must(logical.CreateOperation, "config/prod", map[string]any{
		"plugin_name": postgresPluginName, "verify_connection": false, "connection_url": "postgresql://root:planted@localhost/shop",
	})
	require.Len(t, response.Warnings, 1)
	answer := m.must(logical.ReadOperation, "config/prod", nil)
	require.Equal(t, "postgresql://root:xxxxx@localhost/shop", answer.Data["connection_details"].(map[string]any)["connection_url"])
}

// A login that does not work is the writer's mistake: 400, and nothing is stored.
func TestConfig_VerifyConnection(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := newMount(t, &logical.InmemStorage{})
	m.configure("good", p)
	write := func(url, password string) (*wire.Error, int) {
		return m.refused(logical.CreateOperation, "config/bad", map[string]any{
			"plugin_name": postgresPluginName, "connection_url": url, "username": "dbops_root", "password": password,
		})
	}
	refusal, status := write(p.ConnectionURL("postgres"), "planted-wrong")
	require.Equal(t, 400, status)
	require.Equal(t, "password", refusal.Field)
	refusal, status = write(p.ConnectionURL("no_such_database"), rootPassword)
	require.Equal(t, 400, status)
	require.Equal(t, "connection_url", refusal.Field)
	began := time.Now()
	_, status = write("postgresql://{{username}}:{{password}}@"+testenv.BlackHole(t).String()+"/x", rootPassword)
	require.Equal(t, 400, status)
	require.Less(t, time.Since(began), 20*time.Second*race.Slowdown)
	require.Equal(t, []string{"config/good"}, keys(t, m.storage, prefixConfig))
}

func TestServerIdentity(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := newMount(t, &logical.InmemStorage{})
	m.configure("one", p)
	m.configure("two", p)
	one, err := m.serverIdentity(t.Context(), m.storage, "one")
	require.NoError(t, err)
	two, err := m.serverIdentity(t.Context(), m.storage, "two")
	require.NoError(t, err)
	require.True(t, one.Same(two))
	require.Equal(t, p.Value("postgres", `SELECT system_identifier::text FROM pg_control_system()`), one.Server)
	missing, err := m.databaseIdentity(t.Context(), m.storage, "one", "shop")
	require.NoError(t, err)
	require.Equal(t, "shop", missing.Database)
	require.Empty(t, missing.DatabaseID)
	require.False(t, one.Same(missing))
}

// What is stored may be a connection in use: making another of it changes nothing of it.
func TestNewConnection_LeavesWhatIsStoredAlone(t *testing.T) {
	t.Parallel()
	details := map[string]any{"connection_url": "postgresql://{{username}}:{{password}}@db.example.com/shop", "max_open_connections": "7"}
	stored := storedConnection{Name: "prod", PluginName: "postgresql-database-plugin", Details: maps.Clone(details)}
	c, err := newConnection(stored)
	require.NoError(t, err)
	require.Equal(t, details, stored.Details)
	require.NotEqual(t, details, c.Details)
}
