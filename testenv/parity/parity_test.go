package parity_test

import (
	"net/http"
	"sync"
	"testing"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// group is a part of the table about one feature.
type group struct {
	name string
	// built asks our engine whether it has the feature; nil: it has. The rows of a
	// group are compared only then, and minimum says how many must be at this
	// commit, so a feature that gets lost is not passed over.
	built   *row
	minimum int
	rows    []row
}

// table is all that is asked, in this order: rows build on those before them.
func table(d *databases) []group {
	return []group{
		{name: "config", minimum: 115, rows: configRows(d)},
		{name: "roles", minimum: 77, rows: roleRows()},
		{name: "creds", minimum: 94, rows: credsRows(d)},
		{name: "reset", built: help("reset/x"), rows: resetRows()},
		{name: "static roles", built: help("static-roles/x"), rows: staticRows()},
		{name: "rotation", built: help("rotate-root/x"), rows: rotationRows(d)},
		{name: "mysql", built: product("mysql-database-plugin", fields{
			"connection_url": d.mariadb.ConnectionURL("mysql"), "username": "u", "password": "p",
		}), rows: mysqlRows(d)},
		{name: "redis", built: product("redis-database-plugin", fields{
			"host": d.redis.Host, "port": d.redis.Port, "username": "u", "password": "p",
		}), rows: redisRows(d)},
		{name: "keys and certificates", built: &row{
			name: "is there rsa_private_key", method: http.MethodPut, path: "roles/built",
			body: fields{"db_name": "pg", "credential_type": "rsa_private_key"},
		}, rows: keyRows()},
	}
}

// help asks whether there is a path: its help text is there or it is not.
func help(path string) *row {
	return &row{name: "is there " + path, method: http.MethodGet, path: path + "?help=1"}
}

// product asks whether there is a database product.
func product(plugin string, details fields) *row {
	details["plugin_name"], details["verify_connection"] = plugin, false
	return &row{name: "is there " + plugin, method: http.MethodPut, path: "config/built", body: details}
}

// databases are the servers both engines work on.
type databases struct {
	postgres *testenv.PostgresServer
	mariadb  *testenv.MariaDBServer
	redis    *testenv.RedisServer
}

// Each engine has a login of its own at each server, and static users of its own.
const rootPassword = "root-of-parity-only-in-tests"

func startDatabases(t *testing.T) *databases {
	t.Helper()
	var d databases
	var starting sync.WaitGroup
	starting.Go(func() { d.postgres = testenv.Postgres(t, testenv.PostgresOptions{}) })
	starting.Go(func() { d.mariadb = testenv.MariaDB(t, testenv.MariaDBOptions{}) })
	starting.Go(func() { d.redis = testenv.Redis(t, testenv.RedisOptions{}) })
	starting.Wait()
	for _, engine := range []string{builtinMount, ourMount} {
		d.postgres.Exec("postgres",
			"CREATE ROLE root_"+engine+" LOGIN SUPERUSER PASSWORD '"+rootPassword+"'",
			"CREATE ROLE static_"+engine+" LOGIN PASSWORD 'first'",
			"CREATE ROLE scheduled_"+engine+" LOGIN PASSWORD 'first'")
		d.mariadb.Exec("", "CREATE USER 'root_"+engine+"'@'%' IDENTIFIED BY '"+rootPassword+"'; "+
			"GRANT ALL ON *.* TO 'root_"+engine+"'@'%' WITH GRANT OPTION; "+
			"CREATE USER 'static_"+engine+"'@'%' IDENTIFIED BY 'first'")
		d.redis.Command("ACL", "SETUSER", "root_"+engine, "on", ">"+rootPassword, "~*", "&*", "+@all")
		d.redis.Command("ACL", "SETUSER", "static_"+engine, "on", ">first", "~*", "+@read")
	}
	return &d
}

// Mounts of the two, also their names in requests.
const (
	builtinMount = "database"
	ourMount     = "dbops"
)

func startVault(t *testing.T) *testenv.VaultServer {
	t.Helper()
	v := testenv.Vault(t, testenv.VaultOptions{Mount: ourMount})
	require.NoError(t, v.Client.Sys().Mount(builtinMount, &api.MountInput{Type: "database"}))
	preset, longest := "30m", "4h"
	for _, mount := range []string{builtinMount, ourMount} {
		require.NoError(t, v.Client.Sys().TuneMountAllowNil(mount, api.TuneMountConfigInput{
			DefaultLeaseTTL: &preset, MaxLeaseTTL: &longest,
		}))
	}
	for name, policy := range map[string]string{
		"long":  `length = 40  rule "charset" { charset = "abcdefghijklmnopqrstuvwxyz" }`,
		"short": `length = 8  rule "charset" { charset = "abcdefghijklmnopqrstuvwxyz" }`,
	} {
		_, err := v.Client.Logical().WriteWithContext(t.Context(), "sys/policies/password/"+name, map[string]any{"policy": policy})
		require.NoError(t, err)
	}
	return v
}

// Whoever uses Vault's database engine can send us the same requests and gets the
// same answers, but for what stands in [allowed].
func TestParity(t *testing.T) {
	t.Parallel()
	testenv.Require(t, testenv.PartVault, testenv.PartDocker, testenv.PartPostgres, testenv.PartMariaDB, testenv.PartRedis)
	d := startDatabases(t)
	v := startVault(t)
	theirs := &engine{name: builtinMount, vault: v, leases: map[string]string{}}
	ours := &engine{name: ourMount, vault: v, leases: map[string]string{}}

	judge := newJudge(t)
	total := 0
	for _, g := range table(d) {
		if g.built != nil && ours.ask(t, *g.built).status >= http.StatusBadRequest {
			judge.leaveOut(g)
		} else {
			for _, r := range g.rows {
				judge.compare(r, theirs.ask(t, r), ours.ask(t, r))
			}
			require.GreaterOrEqual(t, len(g.rows), g.minimum, "rows about %s", g.name)
			t.Logf("%-22s %3d rows compared", g.name, len(g.rows))
			total += len(g.rows)
		}
	}
	judge.finish()
	require.GreaterOrEqual(t, total, 150, "rows compared")
	t.Run("Terraform", func(t *testing.T) { terraform(t, ours, d) })
}
