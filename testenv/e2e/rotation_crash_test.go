package e2e

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// Passwords before the first rotation.
const (
	rotatedRoot = "root-before"
	rotatedUser = "user-before"
)

// rotationPoints are where the plugin is killed: between any two steps of a
// rotation, before the first and after the last.
func rotationPoints() []string { return []string{"begun", "intention", "changed", "stored", "removed"} }

// rotated is a connection whose credentials are rotated under kills.
type rotated struct {
	t    *testing.T
	v    *testenv.VaultServer
	name string
	// login tries a password at the server.
	login func(ctx context.Context, username, password string) error
	// user makes a login with rotatedUser at the server.
	user func(name string)
	// fault is the file that the plugin dies by.
	fault string
	// raw is where the mount's storage is seen.
	raw string
}

// newRotated configures a connection, and a role for leased logins on it.
func newRotated(t *testing.T, v *testenv.VaultServer, name string, config map[string]any, creation string) *rotated {
	t.Helper()
	mount, err := v.Client.Logical().Read("sys/mounts/" + v.Mount)
	require.NoError(t, err)
	r := &rotated{t: t, v: v, name: name, fault: v.PluginFile(".fault"), raw: fmt.Sprintf("sys/raw/logical/%s/rotation", mount.Data["uuid"])}
	config["username"], config["password"], config["allowed_roles"] = "dbops_root", rotatedRoot, "*"
	r.write("config/"+name, config)
	r.write("roles/leased-"+name, map[string]any{"db_name": name, "creation_statements": creation, "default_ttl": "10m"})
	return r
}

func (r *rotated) write(path string, data map[string]any) {
	r.t.Helper()
	_, err := r.v.Client.Logical().Write(r.v.Mount+"/"+path, data)
	require.NoError(r.t, err, path)
}

// killed makes a request during which the plugin is killed at a point. It may
// succeed nevertheless: where Vault sees the death at once it starts the plugin
// again and repeats the request by itself.
func (r *rotated) killed(kind, point, path string, data map[string]any) {
	r.t.Helper()
	pid := r.v.PluginPID()
	require.NoError(r.t, os.WriteFile(r.fault, []byte(kind+":"+point), 0o600))
	_, failed := r.v.Client.Logical().Write(r.v.Mount+"/"+path, data)
	_, err := os.Stat(r.fault)
	require.ErrorIs(r.t, err, fs.ErrNotExist, "%s was not reached: %v", point, failed)
	// The first request after the death starts the next process.
	testenv.Await(r.t, "another plugin process", time.Minute, func() error {
		if _, err := r.v.Client.Logical().Read(r.v.Mount + "/info"); err != nil {
			return err
		}
		if r.v.PluginPID() == pid {
			return errors.New("it is the old one")
		}
		return nil
	})
}

// recovered waits, for a minute at most, until nothing of a rotation is left,
// and checks that the password answered for a static role logs in and that the
// connection's own user still makes logins that do. A role that was being made may
// not be there; then its login keeps the password it had.
func (r *rotated) recovered(role, username string, mayMiss bool) {
	r.t.Helper()
	began := time.Now()
	testenv.Await(r.t, "the rotation to be completed", time.Minute, func() error {
		for _, kind := range []string{"role", "own"} {
			left, err := r.v.Client.Logical().List(r.raw + "/" + kind)
			if err != nil {
				return err
			}
			if left != nil && left.Data["keys"] != nil {
				return fmt.Errorf("left of rotations: %s %v", kind, left.Data["keys"])
			}
		}
		return nil
	})
	password := rotatedUser
	answer, err := r.v.Client.Logical().Read(r.v.Mount + "/static-creds/" + role)
	if !mayMiss || err == nil {
		require.NoError(r.t, err)
		require.Equal(r.t, username, answer.Data["username"])
		password = fmt.Sprint(answer.Data["password"])
		require.NotEqual(r.t, rotatedUser, password)
	}
	require.NoError(r.t, r.login(r.t.Context(), username, password), "the password answered for %q", username)
	leased, err := r.v.Client.Logical().Read(r.v.Mount + "/creds/leased-" + r.name)
	require.NoError(r.t, err, "the root user's password is lost")
	require.NoError(r.t, r.login(r.t.Context(), fmt.Sprint(leased.Data["username"]), fmt.Sprint(leased.Data["password"])))
	require.Less(r.t, time.Since(began), time.Minute)
}

// kill kills the plugin at each point of a rotation of a static role and of the
// connection's own user.
func (r *rotated) kill() {
	role, username := "static-"+r.name, "svc"
	r.user(username)
	r.write("static-roles/"+role, map[string]any{"db_name": r.name, "username": username, "rotation_period": "24h"})
	for kind, path := range map[string]string{"static": "rotate-role/" + role, "root": "rotate-root/" + r.name} {
		for _, point := range rotationPoints() {
			r.t.Run(kind+" "+point, func(t *testing.T) {
				each := *r
				each.t = t
				each.killed(kind, point, path, nil)
				each.recovered(role, username, false)
				// And it goes on.
				each.write(path, nil)
				each.recovered(role, username, false)
			})
		}
	}
}

// Whatever step of a rotation the plugin dies at, by SIGKILL, under a real Vault:
// after its restart the password that Vault answers logs in, the connection's own
// user works, and nothing of the rotation is left.
func TestRotation_PluginKilledAtEachStep(t *testing.T) {
	t.Parallel()
	v := testenv.Vault(t, testenv.VaultOptions{
		Raft: true, SkipAudit: true, PluginBinary: testenv.FaultPlugin(t), Config: "raw_storage_endpoint = true",
	})
	t.Run("postgres", func(t *testing.T) { killPostgres(t, v) })
	t.Run("mariadb", func(t *testing.T) { killMariaDB(t, v) })
	t.Run("redis", func(t *testing.T) { killRedis(t, v) })
}

func killPostgres(t *testing.T, v *testenv.VaultServer) {
	p := testenv.Postgres(t, testenv.PostgresOptions{})
	p.Exec("postgres", `CREATE ROLE dbops_root LOGIN CREATEROLE PASSWORD '`+rotatedRoot+`'`)
	r := newRotated(t, v, "pg", map[string]any{
		"plugin_name": "postgresql-database-plugin", "connection_url": p.ConnectionURL("postgres"),
	}, `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'`)
	r.user = func(name string) { p.Exec("postgres", `CREATE ROLE "`+name+`" LOGIN PASSWORD '`+rotatedUser+`'`) }
	r.login = func(ctx context.Context, username, password string) error {
		conn, err := pgx.Connect(ctx, p.DSNFor(username, password, "postgres"))
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	}
	r.kill()

	// A login that changes its own password.
	r.user("self")
	r.write("static-roles/self", map[string]any{"db_name": "pg", "username": "self", "rotation_period": "24h", "self_managed_password": rotatedUser})
	for _, point := range rotationPoints() {
		t.Run("self-managed "+point, func(t *testing.T) {
			each := *r
			each.t = t
			each.killed("static", point, "rotate-role/self", nil)
			each.recovered("self", "self", false)
		})
	}
	// The rotation with which a role is made.
	for _, point := range rotationPoints() {
		t.Run("create "+point, func(t *testing.T) {
			each := *r
			each.t = t
			role, username := "new-"+point, "new-"+point
			each.user(username)
			each.killed("static", point, "static-roles/"+role, map[string]any{"db_name": "pg", "username": username, "rotation_period": "24h"})
			each.recovered(role, username, point == "begun") // nothing was stored, and the caller was told
		})
	}
}

func killMariaDB(t *testing.T, v *testenv.VaultServer) {
	m := testenv.MariaDB(t, testenv.MariaDBOptions{})
	m.Exec("", `CREATE DATABASE shop; CREATE USER 'dbops_root'@'%' IDENTIFIED BY '`+rotatedRoot+`';
GRANT CREATE USER, PROCESS, `+m.ConnectionAdmin()+`, SELECT ON *.* TO 'dbops_root'@'%' WITH GRANT OPTION`)
	r := newRotated(t, v, "maria", map[string]any{
		"plugin_name": "mysql-database-plugin", "connection_url": m.ConnectionURL(""),
	}, `CREATE USER '{{name}}'@'%' IDENTIFIED BY '{{password}}'`)
	r.user = func(name string) { m.Exec("", `CREATE USER '`+name+`'@'%' IDENTIFIED BY '`+rotatedUser+`'`) }
	r.login = func(ctx context.Context, username, password string) error {
		config := mysql.NewConfig()
		config.User, config.Passwd, config.Net, config.Addr, config.Logger = username, password, "tcp", m.Address(), &mysql.NopLogger{}
		connector, err := mysql.NewConnector(config)
		if err != nil {
			return err
		}
		db := sql.OpenDB(connector)
		return errors.Join(db.PingContext(ctx), db.Close())
	}
	r.kill()
}

func killRedis(t *testing.T, v *testenv.VaultServer) {
	server := testenv.Redis(t, testenv.RedisOptions{Users: testenv.RedisUsersInACLFile})
	server.Command("ACL", "SETUSER", "dbops_root", "on", ">"+rotatedRoot, "~*", "&*", "+@all")
	server.Command("ACL", "SAVE")
	r := newRotated(t, v, "redis", map[string]any{
		"plugin_name": "redis-database-plugin", "host": server.Host, "port": server.Port,
	}, `["~*", "+@read", "+ping"]`)
	r.user = func(name string) {
		server.Command("ACL", "SETUSER", name, "on", ">"+rotatedUser, "~*", "+@read", "+ping")
	}
	r.login = func(ctx context.Context, username, password string) error {
		client := redis.NewClient(&redis.Options{Addr: server.Address(), Username: username, Password: password})
		return errors.Join(client.Ping(ctx).Err(), client.Close())
	}
	r.kill()
}
