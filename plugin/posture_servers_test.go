package plugin

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/race"
)

// readPosture reads posture or posture/:connection anew.
func (m *engine) readPosture(path string) wire.Posture {
	m.t.Helper()
	response := m.must(logical.ReadOperation, path, map[string]any{"max_age": 0})
	require.NotNil(m.t, response)
	require.NotContains(m.t, response.Data, "planted")
	return decode[wire.Posture](m.t, response.Data)
}

// planted is one weakness that a test has put on a server: the check that must
// find it, and what the finding must name.
type planted struct{ check, names string }

// found asserts that each planted weakness is named.
func found(t *testing.T, p wire.Posture, weaknesses []planted) {
	t.Helper()
	for _, w := range weaknesses {
		var seen []string
		for _, f := range p.Findings {
			if f.ID == w.check {
				seen = append(seen, f.Seen)
				require.NotEmpty(t, f.Remedy)
			}
		}
		require.Len(t, seen, 1, "%s in %+v", w.check, p.Findings)
		require.Contains(t, seen[0], w.names, w.check)
	}
}

// foundOnly asserts that the posture of a connection names each planted weakness and
// nothing else, and returns it.
func (m *engine) foundOnly(connection string, weaknesses []planted) wire.Posture {
	m.t.Helper()
	answer := m.readPosture("posture/" + connection)
	found(m.t, answer, weaknesses)
	require.Len(m.t, answer.Findings, len(weaknesses), "%+v", answer.Findings)
	return answer
}

// newMountTo is a mount with a connection of that name and kind, which logs in by a
// connection_url.
func newMountTo(t *testing.T, name, plugin, url, username, password string) *engine {
	t.Helper()
	m := newMount(t, &logical.InmemStorage{})
	m.must(logical.CreateOperation, "config/"+name, map[string]any{
		"plugin_name": plugin, "connection_url": url, "username": username, "password": password,
	})
	return m
}

// readmeBlock is a block of the README after a comment.
func readmeBlock(t *testing.T, comment string) string {
	t.Helper()
	fenced := testenv.InREADME(t, "<!-- "+comment+" -->\n```", "```")
	_, block, ok := strings.Cut(fenced, "\n")
	require.True(t, ok, comment)
	return block
}

// classify gives a connection what operations know of it.
func (m *engine) classify(name string) {
	m.t.Helper()
	m.must(logical.UpdateOperation, "connections/"+name, map[string]any{"labels": map[string]string{"env": "test"}})
}

// 17 weaknesses planted on a PostgreSQL server are named, each with its object.
func TestPosture_WeakPostgres(t *testing.T) {
	t.Parallel()
	p := testenv.Postgres(t, testenv.PostgresOptions{
		Conf:    []string{"password_encryption = 'md5'", "log_connections = off", "log_disconnections = off"},
		HBAOnly: true, HBA: []string{
			"local all all trust", "host shop guest 10.0.0.0/8 trust", "host shop legacy 10.1.0.0/16 password", "host all all all scram-sha-256",
		},
	})
	p.Exec("postgres",
		`CREATE ROLE legacy LOGIN PASSWORD 'planted-md5-password'`, `CREATE ROLE second LOGIN SUPERUSER`,
		`GRANT CREATE ON SCHEMA public TO PUBLIC`, `CREATE TABLE open_to_all (n int)`, `GRANT SELECT ON open_to_all TO PUBLIC`,
	)
	m := newMountTo(t, "weak", postgresPluginName, p.ConnectionURL("postgres"), p.User, p.Password)
	answer := m.foundOnly("weak", []planted{
		{"tls_off", ""},
		{"root_never_rotated", ""},
		{"root_excess_rights", "SUPERUSER"},
		{"postgres_ssl_off", "off"},
		{"postgres_hba_trust", "line 2: host shop guest 10.0.0.0 255.0.0.0 trust"},
		{"postgres_hba_password", "line 3: host shop legacy"},
		{"postgres_hba_open", "line 4: host all all all"},
		{"postgres_hba_plaintext", "line 4"},
		{"postgres_password_md5", "legacy"},
		{"postgres_password_encryption", "md5"},
		{"postgres_superusers", "second"},
		{"postgres_public_create", "public"},
		{"postgres_public_usage", "public"},
		{"postgres_public_tables", "public.open_to_all"},
		{"postgres_public_temp", "postgres"},
		{"postgres_public_connect", "postgres"},
		{"postgres_log_connections", "off"},
		{"postgres_log_disconnections", "off"},
	})
	require.Less(t, answer.Score, 20)
	require.Equal(t, wire.RiskCritical, answer.Findings[0].Severity, "the worst comes first")
}

// A hardened PostgreSQL server has no finding: the engine's login has README's
// rights, and README's functions show it what only superusers see.
func TestPosture_HardenedPostgres(t *testing.T) {
	t.Parallel()
	p := testenv.Postgres(t, testenv.PostgresOptions{
		ServerName: "db.example.test",
		Conf:       []string{"log_connections = on", "log_disconnections = on"},
		HBAOnly:    true,
		HBA:        []string{"local all postgres peer", "hostssl postgres postgres,dbops_vault 127.0.0.1/32 scram-sha-256"},
	})
	p.Exec("postgres",
		`CREATE ROLE dbops_inspect NOLOGIN`, `CREATE ROLE dbops_read NOLOGIN BYPASSRLS`,
		`CREATE ROLE dbops_vault LOGIN CREATEROLE PASSWORD '`+rootPassword+`'`, `GRANT dbops_inspect, dbops_read TO dbops_vault WITH ADMIN OPTION`,
		`REVOKE ALL ON SCHEMA public FROM PUBLIC`, `REVOKE ALL ON DATABASE postgres FROM PUBLIC`, `GRANT CONNECT ON DATABASE postgres TO dbops_vault`,
	)
	m := newMountTo(t, "good", postgresPluginName, p.ConnectionURL("postgres"), "dbops_vault", rootPassword)
	m.classify("good")
	m.must(logical.UpdateOperation, "rotate-root/good", nil)

	// Without them it is told what could not be seen, never silently fine.
	answer := m.readPosture("posture/good")
	found(t, answer, []planted{{"not_checked", "dbops_posture.passwords()"}, {"not_checked", "dbops_posture.hba()"}})
	require.Len(t, answer.Findings, 1, "%+v", answer.Findings)
	// On a source the login may read everything by way of dbops_read.
	everything := "pg_read_all_data"
	if p.Major() < 14 {
		everything = "SELECT ON pg_authid" // there is no such role
	}
	p.Exec("postgres", `GRANT `+everything+` TO dbops_read`)
	answer = m.readPosture("posture/good")
	found(t, answer, []planted{{"not_checked", "dbops_posture.hba()"}})
	require.NotContains(t, answer.Findings[0].Seen, "passwords")
	p.Exec("postgres", `REVOKE `+everything+` FROM dbops_read`)

	// Functions of somebody who is no superuser are not called: they would run
	// with the rights of the engine's login.
	p.Exec("postgres", `CREATE ROLE mallory`, `CREATE SCHEMA dbops_posture AUTHORIZATION mallory`,
		`SET ROLE mallory; CREATE FUNCTION dbops_posture.passwords() RETURNS TABLE (role name, form text) LANGUAGE sql SECURITY DEFINER AS 'SELECT ''mallory''::name, ''plain''';
		 GRANT USAGE ON SCHEMA dbops_posture TO PUBLIC; RESET ROLE`)
	answer = m.readPosture("posture/good")
	require.NotContains(t, fmt.Sprint(answer.Findings), "mallory")
	found(t, answer, []planted{{"not_checked", "dbops_posture.passwords()"}})
	p.Exec("postgres", `DROP SCHEMA dbops_posture CASCADE`)

	p.Exec("postgres", readmeBlock(t, "posture functions: run by a test"), `GRANT `+everything+` TO dbops_read`)
	answer = m.readPosture("posture/good")
	require.Empty(t, answer.Findings)
	require.Equal(t, 100, answer.Score)
	require.Len(t, answer.Looks, 1)

	p.Exec("postgres", `SET password_encryption = 'md5'; CREATE ROLE legacy LOGIN PASSWORD 'planted-md5-password'`)
	found(t, m.readPosture("posture/good"), []planted{{"postgres_password_md5", "legacy"}})
}

// Weaknesses planted on a MariaDB or MySQL server are named.
func TestPosture_WeakMariaDB(t *testing.T) {
	t.Parallel()
	conf := []string{"local_infile=ON", "secure_file_priv="}
	probe := `CREATE DATABASE test;
CREATE USER 'nobody'@'10.0.0.1' IDENTIFIED BY '';
CREATE USER ''@'10.0.0.%' IDENTIFIED BY 'planted-anonymous-password';
CREATE USER 'admin'@'10.0.0.%' IDENTIFIED BY 'planted-admin-password';
GRANT ALL ON *.* TO 'admin'@'10.0.0.%';
CREATE USER 'app'@'%' IDENTIFIED BY 'planted-app-password'`
	// What only one of the products can have.
	var only []planted
	if testenv.ServesMySQL() {
		only = []planted{{"mysql_ssl_off", "no certificate"}, {"root_excess_rights", "BINLOG_ADMIN"}}
	} else {
		conf = append(conf, "tls_version=TLSv1.1,TLSv1.2")
		probe += `;
CREATE USER 'ancient'@'10.0.0.3' IDENTIFIED VIA mysql_old_password USING '0123456789abcdef'`
		only = []planted{
			{"mysql_ssl_off", "DISABLED"},
			{"root_excess_rights", "FILE"},
			{"mysql_old_password", "'ancient'@'10.0.0.3'"},
			{"mysql_native_password", "'app'@'%'"},
			{"mysql_tls_old", "TLSv1.1"},
		}
	}
	server := testenv.MariaDB(t, testenv.MariaDBOptions{Conf: conf})
	server.Exec("", probe)
	m := newMountTo(t, "weak", mysqlPluginName, server.ConnectionURL(""), server.User, server.Password)
	m.foundOnly("weak", append(only, []planted{
		{"tls_off", ""},
		{"root_never_rotated", ""},
		{"mysql_empty_password", "'nobody'@'10.0.0.1'"},
		{"mysql_anonymous", "''@'10.0.0.%'"},
		{"mysql_superusers", "'admin'@'10.0.0.%'"},
		{"mysql_no_require_ssl", "'app'@'%'"},
		{"mysql_any_host", "'app'@'%'"},
		{"mysql_secure_transport", "OFF"},
		{"mysql_local_infile", "ON"},
		{"mysql_secure_file_priv", "empty"},
		{"mysql_test_database", "test"},
	}...))
}

// A hardened MariaDB or MySQL server has no finding.
func TestPosture_HardenedMariaDB(t *testing.T) {
	t.Parallel()
	server := testenv.MariaDB(t, testenv.MariaDBOptions{ServerName: "db.example.test", Conf: []string{
		"require_secure_transport=ON", "local_infile=OFF", "secure_file_priv=/tmp", "tls_version=TLSv1.2,TLSv1.3", "loose-plugin_load_add=auth_ed25519",
	}})
	password, rotation := `IDENTIFIED VIA ed25519 USING PASSWORD('`+rootPassword+`')`, []string{`ALTER USER '{{username}}'@'127.0.0.1' IDENTIFIED VIA ed25519 USING PASSWORD('{{password}}') REQUIRE SSL`}
	others := `DELETE FROM mysql.global_priv WHERE User = 'root' AND Host <> 'localhost'; FLUSH PRIVILEGES`
	if server.MySQL {
		password, rotation, others = `IDENTIFIED BY '`+rootPassword+`'`, nil, `DROP USER 'root'@'%'`
	}
	server.Exec("", others+`; CREATE DATABASE shop;
CREATE USER 'dbops_vault'@'127.0.0.1' `+password+` REQUIRE SSL;
GRANT CREATE USER, PROCESS, `+server.ConnectionAdmin()+`, SHOW DATABASES ON *.* TO 'dbops_vault'@'127.0.0.1';
GRANT SELECT ON shop.* TO 'dbops_vault'@'127.0.0.1' WITH GRANT OPTION`)
	m := newMount(t, &logical.InmemStorage{})
	m.must(logical.CreateOperation, "config/good", map[string]any{
		"plugin_name": mysqlPluginName, "connection_url": server.ConnectionURL(""), "username": "dbops_vault", "password": rootPassword,
		"tls_ca": string(server.Certificate.CA), "user_host": "127.0.0.1", "root_rotation_statements": rotation,
	})
	m.classify("good")
	m.must(logical.UpdateOperation, "rotate-root/good", nil)

	m.foundOnly("good", []planted{{"not_checked", "accounts (needs SELECT ON mysql.user)"}})

	server.Exec("", `GRANT SELECT ON mysql.user TO 'dbops_vault'@'127.0.0.1'`)
	require.Equal(t, 100, m.foundOnly("good", nil).Score)
}

// 9 weaknesses planted on two Redis servers are named. No server of the test is
// open to the network.
func TestPosture_WeakRedis(t *testing.T) {
	t.Parallel()
	exposed := testenv.Redis(t, testenv.RedisOptions{Conf: []string{"bind 0.0.0.0", "protected-mode no"}})
	exposed.Command("ACL", "SETUSER", "worker", "on", "nopass", "-@all", "+get")
	exposed.Command("ACL", "SETUSER", "ops", "on", ">planted-password", "+@all", "-shutdown")
	open := testenv.Redis(t, testenv.RedisOptions{})
	open.Command("ACL", "SETUSER", "default", "nopass")
	m := newMount(t, &logical.InmemStorage{})
	m.must(logical.CreateOperation, "config/weak", redisConfig(exposed, nil))
	m.must(logical.CreateOperation, "config/open", redisConfig(open, nil))

	m.foundOnly("weak", []planted{
		{"tls_off", ""},
		{"root_never_rotated", ""},
		{"root_excess_rights", "+@all"},
		{"redis_default_on", ""},
		{"redis_dangerous_default", "flushall"},
		{"redis_nopass", "worker"},
		{"redis_dangerous_users", "ops (acl|setuser, config|set"},
		{"redis_protected_mode", "0.0.0.0"},
		{"redis_plaintext_port", ""},
	})
	found(t, m.readPosture("posture/open"), []planted{{"redis_default_open", "no password"}})
}

// A hardened Redis server has no finding, with README's user.
func TestPosture_HardenedRedis(t *testing.T) {
	t.Parallel()
	r := testenv.Redis(t, testenv.RedisOptions{TLS: true, Users: testenv.RedisUsersInACLFile})
	rule := strings.TrimSpace(readmeBlock(t, "redis login: run by a test"))
	r.Command(strings.Fields(strings.Replace(rule, ">…", ">"+rootPassword, 1))...)
	r.Command("ACL", "SETUSER", "app", "on", "#"+strings.Repeat("0", 64), "~app:*", "-@all", "+@read", "+@write", "-@dangerous")
	r.Command("ACL", "SETUSER", "default", "off")
	m := newMount(t, &logical.InmemStorage{})
	m.must(logical.CreateOperation, "config/good", redisConfig(r, map[string]any{
		"username": "vault", "password": rootPassword, "tls": true, "ca_cert": string(r.Certificate.CA),
	}))
	m.classify("good")
	m.must(logical.UpdateOperation, "rotate-root/good", nil)
	require.Equal(t, 100, m.foundOnly("good", nil).Score)
}

// A server that never answers is a finding within the time limit, and delays the
// findings of no other; what was seen is kept for a while and says how old it is.
func TestPosture_DeadServer(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, listener.Close()) })
	m := newMount(t, &logical.InmemStorage{})
	for _, name := range []string{"dead-1", "dead-2", "dead-3"} {
		m.must(logical.CreateOperation, "config/"+name, map[string]any{
			"plugin_name": postgresPluginName, "connection_url": "postgresql://{{username}}:{{password}}@" + listener.Addr().String() + "/x",
			"username": "u", "password": "planted", "verify_connection": false,
		})
	}
	r := testenv.Redis(t, testenv.RedisOptions{})
	m.must(logical.CreateOperation, "config/alive", redisConfig(r, nil))

	began := time.Now()
	answer := m.readPosture("posture")
	require.Less(t, time.Since(began), 3*lookLimit*race.Slowdown, "as if one were asked after the other")
	var unreachable, open int
	for _, f := range answer.Findings {
		switch {
		case f.ID == "server_unreachable":
			unreachable++
			require.Contains(t, f.Seen, "it did not answer in time")
		case f.ID == "redis_default_on" && f.Subject.Name == "alive":
			open++
		}
	}
	require.Equal(t, 3, unreachable, "%+v", answer.Findings)
	require.Equal(t, 1, open)

	m.clock.advance(20 * time.Second)
	began = time.Now()
	response := m.must(logical.ReadOperation, "posture", nil)
	require.Less(t, time.Since(began), lookLimit*race.Slowdown, "nobody is asked again so soon")
	for _, look := range decode[wire.Posture](t, response.Data).Looks {
		require.GreaterOrEqual(t, look.AgeSeconds, 20)
		require.Less(t, look.AgeSeconds, 30)
	}
	require.Len(t, decode[wire.Posture](t, response.Data).Looks, 4)
}
