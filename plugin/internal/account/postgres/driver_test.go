package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account/accounttest"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// createLogin is the simplest useful creation statement.
const createLogin = `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'`

// rootRole makes the user README tells operators to make: no superuser.
func rootRole(p *testenv.PostgresServer) {
	p.Exec("postgres",
		`CREATE ROLE dbops_owner NOLOGIN CREATEDB`,
		`CREATE ROLE dbops_root LOGIN CREATEROLE PASSWORD 'root-password'`,
		`GRANT dbops_owner TO dbops_root WITH ADMIN OPTION`,
	)
}

func open(t *testing.T, p *testenv.PostgresServer, config Config) *Driver {
	t.Helper()
	driver, err := New(config)
	require.NoError(t, err)
	t.Cleanup(driver.Close)
	return driver
}

func rootConfig(p *testenv.PostgresServer) Config {
	return Config{URL: p.ConnectionURL("postgres"), Username: "dbops_root", Password: wire.NewSecret("root-password")}
}

type session struct{ conn *pgx.Conn }

func (s session) Alive(ctx context.Context) bool { return s.conn.Ping(ctx) == nil }
func (s session) Close()                         { _ = s.conn.Close(context.Background()) }

func TestDriver_Conformance(t *testing.T) {
	t.Parallel()
	for name, authentication := range map[string]PasswordAuthentication{"scram": SCRAM, "password": Plain} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := testenv.Postgres(t, testenv.PostgresOptions{})
			rootRole(p)
			accounttest.Run(t, func(t *testing.T) accounttest.Server {
				config := rootConfig(p)
				config.PasswordAuthentication = authentication
				dead := config
				dead.URL = "postgresql://{{username}}:{{password}}@" + testenv.BlackHole(t).String() + "/postgres"
				return accounttest.Server{
					Driver:      account.Sanitize(open(t, p, config), config.Password),
					Create:      []string{createLogin},
					Bare:        []string{`CREATE ROLE {{name}} LOGIN PASSWORD {{password}} VALID UNTIL {{expiration}}`},
					Fail:        `GRANT no_such_role TO "{{name}}"`,
					Unreachable: account.Sanitize(open(t, p, dead), config.Password),
					Login: func(ctx context.Context, username, password string) (accounttest.Session, error) {
						conn := p.ConnConfig("postgres")
						conn.User, conn.Password = username, password
						opened, err := pgx.ConnectConfig(ctx, conn)
						if err != nil {
							return nil, err
						}
						return session{opened}, nil
					},
					Exists: func(t *testing.T, username string) bool {
						t.Helper()
						return p.Value("postgres", `SELECT count(*) FROM pg_roles WHERE rolname = $1`, username) != "0"
					},
				}
			})
		})
	}
}

// The server must take our verifier as one; the wrong password must be refused.
func TestDriver_SCRAMVerifierIsWhatTheServerStores(t *testing.T) {
	t.Parallel()
	p := testenv.Postgres(t, testenv.PostgresOptions{})
	rootRole(p)
	driver := open(t, p, rootConfig(p))
	require.NoError(t, driver.Create(t.Context(), account.CreateRequest{
		Username: "scram", Password: wire.NewSecret("right"), Expiration: time.Now().Add(time.Hour), Statements: []string{createLogin},
	}))
	require.Regexp(t, `^SCRAM-SHA-256\$4096:`, p.Value("postgres", `SELECT rolpassword FROM pg_authid WHERE rolname = 'scram'`))
	conn := p.ConnConfig("postgres")
	conn.User, conn.Password = "scram", "wrong"
	_, err := pgx.ConnectConfig(t.Context(), conn)
	require.Error(t, err)
}

// A login whose name is as long as names can be is not found by a longer one, of
// which the server compares no more than that.
func TestDriver_FindsNoLongerName(t *testing.T) {
	t.Parallel()
	p := testenv.Postgres(t, testenv.PostgresOptions{})
	rootRole(p)
	driver := open(t, p, rootConfig(p))
	for _, name := range []string{strings.Repeat("n", 63), strings.Repeat("ä", 31)} {
		require.NoError(t, driver.Create(t.Context(), account.CreateRequest{
			Username: name, Password: wire.NewSecret("pw"), Expiration: time.Now().Add(time.Hour), Statements: []string{createLogin},
		}))
		_, found, err := driver.Find(t.Context(), name)
		require.NoError(t, err)
		require.True(t, found)
		for _, longer := range []string{name + "n", name + "ä", name + strings.Repeat("n", 100)} {
			_, found, err := driver.Find(t.Context(), longer)
			require.NoError(t, err)
			require.False(t, found, longer)
		}
	}
	// One that can neither log in nor has a note is none.
	_, found, err := driver.Find(t.Context(), "dbops_owner")
	require.NoError(t, err)
	require.False(t, found)
}

// One session makes login after login. When it is told to leave nobody is in the
// way of a new name for the database, a superuser's session in use not longer than
// it takes.
func TestDriver_KeepsItsSessionUntilItLeaves(t *testing.T) {
	t.Parallel()
	p := testenv.Postgres(t, testenv.PostgresOptions{})
	p.CreateDatabase("before")
	driver := open(t, p, Config{URL: p.ConnectionURL("before"), Username: p.User, Password: wire.NewSecret(p.Password)})
	ours := func() string {
		return p.Value("postgres", `SELECT coalesce(string_agg(pid::text, ' '), '') FROM pg_stat_activity WHERE application_name = 'dbops'`)
	}
	create := func(name string, more ...string) error {
		return driver.Create(t.Context(), account.CreateRequest{
			Username: name, Password: wire.NewSecret("pw"), Expiration: time.Now().Add(time.Hour), Statements: append([]string{createLogin}, more...),
		})
	}
	require.NoError(t, create("first"))
	session := ours()
	require.NotEmpty(t, session)
	time.Sleep(2 * time.Second) // a pause between two requests
	require.NoError(t, create("second"))
	require.Equal(t, session, ours())

	// The third waits in the middle until the test lets it go on.
	holding := p.Connect("before")
	_, err := holding.Exec(t.Context(), `SELECT pg_advisory_lock(1)`)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- create("third", `SELECT pg_advisory_xact_lock(1)`) }()
	testenv.Await(t, "the session to be in use", 30*time.Second, func() error {
		var waiting int
		err := holding.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dbops' AND wait_event = 'advisory'`).Scan(&waiting)
		if err == nil && waiting != 1 {
			err = fmt.Errorf("%d sessions wait", waiting)
		}
		return err
	})
	driver.Leave()
	require.NoError(t, holding.Close(t.Context()))
	p.Exec("postgres", `ALTER DATABASE before RENAME TO after`)
	require.NoError(t, <-done)
	require.Empty(t, ours())
	p.Exec("postgres", `ALTER DATABASE after RENAME TO before`)
	require.NoError(t, create("fourth"))
}

// What a login owns anywhere on the server goes to the role it belongs to; grants
// it got vanish; the login is dropped.
func TestDriver_EndHandsOverInEveryDatabase(t *testing.T) {
	t.Parallel()
	p := testenv.Postgres(t, testenv.PostgresOptions{})
	rootRole(p)
	p.CreateDatabase("first")
	p.CreateDatabase("second")
	for _, database := range []string{"first", "second"} {
		p.Exec(database, `GRANT CREATE ON SCHEMA public TO PUBLIC`, `CREATE TABLE granted (n int)`, `ALTER TABLE granted OWNER TO dbops_owner`)
	}
	driver := open(t, p, rootConfig(p))
	require.NoError(t, driver.Create(t.Context(), account.CreateRequest{
		Username: "owner-of-things", Password: wire.NewSecret("pw"), Expiration: time.Now().Add(time.Hour),
		Statements: []string{createLogin + ` IN ROLE dbops_owner`},
	}))
	for _, database := range []string{"first", "second"} {
		p.Exec(database, `SET ROLE dbops_owner`, `GRANT SELECT ON granted TO "owner-of-things"`, `RESET ROLE`)
		conn := p.ConnConfig(database)
		conn.User, conn.Password = "owner-of-things", "pw"
		opened, err := pgx.ConnectConfig(t.Context(), conn)
		require.NoError(t, err)
		_, err = opened.Exec(t.Context(), `CREATE TABLE public.mine AS SELECT 1 AS n`)
		require.NoError(t, err)
		defer func() { _ = opened.Close(context.Background()) }()
	}
	require.NoError(t, driver.End(t.Context(), account.EndRequest{Username: "owner-of-things"}))
	require.Equal(t, "0", p.Value("postgres", `SELECT count(*) FROM pg_roles WHERE rolname = 'owner-of-things'`))
	for _, database := range []string{"first", "second"} {
		require.Equal(t, "dbops_owner", p.Value(database, `SELECT tableowner FROM pg_tables WHERE tablename = 'mine'`))
	}
}

// A grant that our user cannot take back keeps the role from being dropped. The
// login is shut out all the same, and the error names the way out.
func TestDriver_EndBlockedByForeignGrant(t *testing.T) {
	t.Parallel()
	p := testenv.Postgres(t, testenv.PostgresOptions{})
	rootRole(p)
	p.Exec("postgres", `CREATE TABLE foreign_table (n int)`)
	driver := open(t, p, rootConfig(p))
	require.NoError(t, driver.Create(t.Context(), account.CreateRequest{
		Username: "blocked", Password: wire.NewSecret("pw"), Expiration: time.Now().Add(time.Hour), Statements: []string{createLogin},
	}))
	p.Exec("postgres", `GRANT SELECT ON foreign_table TO blocked`)
	err := driver.End(t.Context(), account.EndRequest{Username: "blocked"})
	var e *account.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, wire.CodePrivilege, e.Code)
	require.Equal(t, "false", p.Value("postgres", `SELECT rolcanlogin::text FROM pg_roles WHERE rolname = 'blocked'`))
	p.Exec("postgres", `REVOKE SELECT ON foreign_table FROM blocked`)
	require.NoError(t, driver.End(t.Context(), account.EndRequest{Username: "blocked"}))
}

// Custom revocation statements stand for the hand-over and the drop, but a login
// is shut out and its sessions are ended in any case.
func TestDriver_EndWithCustomStatements(t *testing.T) {
	t.Parallel()
	p := testenv.Postgres(t, testenv.PostgresOptions{})
	rootRole(p)
	driver := open(t, p, rootConfig(p))
	create := func(name string) {
		require.NoError(t, driver.Create(t.Context(), account.CreateRequest{
			Username: name, Password: wire.NewSecret("pw"), Expiration: time.Now().Add(time.Hour), Statements: []string{createLogin},
		}))
	}
	create("kept")
	require.NoError(t, driver.End(t.Context(), account.EndRequest{
		Username: "kept", Statements: []string{`COMMENT ON ROLE "{{name}}" IS 'kept for the records'`},
	}))
	require.Equal(t, "false", p.Value("postgres", `SELECT rolcanlogin::text FROM pg_roles WHERE rolname = 'kept'`))

	create("stuck")
	err := driver.End(t.Context(), account.EndRequest{Username: "stuck", Statements: []string{`DROP ROLE no_such_role`}})
	require.Error(t, err)
	require.Equal(t, "false", p.Value("postgres", `SELECT rolcanlogin::text FROM pg_roles WHERE rolname = 'stuck'`))
}

// Two that change one catalog row at once make PostgreSQL fail with "tuple
// concurrently updated"; callers never see it, and the server not often: creating and
// ending logins with grants on one table goes one by one then.
func TestDriver_ConcurrentGrantsOnOneTable(t *testing.T) {
	t.Parallel()
	p := testenv.Postgres(t, testenv.PostgresOptions{})
	p.CreateDatabase("shop")
	p.Exec("shop", `CREATE TABLE orders (n int)`)
	config := Config{URL: p.ConnectionURL("shop"), Username: p.User, Password: wire.NewSecret(p.Password), MaxSessions: 16}
	driver := open(t, p, config)
	met := 0
	all := func(do func(username string) error) {
		t.Helper()
		errs := make(chan error, 64)
		for i := range cap(errs) {
			go func() { errs <- do("grantee-" + string(rune('a'+i%26)) + string(rune('a'+i/26))) }()
		}
		var failed error
		for range cap(errs) {
			failed = errors.Join(failed, <-errs)
		}
		require.NoError(t, failed)
		before := met
		met = strings.Count(p.Logs(), "tuple concurrently updated")
		require.LessOrEqual(t, met-before, 2*16, "those under way when the first two met, and who had its turn meanwhile")
	}
	all(func(username string) error {
		return driver.Create(t.Context(), account.CreateRequest{
			Username: username, Password: wire.NewSecret("pw"), Expiration: time.Now().Add(time.Hour),
			Statements: []string{createLogin, `GRANT SELECT ON orders TO "{{name}}"`},
		})
	})
	require.Positive(t, met, "nobody has met")
	all(func(username string) error { return driver.End(t.Context(), account.EndRequest{Username: username}) })
	require.Equal(t, "0", p.Value("shop", `SELECT count(*)::text FROM pg_roles WHERE rolname LIKE 'grantee-%'`))
}

// Logins that are granted many tables are made while others of their kind end, in
// another order of the tables: none fails, and but for the first that meet none waits
// until PostgreSQL finds a deadlock.
func TestDriver_GrantsBesideTheirEnd(t *testing.T) {
	t.Parallel()
	p := testenv.Postgres(t, testenv.PostgresOptions{})
	p.CreateDatabase("shop")
	p.Exec("shop", `DO $$ BEGIN FOR n IN 1..20 LOOP EXECUTE format('CREATE TABLE t%s (n int)', n); END LOOP; END $$`)
	driver := open(t, p, Config{URL: p.ConnectionURL("shop"), Username: p.User, Password: wire.NewSecret(p.Password), MaxSessions: 8})
	const clients, times = 16, 12
	failures := make(chan error, clients)
	for client := range clients {
		go func() {
			var failed error
			for n := range times {
				username := fmt.Sprintf("reader-%d-%d", client, n)
				failed = errors.Join(failed, driver.Create(t.Context(), account.CreateRequest{
					Username: username, Password: wire.NewSecret("pw"), Expiration: time.Now().Add(time.Hour),
					Statements: []string{createLogin, `GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{{name}}"`},
				}), driver.End(t.Context(), account.EndRequest{Username: username}))
			}
			failures <- failed
		}()
	}
	var failed error
	for range clients {
		failed = errors.Join(failed, <-failures)
	}
	require.NoError(t, failed)
	log := p.Logs()
	require.LessOrEqual(t, strings.Count(log, "deadlock detected"), 8, "of those under way when the first two met")
	require.LessOrEqual(t, strings.Count(log, "tuple concurrently updated"), 3*8)
	require.Equal(t, "0", p.Value("shop", `SELECT count(*)::text FROM pg_roles WHERE rolname LIKE 'reader-%'`))
}

// The inline CA is used whatever sslmode says, and with verify-full a wrong name
// is refused.
func TestDriver_TLSWithInlineCA(t *testing.T) {
	t.Parallel()
	p := testenv.Postgres(t, testenv.PostgresOptions{ServerName: "db.example.test", RequireTLS: true})
	ca, err := os.ReadFile(p.CAFile)
	require.NoError(t, err)
	other := testenv.Postgres(t, testenv.PostgresOptions{ServerName: "db.example.test", RequireTLS: true})
	otherCA, err := os.ReadFile(other.CAFile)
	require.NoError(t, err)

	verify := func(address, mode, ca string) (wire.ServerIdentity, error) {
		return open(t, p, Config{
			URL: "postgresql://{{username}}:{{password}}@" + address + "/postgres?sslmode=" + mode, CA: ca,
			Username: p.User, Password: wire.NewSecret(p.Password),
		}).Identity(t.Context(), "")
	}
	_, port, err := net.SplitHostPort(p.Address())
	require.NoError(t, err)
	for _, mode := range []string{"require", "verify-ca", "verify-full"} {
		identity, err := verify(p.Address(), mode, string(ca))
		require.NoError(t, err, mode)
		require.True(t, identity.TLS)
		_, err = verify(p.Address(), mode, string(otherCA))
		require.ErrorContains(t, err, "certificate", mode)
	}
	_, err = verify("localhost:"+port, "verify-ca", string(ca))
	require.NoError(t, err)
	_, err = verify("localhost:"+port, "verify-full", string(ca))
	require.ErrorContains(t, err, "another name")
}

// Wrong logins, unknown databases and plain nonsense each have a code, and none
// of the messages holds the password.
func TestDriver_ErrorsHaveCodes(t *testing.T) {
	t.Parallel()
	p := testenv.Postgres(t, testenv.PostgresOptions{})
	for name, test := range map[string]struct {
		change func(*Config)
		code   wire.Code
	}{
		"wrong password":   {func(c *Config) { c.Password = wire.NewSecret("planted-secret") }, wire.CodeLoginRefused},
		"unknown database": {func(c *Config) { c.URL = p.ConnectionURL("no_such_database") }, wire.CodeUnavailable},
		"closed port":      {func(c *Config) { c.URL = "postgresql://{{username}}:{{password}}@127.0.0.1:1/x" }, wire.CodeUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := Config{URL: p.ConnectionURL("postgres"), Username: p.User, Password: wire.NewSecret(p.Password)}
			test.change(&config)
			err := account.Sanitize(open(t, p, config), config.Password).Verify(t.Context())
			var e *account.Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, test.code, e.Code, "%v", err)
			require.NotContains(t, err.Error(), "planted")
			require.NotContains(t, err.Error(), p.Password)
		})
	}
}

// A server that takes no changes, as a standby that is not promoted yet, is one to try
// again: it says nothing about what was asked for.
func TestDriver_ReadOnlyServer(t *testing.T) {
	t.Parallel()
	p := testenv.Postgres(t, testenv.PostgresOptions{Conf: []string{"default_transaction_read_only = on"}})
	driver := open(t, p, Config{URL: p.ConnectionURL("postgres"), Username: p.User, Password: wire.NewSecret(p.Password)})
	for what, err := range map[string]error{
		"create": driver.Create(t.Context(), account.CreateRequest{Username: "u", Password: wire.NewSecret("secret"), Statements: []string{`CREATE ROLE "{{name}}" LOGIN`}}),
		"rotate": driver.Rotate(t.Context(), account.RotateRequest{Username: p.User, Password: wire.NewSecret("secret")}),
		"end":    driver.End(t.Context(), account.EndRequest{Username: p.User}),
	} {
		require.Error(t, err, what)
		require.True(t, account.Unreachable(err), "%s: %v", what, err)
		require.False(t, account.Ambiguous(err), what)
	}
	require.NoError(t, driver.Login(t.Context(), p.User, wire.NewSecret(p.Password)))
}

func TestNew_WrongFieldsAreNamed(t *testing.T) {
	t.Parallel()
	const url = "postgresql://{{username}}:{{password}}@localhost/x?sslmode=verify-full"
	for field, config := range map[string]Config{
		"connection_url":  {URL: "what is this"},
		"tls_ca":          {URL: url, CA: "no pem"},
		"tls_certificate": {URL: url, Certificate: "no pem", PrivateKey: wire.NewSecret("planted-key")},
	} {
		config.Username, config.Password = "u", wire.NewSecret("planted-secret")
		_, err := New(config)
		var wrong *account.FieldError
		require.ErrorAs(t, err, &wrong, field)
		require.Equal(t, field, wrong.Field)
		require.NotContains(t, err.Error(), "planted")
	}
	_, err := New(Config{URL: "postgresql://{{username}}:{{password}}@localhost/x?sslmode=disable", CA: "x"})
	var wrong *account.FieldError
	require.ErrorAs(t, err, &wrong)
	require.Equal(t, "connection_url", wrong.Field)
}
