package plugin

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	client "github.com/go-sql-driver/mysql"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/jackc/pgx/v5"
	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/dialect"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// connectionTo is a connection that is not used.
func connectionTo(t *testing.T, pluginName, url string) *connection {
	t.Helper()
	details := map[string]any{"connection_url": url, "username": "dbops_vault"}
	if pluginName == redisPluginName {
		details = map[string]any{"host": "h", "port": int64(6379), "username": "dbops_vault"}
	}
	c, err := newConnection(storedConnection{Name: "prod", PluginName: pluginName, Details: details, Secrets: map[string]string{}})
	require.NoError(t, err)
	return c
}

// Each preset comes to the fewest rights that do what its name says.
func TestPreset_Expansions(t *testing.T) {
	t.Parallel()
	const postgresURL, mysqlURL = "postgresql://{{username}}:{{password}}@h/shop", "{{username}}:{{password}}@tcp(h)/my_shop?tls=true"
	password := func(p preset) *role { return &role{Preset: p, CredentialType: credentialPassword} }
	certificate := &role{Preset: presetReadonly, CredentialType: credentialCertificate}
	for _, test := range []struct {
		plugin, url string
		role        *role
		creation    []string
	}{
		{postgresPluginName, postgresURL, password(presetReadonly), []string{
			`CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' CONNECTION LIMIT 20 IN ROLE "dbops_readonly_shop"`,
		}},
		{postgresPluginName, postgresURL, certificate, []string{
			`CREATE ROLE "{{name}}" LOGIN VALID UNTIL '{{expiration}}' CONNECTION LIMIT 20 IN ROLE "dbops_readonly_shop"`,
		}},
		{postgresPluginName, postgresURL, password(presetOwner), []string{
			`CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' CONNECTION LIMIT 20 IN ROLE "dbops_owner_shop"`,
			`ALTER ROLE "{{name}}" SET role TO "dbops_owner_shop"`,
		}},
		{mysqlPluginName, mysqlURL, password(presetReadwrite), []string{
			`CREATE USER '{{name}}'@'{{host}}' IDENTIFIED BY '{{password}}' REQUIRE SSL WITH MAX_USER_CONNECTIONS 20`,
			"GRANT SELECT, INSERT, UPDATE, DELETE ON `my\\_shop`.* TO '{{name}}'@'{{host}}'",
		}},
		{mysqlPluginName, strings.TrimSuffix(mysqlURL, "?tls=true"), certificate, []string{
			`CREATE USER '{{name}}'@'{{host}}' REQUIRE SUBJECT '/CN={{common_name}}' WITH MAX_USER_CONNECTIONS 20`,
			"GRANT SELECT ON `my\\_shop`.* TO '{{name}}'@'{{host}}'",
		}},
		{redisPluginName, "", password(presetReadonly), []string{`["~*","+@read","+@connection","+select","-@dangerous"]`}},
	} {
		e, err := connectionTo(t, test.plugin, test.url).expand(test.role)
		require.NoError(t, err)
		require.Equal(t, test.creation, e.Creation)
		require.NotEmpty(t, e.Revocation)
		require.Equal(t, test.plugin == postgresPluginName, len(e.Preparation.Statements) > 0)
	}
	for name, test := range map[string]struct {
		plugin, url string
		kind        string
	}{
		"no database":        {mysqlPluginName, "{{username}}:{{password}}@tcp(h)/", credentialPassword},
		"a placeholder":      {postgresPluginName, "postgresql://{{username}}:{{password}}@h/%7B%7Bname%7D%7D", credentialPassword},
		"a key, PostgreSQL":  {postgresPluginName, postgresURL, credentialRSA},
		"a key, MySQL":       {mysqlPluginName, mysqlURL, credentialRSA},
		"certificate, Redis": {redisPluginName, "", credentialCertificate},
	} {
		_, err := connectionTo(t, test.plugin, test.url).expand(&role{Preset: presetOwner, CredentialType: test.kind})
		var refusal *wire.Error
		require.ErrorAs(t, err, &refusal, name)
		require.Equal(t, "preset", refusal.Field, name)
	}
}

// Names of capability roles are never cut by the server, never the same for two
// databases, and nothing in a name gets out of the statements it stands in.
func TestPreset_CapabilityRolesOfAnyDatabase(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("d", 60)
	seen := map[string]bool{}
	for _, database := range []string{"shop", long + "1", long + "2", strings.Repeat("ä", 31), `a"b'c$dbops$\`, "x$dbops1$"} {
		for _, p := range presets() {
			name := capabilityRole(p, database)
			require.LessOrEqual(t, len(name), dialect.PostgresNameBytes)
			require.False(t, seen[name], name)
			seen[name] = true
			q, err := newPostgresQuoter(p, database, `va"ult'`)
			require.NoError(t, err)
			for _, statement := range q.preparation().Statements {
				_, err := dialect.RenderPostgres(statement, nil)
				require.NoError(t, err, "quotes and dollar quotes are closed: %s", statement)
			}
		}
	}
}

// A preset and statements of one's own exclude and replace each other, and roles
// stored before there were presets are what they were.
func TestPreset_InPlaceOfStatements(t *testing.T) {
	t.Parallel()
	m := newMount(t, &logical.InmemStorage{})
	m.must(logical.CreateOperation, "config/prod", map[string]any{
		"plugin_name": redisPluginName, "host": "127.0.0.1", "port": 1, "username": "u", "password": rootPassword, "verify_connection": false,
	})
	read := func() map[string]any { return m.must(logical.ReadOperation, "roles/app", nil).Data }
	refused := func(field string, data map[string]any) {
		t.Helper()
		data["db_name"] = "prod"
		refusal, status := m.refused(logical.UpdateOperation, "roles/app", data)
		require.Equal(t, 400, status)
		require.Equal(t, field, refusal.Field)
	}
	refused("preset", map[string]any{"preset": "admin"})
	for _, field := range presetFields() {
		refused(field, map[string]any{"preset": "readonly", field: `["~*"]`})
	}
	m.must(logical.CreateOperation, "roles/app", map[string]any{"db_name": "prod", "preset": "readonly", "creation_statements": []string{}})
	require.Equal(t, "readonly", read()["preset"])
	require.Equal(t, []string{`["~*","+@read","+@connection","+select","-@dangerous"]`}, read()["creation_statements"])
	refused("revocation_statements", map[string]any{"revocation_statements": "x"})

	m.must(logical.UpdateOperation, "roles/app", map[string]any{"max_ttl": 60})
	require.Equal(t, "readonly", read()["preset"], "an update keeps what it does not name")
	m.must(logical.UpdateOperation, "roles/app", map[string]any{"creation_statements": `["~own"]`, "renew_statements": "r"})
	require.NotContains(t, read(), "preset")
	require.NotContains(t, read(), "preparation_statements")
	require.Equal(t, []string{`["~own"]`}, read()["creation_statements"])
	m.must(logical.UpdateOperation, "roles/app", map[string]any{"preset": "owner"})
	require.Equal(t, "owner", read()["preset"])
	require.Equal(t, []string{}, read()["renew_statements"])
	m.must(logical.UpdateOperation, "roles/app", map[string]any{"preset": ""})
	require.NotContains(t, read(), "preset")
	require.Equal(t, []string{}, read()["creation_statements"])

	m.must(logical.DeleteOperation, "config/prod", nil)
	require.Len(t, m.must(logical.UpdateOperation, "roles/app", map[string]any{"preset": "readonly"}).Warnings, 1)
	require.Len(t, m.must(logical.ReadOperation, "roles/app", nil).Warnings, 1)

	old := &logical.StorageEntry{Key: prefixRole + "old", Value: []byte(`{"name":"old","db_name":"prod","creation_statements":["c"],"revocation_statements":null,` +
		`"rollback_statements":null,"renew_statements":null,"default_ttl":60000000000,"max_ttl":0,"credential_type":"password","credential_config":null,"max_leases":3}`)}
	require.NoError(t, m.storage.Put(t.Context(), old))
	data := m.must(logical.ReadOperation, "roles/old", nil).Data
	require.Equal(t, []string{"c"}, data["creation_statements"])
	require.Equal(t, 3, data["max_leases"])
	require.NotContains(t, data, "preset")
	require.NotContains(t, data, "credential_config")
}

// shop is a server with a database of which people make tables in public.
func shop(t *testing.T) *testenv.PostgresServer {
	t.Helper()
	p := testenv.Postgres(t, testenv.PostgresOptions{})
	p.Exec("postgres", `CREATE ROLE app_owner LOGIN PASSWORD 'app'`, `CREATE ROLE app_reader NOLOGIN`, `CREATE ROLE dbops_root LOGIN CREATEROLE PASSWORD '`+rootPassword+`'`)
	p.Exec("postgres", `CREATE DATABASE shop OWNER app_owner`)
	p.Exec("shop", `GRANT CREATE ON SCHEMA public TO PUBLIC`, `CREATE SCHEMA sales AUTHORIZATION app_owner`,
		`SET ROLE app_owner; CREATE TABLE public.orders (id serial, n int); CREATE TABLE sales.leads (n int); INSERT INTO public.orders (n) VALUES (1); GRANT SELECT ON public.orders TO app_reader`)
	return p
}

func (m *engine) configureShop(p *testenv.PostgresServer, username, password string) {
	m.t.Helper()
	m.must(logical.CreateOperation, "config/prod", map[string]any{
		"plugin_name": postgresPluginName, "connection_url": p.ConnectionURL("shop"),
		"username": username, "password": password, "allowed_roles": "*", "max_open_connections": 8,
	})
}

// enterShop opens a session as the login of an answer.
func enterShop(t *testing.T, p *testenv.PostgresServer, response *logical.Response) *pgx.Conn {
	t.Helper()
	config := p.ConnConfig("shop")
	config.User, config.Password = response.Data["username"].(string), response.Data["password"].(string)
	conn, err := pgx.ConnectConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func may(t *testing.T, conn *pgx.Conn, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		_, err := conn.Exec(t.Context(), statement)
		require.NoError(t, err, statement)
	}
}

func mayNot(t *testing.T, conn *pgx.Conn, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		_, err := conn.Exec(t.Context(), statement)
		require.ErrorContains(t, err, "SQLSTATE 42501", statement)
	}
}

// What logins of each preset can and cannot do on PostgreSQL: tables made after
// the lease are reached, public is closed to everybody else, what the owner makes
// outlives its login, and nothing is granted to logins themselves.
func TestPreset_PostgreSQL(t *testing.T) {
	t.Parallel()
	p := shop(t)
	m := newMount(t, &logical.InmemStorage{})
	m.configureShop(p, p.User, p.Password)
	response := make(map[preset]*logical.Response)
	conn := make(map[preset]*pgx.Conn)
	for _, name := range presets() {
		for range 2 { // repeating it is fine
			require.Nil(t, m.must(logical.UpdateOperation, "roles/"+string(name), map[string]any{"db_name": "prod", "preset": string(name)}))
		}
		response[name] = m.must(logical.ReadOperation, "creds/"+string(name), nil)
		conn[name] = enterShop(t, p, response[name])
	}
	may(t, conn[presetOwner], `CREATE TABLE public.made (n int)`, `INSERT INTO public.made VALUES (1)`, `ALTER TABLE public.made ADD COLUMN m int`,
		`CREATE SCHEMA fresh`, `CREATE TABLE fresh.made (n int)`, `SELECT * FROM public.orders`, `CREATE TABLE public.gone (n int)`, `DROP TABLE public.gone`)
	mayNot(t, conn[presetOwner], `ALTER TABLE public.orders ADD COLUMN x int`, `CREATE ROLE x`)
	p.Exec("shop", `SET ROLE app_owner; CREATE TABLE public.later (n int); CREATE TABLE sales.later (id serial, n int)`)

	tables := []string{"public.orders", "public.made", "public.later", "sales.leads", "sales.later", "fresh.made"}
	for _, table := range tables {
		may(t, conn[presetReadonly], `SELECT * FROM `+table)
		mayNot(t, conn[presetReadonly], `INSERT INTO `+table+` (n) VALUES (1)`, `UPDATE `+table+` SET n = 2`, `DELETE FROM `+table, `TRUNCATE `+table)
		may(t, conn[presetReadwrite], `INSERT INTO `+table+` (n) VALUES (1)`, `SELECT * FROM `+table, `UPDATE `+table+` SET n = 2`, `DELETE FROM `+table)
		mayNot(t, conn[presetReadwrite], `TRUNCATE `+table, `DROP TABLE `+table, `ALTER TABLE `+table+` ADD COLUMN x int`)
	}
	for _, name := range []preset{presetReadonly, presetReadwrite} {
		mayNot(t, conn[name], `CREATE TABLE public.forbidden (n int)`, `CREATE TABLE sales.forbidden (n int)`, `CREATE SCHEMA forbidden`)
	}
	require.Equal(t, "0", p.Value("shop", `SELECT count(*) FROM pg_namespace n, aclexplode(n.nspacl) a WHERE n.nspname = 'public' AND a.grantee = 0`), "rights of PUBLIC on schema public")
	require.Equal(t, "true", p.Value("shop", `SELECT has_schema_privilege('app_reader', 'public', 'USAGE')::text`), "who was granted something in it keeps its use")
	require.Equal(t, "0", p.Value("shop", `SELECT count(*) FROM pg_shdepend d JOIN pg_roles r ON r.oid = d.refobjid WHERE r.rolname LIKE 'dbops-%'`), "grants to or objects of logins")
	require.Equal(t, "20", p.Value("shop", `SELECT rolconnlimit FROM pg_roles WHERE rolname = $1`, response[presetReadonly].Data["username"]))

	// Made under its own name it is handed over all the same.
	p.Exec("shop", fmt.Sprintf(`GRANT CREATE ON SCHEMA public TO %q`, response[presetOwner].Data["username"]))
	may(t, conn[presetOwner], `SET ROLE NONE`, `CREATE TABLE public.own (n int)`)
	for _, name := range presets() {
		_, err := m.revoke(response[name].Secret)
		require.NoError(t, err)
	}
	for _, table := range []string{"made", "own"} {
		require.Equal(t, "dbops_owner_shop", p.Value("shop", `SELECT tableowner FROM pg_tables WHERE schemaname = 'public' AND tablename = $1`, table))
	}
	require.Equal(t, "0", logins(t, p))
}

// A login of Vault that may only make roles cannot prepare a server. It says so,
// creds say the same, and once a superuser has run what the role shows it works.
func TestPreset_PreparedByASuperuser(t *testing.T) {
	t.Parallel()
	p := shop(t)
	m := newMount(t, &logical.InmemStorage{})
	m.configureShop(p, "dbops_root", rootPassword)
	for _, name := range presets() {
		response := m.must(logical.CreateOperation, "roles/"+string(name), map[string]any{"db_name": "prod", "preset": string(name)})
		require.Len(t, response.Warnings, 1)
		require.Contains(t, response.Warnings[0], "the capability role is missing")
		require.Contains(t, response.Warnings[0], "preparation_statements")
		refusal, status := m.refused(logical.ReadOperation, "creds/"+string(name), nil)
		require.Equal(t, wire.CodePrivilege, refusal.Code)
		require.Equal(t, 409, status)
		require.Contains(t, refusal.Reason, "preparation_statements")
		require.Equal(t, "0", p.Value("shop", `SELECT count(*) FROM pg_roles WHERE rolname LIKE 'dbops\_%' AND NOT rolcanlogin`), "nothing is half done")
	}
	require.Empty(t, keys(t, m.storage, prefixAccount))
	for _, name := range presets() {
		shown := m.must(logical.ReadOperation, "roles/"+string(name), nil)
		p.Exec("shop", shown.Data["preparation_statements"].([]string)...)
		require.Nil(t, m.must(logical.UpdateOperation, "roles/"+string(name), map[string]any{"db_name": "prod"}), "it finds the server prepared")
	}
	owner := m.must(logical.ReadOperation, "creds/owner", nil)
	may(t, enterShop(t, p, owner), `CREATE TABLE public.made (n int)`)
	readonly := m.must(logical.ReadOperation, "creds/readonly", nil)
	conn := enterShop(t, p, readonly)
	may(t, conn, `SELECT * FROM public.made`, `SELECT * FROM public.orders`)
	mayNot(t, conn, `INSERT INTO public.orders (n) VALUES (1)`)
	for _, response := range []*logical.Response{owner, readonly} {
		_, err := m.renew(response.Secret)
		require.NoError(t, err)
		_, err = m.revoke(response.Secret)
		require.NoError(t, err)
	}
	require.Equal(t, "0", logins(t, p))
	require.Equal(t, "dbops_owner_shop", p.Value("shop", `SELECT tableowner FROM pg_tables WHERE tablename = 'made'`))
}

// A server that lost its capability role, or was down when the role was written,
// is prepared by the first login; many at once do not get in each other's way.
func TestPreset_PreparedByTheFirstLogins(t *testing.T) {
	t.Parallel()
	p := shop(t)
	m := newMount(t, &logical.InmemStorage{})
	m.must(logical.CreateOperation, "roles/readonly", map[string]any{"db_name": "prod", "preset": "readonly"})
	m.configureShop(p, p.User, p.Password)
	var group sync.WaitGroup
	errs := make(chan error, 48)
	for range cap(errs) {
		group.Go(func() {
			response, err := m.request(logical.ReadOperation, "creds/readonly", nil)
			if err == nil {
				_, err = m.revoke(response.Secret)
			}
			errs <- err
		})
	}
	group.Wait()
	close(errs)
	for err := range errs {
		require.NoError(t, err)
	}
	require.Equal(t, "0", logins(t, p))
	may(t, enterShop(t, p, m.must(logical.ReadOperation, "creds/readonly", nil)), `SELECT * FROM public.orders`)
}

// What reading a role shows is all there is: written as statements of one's own it
// makes, renews and ends the same logins.
func TestPreset_WhatIsShownIsAllThereIs(t *testing.T) {
	t.Parallel()
	p, server, r := shop(t), mariadb(t), testenv.Redis(t, testenv.RedisOptions{})
	server.Exec("", `GRANT ALL ON *.* TO 'dbops_root'@'%' WITH GRANT OPTION`)
	m := newMount(t, &logical.InmemStorage{})
	m.configureShop(p, p.User, p.Password)
	m.must(logical.CreateOperation, "config/my", map[string]any{
		"plugin_name": mysqlPluginName, "connection_url": server.ConnectionURL("shop"), "username": "dbops_root", "password": rootPassword, "allowed_roles": "*",
	})
	m.must(logical.CreateOperation, "config/re", map[string]any{
		"plugin_name": redisPluginName, "host": r.Host, "port": r.Port, "username": r.User, "password": r.Password, "allowed_roles": "*",
	})
	for _, connection := range []string{"prod", "my", "re"} {
		for _, name := range presets() {
			if connection == "re" && name == presetOwner && !knowsChannels(r) {
				continue
			}
			role := "roles/" + connection + "-" + string(name)
			m.must(logical.CreateOperation, role, map[string]any{"db_name": connection, "preset": string(name)})
			shown := m.must(logical.ReadOperation, role, nil).Data
			own := map[string]any{"db_name": connection}
			for _, field := range presetFields() {
				own[field] = shown[field]
			}
			m.must(logical.CreateOperation, role+"-own", own)
			require.Equal(t, shown["creation_statements"], m.must(logical.ReadOperation, role+"-own", nil).Data["creation_statements"])
			response := m.must(logical.ReadOperation, "creds/"+connection+"-"+string(name)+"-own", nil)
			_, err := m.renew(response.Secret)
			require.NoError(t, err)
			_, err = m.revoke(response.Secret)
			require.NoError(t, err)
			require.Empty(t, keys(t, m.storage, prefixAccount), "%s %s", connection, name)
		}
	}
	require.Equal(t, "0", logins(t, p))
	require.Equal(t, "0", server.Exec("", `SELECT COUNT(*) FROM mysql.user WHERE User LIKE 'dbops-%'`))
	c, err := m.connections.get(t.Context(), m.storage, "re")
	require.NoError(t, err)
	driver, err := c.open()
	require.NoError(t, err)
	left, err := driver.Logins(t.Context(), "V_")
	require.NoError(t, err)
	require.Empty(t, left)
}

// What users of each preset can and cannot do on MariaDB: only in the connection's
// database, whose name is no pattern; tables made after the lease are reached, and
// what the owner makes outlives its login.
func TestPreset_MySQL(t *testing.T) {
	t.Parallel()
	server := mariadb(t)
	server.Exec("", `GRANT ALL ON *.* TO 'dbops_root'@'%' WITH GRANT OPTION; CREATE DATABASE my_shop; CREATE DATABASE myxshop;
CREATE TABLE my_shop.orders (n int); CREATE TABLE myxshop.orders (n int)`)
	m := newMount(t, &logical.InmemStorage{})
	m.must(logical.CreateOperation, "config/prod", map[string]any{
		"plugin_name": mysqlPluginName, "connection_url": server.ConnectionURL("my_shop"), "username": "dbops_root", "password": rootPassword, "allowed_roles": "*",
	})
	response := make(map[preset]*logical.Response)
	session := make(map[preset]*sql.DB)
	for _, name := range presets() {
		require.Nil(t, m.must(logical.CreateOperation, "roles/"+string(name), map[string]any{"db_name": "prod", "preset": string(name)}))
		response[name] = m.must(logical.ReadOperation, "creds/"+string(name), nil)
		db, err := mysqlDatabase(t, server, "my_shop", response[name].Data["username"].(string), response[name].Data["password"].(string))
		require.NoError(t, err)
		session[name] = db
	}
	try := func(name preset, allowed bool, statements ...string) {
		t.Helper()
		for _, statement := range statements {
			_, err := session[name].ExecContext(t.Context(), statement)
			if allowed {
				require.NoError(t, err, "%s: %s", name, statement)
				continue
			}
			var refused *client.MySQLError
			require.ErrorAs(t, err, &refused, "%s: %s", name, statement)
			require.Contains(t, []uint16{1044, 1142, 1227, 1370}, refused.Number, "%s: %s", name, statement)
		}
	}
	try(presetOwner, true, `CREATE TABLE made (n int)`, `ALTER TABLE made ADD COLUMN m int`, `CREATE TABLE gone (n int)`, `DROP TABLE gone`)
	server.Exec("", `CREATE TABLE my_shop.later (n int)`)
	for _, table := range []string{"orders", "made", "later"} {
		try(presetReadonly, true, `SELECT * FROM `+table)
		try(presetReadonly, false, `INSERT INTO `+table+` (n) VALUES (1)`, `UPDATE `+table+` SET n = 2`, `DELETE FROM `+table, `DROP TABLE `+table)
		try(presetReadwrite, true, `INSERT INTO `+table+` (n) VALUES (1)`, `SELECT * FROM `+table, `UPDATE `+table+` SET n = 2`, `DELETE FROM `+table)
		try(presetReadwrite, false, `TRUNCATE `+table, `DROP TABLE `+table, `ALTER TABLE `+table+` ADD COLUMN x int`)
	}
	for _, name := range presets() {
		if name != presetOwner {
			try(name, false, `CREATE TABLE forbidden (n int)`)
		}
		try(name, false, `SELECT * FROM myxshop.orders`, `CREATE VIEW v AS SELECT 1`, `CREATE USER somebody`, `CREATE PROCEDURE p() SELECT 1`)
		_, err := m.revoke(response[name].Secret)
		require.NoError(t, err)
	}
	require.Equal(t, "0", server.Exec("", `SELECT COUNT(*) FROM mysql.user WHERE User LIKE 'dbops-%'`))
	require.Equal(t, "made", server.Exec("", `SELECT table_name FROM information_schema.tables WHERE table_schema = 'my_shop' AND table_name = 'made'`))
}

// knowsChannels reports whether a server is newer than Redis 6.0, which has no rights
// to channels and so no preset owner.
func knowsChannels(r *testenv.RedisServer) bool {
	return !strings.Contains(r.Command("INFO", "server"), "redis_version:6.0.")
}

// What users of each preset can and cannot do on Redis.
func TestPreset_Redis(t *testing.T) {
	t.Parallel()
	m, r := withRedis(t, testenv.RedisOptions{}, nil)
	for _, test := range []struct {
		name             preset
		allowed, refused [][]any
	}{
		{presetReadonly, [][]any{{"PING"}, {"GET", "k"}, {"SCAN", "0"}, {"SELECT", "1"}}, [][]any{{"SET", "k", "v"}, {"DEL", "k"}, {"FLUSHDB"}, {"KEYS", "*"}, {"CONFIG", "GET", "*"}}},
		{
			presetReadwrite,
			[][]any{{"SET", "k", "v"}, {"GET", "k"}, {"LPUSH", "l", "v"}, {"DEL", "l"}, {"MULTI"}, {"DISCARD"}},
			[][]any{{"FLUSHDB"}, {"FLUSHALL"}, {"SWAPDB", "0", "1"}, {"KEYS", "*"}, {"ACL", "LIST"}, {"CLIENT", "KILL", "ID", "1"}, {"FUNCTION", "FLUSH"}},
		},
		{
			presetOwner,
			[][]any{{"SET", "k", "v"}, {"KEYS", "*"}, {"PUBLISH", "c", "m"}, {"EVAL", "return 1", "0"}, {"FLUSHDB"}},
			[][]any{{"FLUSHALL"}, {"CONFIG", "GET", "*"}, {"ACL", "LIST"}, {"SHUTDOWN"}, {"REPLICAOF", "NO", "ONE"}, {"MODULE", "LIST"}},
		},
	} {
		m.must(logical.CreateOperation, "roles/app", map[string]any{"db_name": "cache", "preset": string(test.name)})
		if test.name == presetOwner && !knowsChannels(r) {
			refusal, status := m.refused(logical.ReadOperation, "creds/app", nil)
			require.Equal(t, 400, status)
			require.Contains(t, refusal.Reason, "ACL rule 2")
			continue
		}
		response := m.must(logical.ReadOperation, "creds/app", nil)
		user := goredis.NewClient(&goredis.Options{
			Addr: fmt.Sprintf("%s:%d", r.Host, r.Port), Username: response.Data["username"].(string), Password: response.Data["password"].(string), PoolSize: 1,
		})
		for _, command := range test.allowed {
			err := user.Do(t.Context(), command...).Err()
			require.True(t, err == nil || errors.Is(err, goredis.Nil), "%s: %v: %v", test.name, command, err)
		}
		for _, command := range test.refused {
			why := "NOPERM"
			if command[0] == "FUNCTION" && !knowsChannels(r) {
				why = "unknown command" // nor has Redis 6.0 functions
			}
			require.ErrorContains(t, user.Do(t.Context(), command...).Err(), why, "%s: %v", test.name, command)
		}
		require.NoError(t, user.Close())
		_, err := m.revoke(response.Secret)
		require.NoError(t, err)
	}
}
