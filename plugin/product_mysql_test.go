package plugin

import (
	"context"
	"database/sql"
	"testing"
	"time"

	client "github.com/go-sql-driver/mysql"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

const createMySQLUser = `CREATE USER '{{name}}'@'%' IDENTIFIED BY '{{password}}'; GRANT SELECT ON shop.* TO '{{name}}'@'%'`

func mariadb(t *testing.T) *testenv.MariaDBServer {
	t.Helper()
	server := testenv.MariaDB(t, testenv.MariaDBOptions{})
	server.Exec("", `CREATE DATABASE shop; CREATE USER 'dbops_root'@'%' IDENTIFIED BY '`+rootPassword+`';
GRANT CREATE USER, PROCESS, `+server.ConnectionAdmin()+`, SELECT ON *.* TO 'dbops_root'@'%' WITH GRANT OPTION`)
	return server
}

func mysqlSession(t *testing.T, server *testenv.MariaDBServer, username, password string) (*sql.DB, error) {
	t.Helper()
	return mysqlDatabase(t, server, "shop", username, password)
}

func mysqlDatabase(t *testing.T, server *testenv.MariaDBServer, database, username, password string) (*sql.DB, error) {
	t.Helper()
	config := client.NewConfig()
	config.User, config.Passwd, config.Net, config.Addr, config.DBName = username, password, "tcp", server.Address(), database
	config.Logger = &client.NopLogger{}
	connector, err := client.NewConnector(config)
	require.NoError(t, err)
	db := sql.OpenDB(connector)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	db.SetMaxOpenConns(1)
	return db, db.PingContext(t.Context())
}

func TestMySQL_LifeOfALogin(t *testing.T) {
	t.Parallel()
	server := mariadb(t)
	m := newMount(t, &logical.InmemStorage{})
	for _, name := range []string{"prod", "old"} {
		pluginName := mysqlPluginName
		if name == "old" {
			pluginName = "mysql-legacy-database-plugin"
		}
		m.must(logical.CreateOperation, "config/"+name, map[string]any{
			"plugin_name": pluginName, "connection_url": server.ConnectionURL("shop"), "username": "dbops_root",
			"password": rootPassword, "allowed_roles": "*", "max_open_connections": "3",
		})
		m.must(logical.CreateOperation, "roles/app-"+name, map[string]any{
			"db_name": name, "creation_statements": createMySQLUser, "default_ttl": "10m", "max_ttl": "1h",
		})
	}
	old := m.must(logical.ReadOperation, "creds/app-old", nil)
	require.Regexp(t, `^app--[A-Za-z0-9]{11}$`, old.Data["username"])

	response := m.must(logical.ReadOperation, "creds/app-prod", nil)
	username, password := response.Data["username"].(string), response.Data["password"].(string)
	require.Regexp(t, `^dbops-[a-z2-7]{8}-app--[A-Za-z0-9]{12}$`, username)
	session, err := mysqlSession(t, server, username, password)
	require.NoError(t, err)

	response.Secret.Increment, response.Secret.IssueTime = 30*time.Minute, time.Now()
	_, err = m.renew(response.Secret)
	require.NoError(t, err)

	_, err = m.revoke(response.Secret)
	require.NoError(t, err)
	_, err = session.ExecContext(context.Background(), "DO 1")
	require.Error(t, err, "the session ended with its login")
	_, err = m.revoke(old.Secret)
	require.NoError(t, err)
	require.Equal(t, "0", server.Exec("", `SELECT COUNT(*) FROM mysql.user WHERE User LIKE 'dbops-%' OR User LIKE 'app-%'`))
	require.Empty(t, keys(t, m.storage, prefixAccount))
	_, err = m.renew(response.Secret)
	require.ErrorContains(t, err, string(wire.CodeLeaseLost))

	// The root user's name and server are known; operations do not work there yet.
	identity, err := m.serverIdentity(t.Context(), m.storage, "prod")
	require.NoError(t, err)
	require.Equal(t, wire.EngineMySQL, identity.Engine)
	_, _, err = m.endpoint(t.Context(), m.storage, "prod")
	var refusal *wire.Error
	require.ErrorAs(t, err, &refusal)
	require.Equal(t, wire.CodeUnsupported, refusal.Code)
}

// A failed statement leaves no user and no record behind.
func TestMySQL_NoPartialUser(t *testing.T) {
	t.Parallel()
	server := mariadb(t)
	m := newMount(t, &logical.InmemStorage{})
	m.must(logical.CreateOperation, "config/prod", map[string]any{
		"plugin_name": mysqlPluginName, "connection_url": server.ConnectionURL(""), "username": "dbops_root", "password": rootPassword, "allowed_roles": "*",
	})
	m.must(logical.CreateOperation, "roles/app", map[string]any{"db_name": "prod", "creation_statements": createMySQLUser + `; GRANT nothing TO '{{name}}'@'%'`})
	_, status := m.refused(logical.ReadOperation, "creds/app", nil)
	require.GreaterOrEqual(t, status, 400)
	require.Equal(t, "0", server.Exec("", `SELECT COUNT(*) FROM mysql.user WHERE User LIKE 'dbops-%'`))
	require.Empty(t, keys(t, m.storage, prefixAccount))
}

func TestMySQL_RefusalsNameTheField(t *testing.T) {
	t.Parallel()
	m := newMount(t, &logical.InmemStorage{})
	url := "{{username}}:{{password}}@tcp(localhost:3306)/shop"
	for field, value := range map[string]any{
		"connection_url": "postgresql://planted", "tls_ca": "planted", "tls_certificate_key": "planted", "tls_skip_verify": "perhaps",
		"auth_type": "gcp_iam", "use_psc": true, "tls_servername": "planted", "username_template": "{{ nonsense }}",
	} {
		data := map[string]any{"plugin_name": mysqlPluginName, "connection_url": url, "username": "root", "password": "planted-password", "verify_connection": false}
		data[field] = value
		refusal, status := m.refused(logical.CreateOperation, "config/prod", data)
		require.Equal(t, 400, status, field)
		require.Equal(t, field, refusal.Field)
	}
	response := m.must(logical.CreateOperation, "config/prod", map[string]any{
		"plugin_name": mysqlPluginName, "verify_connection": false, "connection_url": "root:planted@tcp(localhost)/shop",
	})
	require.Len(t, response.Warnings, 1)
	details := m.must(logical.ReadOperation, "config/prod", nil).Data["connection_details"].(map[string]any)
	require.Equal(t, "root:xxxxx@tcp(localhost)/shop", details["connection_url"])
}

// A login that changes its own password needs no root user, and no right but to
// log in. The built-in engine does it in its enterprise edition only.
func TestMySQL_SelfManaged(t *testing.T) {
	t.Parallel()
	server := mariadb(t)
	server.Exec("", `CREATE USER 'svc'@'%' IDENTIFIED BY 'before'; GRANT SELECT ON shop.* TO 'svc'@'%'`)
	m := newMount(t, &logical.InmemStorage{})
	first, second := m.rotateRootless(mysqlPluginName, server.ConnectionURL("shop"))
	_, err := mysqlSession(t, server, "svc", first)
	require.Error(t, err)
	_, err = mysqlSession(t, server, "svc", second)
	require.NoError(t, err)
}
