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
	// built asks our engine whether it has what the rows need; it has it when all
	// of these succeed. The rows are compared only then, and minimum says how many
	// must be at this commit, so a feature that gets lost is not passed over.
	built   []row
	minimum int
	rows    []row
}

// table is all that is asked, in this order: rows build on those before them.
func table(d *databases) []group {
	mysql, redis := hasMySQL(d), hasRedis(d)
	rotation := []row{help("static-roles/x"), help("rotate-root/x"), help("reset/x"), help("reload/x")}
	keys := hasCredential("rsa_private_key", fields{})
	authority := certificateConfig()
	certificates := hasCredential("client_certificate", authority)
	return []group{
		{name: "config", minimum: 130, rows: configRows(d)},
		{name: "roles", minimum: 77, rows: roleRows()},
		{name: "creds", minimum: 106, rows: credsRows(d)},
		{name: "reset", minimum: 14, built: []row{help("reset/x"), help("reload/x")}, rows: resetRows()},
		{name: "static roles", minimum: 87, built: []row{help("static-roles/x"), help("rotate-role/x")}, rows: staticRows(d)},
		{name: "rotation of root", minimum: 15, built: []row{help("rotate-root/x")}, rows: rotationRows(d)},
		{name: "mysql", minimum: 44, built: []row{mysql}, rows: mysqlRows(d)},
		{name: "mysql rotation", minimum: 9, built: append([]row{mysql}, rotation...), rows: mysqlRotationRows()},
		{name: "redis", minimum: 32, built: []row{redis}, rows: redisRows(d)},
		{name: "redis rotation", minimum: 9, built: append([]row{redis}, rotation...), rows: redisRotationRows()},
		{name: "keys", minimum: 16, built: []row{keys}, rows: keyRows()},
		{name: "certificates", minimum: 15, built: []row{certificates}, rows: certificateRows(authority)},
	}
}

// help asks whether there is a path: its help text is there or it is not.
func help(path string) row {
	return row{name: "is there " + path, method: http.MethodGet, path: path + "?help=1"}
}

// hasProduct asks whether there is a database product.
func hasProduct(plugin string, details fields) row {
	return put("is there "+plugin, "config/built", changed(details, fields{"plugin_name": plugin, "verify_connection": false}))
}

func hasMySQL(d *databases) row {
	return hasProduct("mysql-database-plugin", fields{
		"connection_url": d.mariadb.ConnectionURL("mysql"), "username": "u", "password": "p",
	})
}

func hasRedis(d *databases) row {
	return hasProduct("redis-database-plugin", fields{"host": d.redis.Host, "port": d.redis.Port, "username": "u", "password": "p"})
}

// hasCredential asks whether there is a credential type.
func hasCredential(kind string, config fields) row {
	return put("is there "+kind, "roles/built", fields{"db_name": "pg", "credential_type": kind, "credential_config": config})
}

// has reports whether the engine has all that is asked for, and takes away what
// was made to find out.
func (e *engine) has(t *testing.T, built []row) bool {
	t.Helper()
	all := true
	for _, r := range built {
		all = all && e.ask(t, r).status < http.StatusBadRequest
		if r.method == http.MethodPut {
			e.ask(t, del(r.name, r.path))
		}
	}
	return all
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

	judge := newJudge(t, allowed())
	total := 0
	for _, g := range table(d) {
		if !ours.has(t, g.built) {
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
