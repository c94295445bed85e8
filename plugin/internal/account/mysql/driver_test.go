package mysql

import (
	"context"
	"database/sql"
	"slices"
	"testing"
	"time"

	client "github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account/accounttest"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

const createLogin = `CREATE USER '{{name}}'@'%' IDENTIFIED BY '{{password}}'; GRANT SELECT ON *.* TO '{{name}}'@'%'`

// rootUser makes the user README tells operators to make: no superuser.
func rootUser(m *testenv.MariaDBServer) {
	m.Exec("", `CREATE USER 'dbops_root'@'%' IDENTIFIED BY 'root-password';
GRANT CREATE USER, PROCESS, `+m.ConnectionAdmin()+`, SELECT ON *.* TO 'dbops_root'@'%' WITH GRANT OPTION`)
}

func open(t *testing.T, config Config) *Driver {
	t.Helper()
	driver, err := New(config)
	require.NoError(t, err)
	t.Cleanup(driver.Close)
	return driver
}

func rootConfig(m *testenv.MariaDBServer) Config {
	return Config{URL: m.ConnectionURL("mysql"), Username: "dbops_root", Password: wire.NewSecret("root-password")}
}

type userSession struct{ db *sql.DB }

func (s userSession) Alive(ctx context.Context) bool {
	// One connection that is never replaced: a killed one must show.
	_, err := s.db.ExecContext(ctx, "DO 1")
	return err == nil
}
func (s userSession) Close() { _ = s.db.Close() }

// login opens a session as a user would.
func login(ctx context.Context, m *testenv.MariaDBServer, username, password string) (accounttest.Session, error) {
	config := client.NewConfig()
	config.User, config.Passwd, config.Net, config.Addr = username, password, "tcp", m.Address()
	config.Logger = &client.NopLogger{}
	connector, err := client.NewConnector(config)
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(1)
	if err := db.PingContext(ctx); err != nil {
		return nil, err
	}
	return userSession{db}, nil
}

func exists(m *testenv.MariaDBServer, username string) bool {
	return slices.Contains(users(m), username)
}

// users lists names in hexadecimal form, which the client's output cannot mangle.
func users(m *testenv.MariaDBServer) []string {
	var names []string
	for _, line := range splitLines(m.Exec("", `SELECT HEX(User) FROM mysql.user`)) {
		names = append(names, unhex(line))
	}
	return names
}

func TestDriver_Conformance(t *testing.T) {
	t.Parallel()
	for name, parameters := range map[string]string{
		"default":                "",
		"ansi_no_backslash_mode": "?sql_mode=%27ANSI_QUOTES,NO_BACKSLASH_ESCAPES%27",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := testenv.MariaDB(t, testenv.MariaDBOptions{})
			rootUser(m)
			accounttest.Run(t, func(t *testing.T) accounttest.Server {
				config := rootConfig(m)
				config.URL += parameters
				dead := config
				dead.URL = "{{username}}:{{password}}@tcp(" + testenv.BlackHole(t).String() + ")/"
				return accounttest.Server{
					Driver:      account.Sanitize(open(t, config), config.Password),
					Create:      []string{createLogin},
					Bare:        []string{`CREATE USER {{name}}@'%' IDENTIFIED BY {{password}}`},
					Fail:        `GRANT no_such_role TO '{{name}}'@'%'`,
					Unreachable: account.Sanitize(open(t, dead), config.Password),
					Login: func(ctx context.Context, username, password string) (accounttest.Session, error) {
						return login(ctx, m, username, password)
					},
					Exists: func(t *testing.T, username string) bool {
						t.Helper()
						return exists(m, username)
					},
				}
			})
		})
	}
}

func createRequest(username string, statements ...string) account.CreateRequest {
	return account.CreateRequest{
		Username: username, Password: wire.NewSecret("pw-of-user"), Expiration: time.Now().Add(time.Hour), Statements: statements,
	}
}

func code(t *testing.T, err error) wire.Code {
	t.Helper()
	var e *account.Error
	require.ErrorAs(t, err, &e)
	return e.Code
}

// A creation that fails halfway leaves nothing; one for a name that is taken
// leaves the one who has it alone.
func TestDriver_CreateUndoesOnlyItsOwn(t *testing.T) {
	t.Parallel()
	m := testenv.MariaDB(t, testenv.MariaDBOptions{})
	rootUser(m)
	driver := open(t, rootConfig(m))
	ctx := t.Context()

	err := driver.Create(ctx, createRequest("half", `CREATE USER '{{name}}'@'%' IDENTIFIED BY '{{password}}'`, `CREATE USER '{{name}}'@'10.%' IDENTIFIED BY '{{password}}'; GRANT nothing TO nobody`))
	require.Error(t, err)
	require.False(t, account.Ambiguous(err))
	require.False(t, exists(m, "half"))

	m.Exec("", `CREATE USER 'taken'@'%' IDENTIFIED BY 'x'`)
	err = driver.Create(ctx, createRequest("taken", `CREATE USER IF NOT EXISTS '{{name}}'@'%'`, `GRANT nothing TO nobody`))
	require.Equal(t, wire.CodeConflict, code(t, err))
	require.True(t, exists(m, "taken"))

	// What cannot be created by right is said so, and a limit is kept.
	err = driver.Create(ctx, createRequest("writer", createLogin, `GRANT SUPER ON *.* TO '{{name}}'@'%'`))
	require.Equal(t, wire.CodePrivilege, code(t, err))
	require.False(t, exists(m, "writer"))
	limited := createRequest("limited", createLogin)
	limited.ConnectionLimit = 1
	require.NoError(t, driver.Create(ctx, limited))
	first, err := login(ctx, m, "limited", "pw-of-user")
	require.NoError(t, err)
	defer first.Close()
	_, err = login(ctx, m, "limited", "pw-of-user")
	require.Error(t, err)
}

// The user has accounts for several hosts; all go, with all sessions. Custom
// statements that fail because the user is gone are success.
func TestDriver_EndForEveryHost(t *testing.T) {
	t.Parallel()
	m := testenv.MariaDB(t, testenv.MariaDBOptions{})
	rootUser(m)
	driver := open(t, rootConfig(m))
	ctx := t.Context()
	require.NoError(t, driver.Create(ctx, createRequest("wide", createLogin, `CREATE USER '{{name}}'@'10.0.0.%' IDENTIFIED BY '{{password}}'`)))
	session, err := login(ctx, m, "wide", "pw-of-user")
	require.NoError(t, err)
	defer session.Close()
	m.Exec("", `CREATE USER 'WIDE'@'%' IDENTIFIED BY 'x'`)
	require.NoError(t, driver.End(ctx, account.EndRequest{Username: "wide"}))
	require.False(t, exists(m, "wide"))
	require.True(t, exists(m, "WIDE"), "names are case sensitive")

	require.NoError(t, driver.Create(ctx, createRequest("custom", createLogin)))
	require.NoError(t, driver.End(ctx, account.EndRequest{
		Username: "custom", Statements: []string{`DROP USER '{{name}}'@'%'; DROP USER '{{name}}'@'%'`},
	}))
	require.False(t, exists(m, "custom"))

	// A failure leaves it locked.
	require.NoError(t, driver.Create(ctx, createRequest("stuck", createLogin)))
	require.Error(t, driver.End(ctx, account.EndRequest{Username: "stuck", Statements: []string{`GRANT nothing TO nobody`}}))
	require.Equal(t, wire.CodeLoginRefused, code(t, driver.Login(ctx, "stuck", wire.NewSecret("pw-of-user"))))
	require.NoError(t, driver.End(ctx, account.EndRequest{Username: "stuck"}))
}

// MySQL drops no user whom views run for; it stays locked, and the error says what
// is in the way. MariaDB drops it and leaves views that work no more.
func TestDriver_EndOfADefiner(t *testing.T) {
	t.Parallel()
	m := testenv.MariaDB(t, testenv.MariaDBOptions{})
	rootUser(m)
	m.Exec("", `CREATE DATABASE shop; GRANT ALL ON shop.* TO 'dbops_root'@'%' WITH GRANT OPTION`)
	driver, ctx := open(t, rootConfig(m)), t.Context()
	require.NoError(t, driver.Create(ctx, createRequest("definer", createLogin, `GRANT ALL ON shop.* TO '{{name}}'@'%'`)))
	session, err := login(ctx, m, "definer", "pw-of-user")
	require.NoError(t, err)
	defer session.Close()
	_, err = session.(userSession).db.ExecContext(ctx, `CREATE VIEW shop.v AS SELECT 1 AS one`)
	require.NoError(t, err)
	err = driver.End(ctx, account.EndRequest{Username: "definer"})
	require.False(t, session.Alive(ctx))
	if m.MySQL {
		require.Equal(t, wire.CodePrivilege, code(t, err))
		require.ErrorContains(t, err, "DEFINER")
		require.Equal(t, wire.CodeLoginRefused, code(t, driver.Login(ctx, "definer", wire.NewSecret("pw-of-user"))))
		m.Exec("shop", `DROP VIEW v`)
		err = driver.End(ctx, account.EndRequest{Username: "definer"})
	}
	require.NoError(t, err)
	require.False(t, exists(m, "definer"))
}

// Without the right to see or end sessions, ending says so instead of leaving them.
func TestDriver_EndSaysWhichPrivilegeIsMissing(t *testing.T) {
	t.Parallel()
	m := testenv.MariaDB(t, testenv.MariaDBOptions{})
	m.Exec("", `CREATE USER 'dbops_root'@'%' IDENTIFIED BY 'root-password'; GRANT CREATE USER, SELECT ON *.* TO 'dbops_root'@'%' WITH GRANT OPTION`)
	ctx := t.Context()
	blind := open(t, rootConfig(m))
	require.NoError(t, blind.Create(ctx, createRequest("seen", createLogin)))
	session, err := login(ctx, m, "seen", "pw-of-user")
	require.NoError(t, err)
	defer session.Close()
	err = blind.End(ctx, account.EndRequest{Username: "seen"})
	require.Equal(t, wire.CodePrivilege, code(t, err))
	require.ErrorContains(t, err, "PROCESS")

	m.Exec("", `GRANT PROCESS ON *.* TO 'dbops_root'@'%'`)
	sighted := open(t, rootConfig(m))
	err = sighted.End(ctx, account.EndRequest{Username: "seen"})
	require.Equal(t, wire.CodePrivilege, code(t, err))
	require.ErrorContains(t, err, "CONNECTION_ADMIN")
	require.True(t, exists(m, "seen"))
	m.Exec("", `GRANT `+m.ConnectionAdmin()+` ON *.* TO 'dbops_root'@'%'`)
	require.NoError(t, open(t, rootConfig(m)).End(ctx, account.EndRequest{Username: "seen"}))
	require.False(t, session.Alive(ctx))
}

// A user that may not read mysql.user works on the configured host alone.
func TestDriver_WithoutSelectOnUsers(t *testing.T) {
	t.Parallel()
	m := testenv.MariaDB(t, testenv.MariaDBOptions{})
	m.Exec("", `CREATE DATABASE shop; CREATE USER 'dbops_root'@'%' IDENTIFIED BY 'root-password';
GRANT CREATE USER, PROCESS, `+m.ConnectionAdmin()+` ON *.* TO 'dbops_root'@'%'; GRANT ALL ON shop.* TO 'dbops_root'@'%' WITH GRANT OPTION`)
	config := rootConfig(m)
	config.URL, config.Host = m.ConnectionURL(""), "127.0.0.1"
	driver := open(t, config)
	ctx := t.Context()
	require.NoError(t, driver.Create(ctx, createRequest("narrow", `CREATE USER '{{name}}'@'{{host}}' IDENTIFIED BY '{{password}}'; GRANT SELECT ON shop.* TO '{{name}}'@'{{host}}'`)))
	require.NoError(t, driver.Rotate(ctx, account.RotateRequest{Username: "narrow", Password: wire.NewSecret("next")}))
	require.NoError(t, driver.Login(ctx, "narrow", wire.NewSecret("next")))
	require.NoError(t, driver.End(ctx, account.EndRequest{Username: "narrow"}))
	require.NoError(t, driver.End(ctx, account.EndRequest{Username: "narrow"}))
	require.False(t, exists(m, "narrow"))
	require.Equal(t, wire.CodeNotFound, code(t, driver.Rotate(ctx, account.RotateRequest{Username: "narrow", Password: wire.NewSecret("next")})))
}

// The driver's own password is changed only for the account it is logged in as.
func TestDriver_RotatesItsOwnUser(t *testing.T) {
	t.Parallel()
	m := testenv.MariaDB(t, testenv.MariaDBOptions{})
	rootUser(m)
	m.Exec("", `CREATE USER 'dbops_root'@'10.0.0.1' IDENTIFIED BY 'another'`)
	driver := open(t, rootConfig(m))
	other := func() string {
		return m.Exec("", `SELECT authentication_string FROM mysql.user WHERE User = 'dbops_root' AND Host = '10.0.0.1'`)
	}
	before := other()
	require.NoError(t, driver.Rotate(t.Context(), account.RotateRequest{Username: "dbops_root", Password: wire.NewSecret("next")}))
	require.NoError(t, driver.Login(t.Context(), "dbops_root", wire.NewSecret("next")))
	require.Equal(t, before, other())
}

// The server cannot undo statements: after the first of several it is open whether the
// password is the new one, and the error says so.
func TestDriver_RotationThatFailsHalfway(t *testing.T) {
	t.Parallel()
	m := testenv.MariaDB(t, testenv.MariaDBOptions{})
	rootUser(m)
	m.Exec("", `CREATE USER 'svc'@'%' IDENTIFIED BY 'before'`)
	driver := open(t, rootConfig(m))
	rotate := func(statements ...string) error {
		return driver.Rotate(t.Context(), account.RotateRequest{Username: "svc", Password: wire.NewSecret("after"), Statements: statements})
	}
	const here, nowhere = `ALTER USER '{{name}}'@'%' IDENTIFIED BY '{{password}}'`, `ALTER USER '{{name}}'@'10.0.0.1' IDENTIFIED BY '{{password}}'`
	err := rotate(nowhere, here)
	require.Error(t, err)
	require.False(t, account.Ambiguous(err), "nothing was changed")
	err = rotate(here, nowhere)
	require.Error(t, err)
	require.True(t, account.Ambiguous(err))
	require.NoError(t, driver.Login(t.Context(), "svc", wire.NewSecret("after")))
}

// Statements that change their session do not change the next one.
func TestDriver_SessionsAreNotLeftChanged(t *testing.T) {
	t.Parallel()
	m := testenv.MariaDB(t, testenv.MariaDBOptions{})
	rootUser(m)
	config := rootConfig(m)
	config.MaxSessions = 1
	driver := open(t, config)
	require.NoError(t, driver.Create(t.Context(), createRequest("one", `SET sql_mode = 'NO_BACKSLASH_ESCAPES'`, `USE information_schema`, createLogin)))
	hostile := createRequest(`two\`, createLogin)
	require.NoError(t, driver.Create(t.Context(), hostile))
	require.True(t, exists(m, `two\`))
}

func TestDriver_OutlivesARestart(t *testing.T) {
	t.Parallel()
	m := testenv.MariaDB(t, testenv.MariaDBOptions{})
	rootUser(m)
	driver := open(t, rootConfig(m))
	require.NoError(t, driver.Verify(t.Context()))
	m.Kill()
	require.True(t, account.Unreachable(driver.Verify(t.Context())))
	m.Start()
	require.NoError(t, driver.Create(t.Context(), createRequest("after", createLogin)))
}

// TLS is verified as configured, and never given up for plain text.
func TestDriver_TLS(t *testing.T) {
	t.Parallel()
	m := testenv.MariaDB(t, testenv.MariaDBOptions{ServerName: "db.example.test"})
	m.Exec("", `CREATE USER 'dbops_root'@'%' IDENTIFIED BY 'root-password' REQUIRE X509; CREATE USER 'plain'@'%' IDENTIFIED BY 'root-password'`)
	both := wire.NewSecret(string(m.Certificate.Key) + string(m.Certificate.Cert))
	verified := rootConfig(m)
	verified.URL = m.ConnectionURL("") + "?tls=preferred"
	verified.CA, verified.CertificateKey = string(m.Certificate.CA), both
	identity, err := open(t, verified).Identity(t.Context(), "")
	require.NoError(t, err)
	require.True(t, identity.TLS)

	named := verified
	named.ServerName = "db.example.test"
	require.NoError(t, open(t, named).Verify(t.Context()))
	named.ServerName = "other.example.test"
	err = open(t, named).Verify(t.Context())
	require.True(t, account.Unreachable(err))
	require.ErrorContains(t, err, "certificate")

	for name, config := range map[string]Config{
		"no client certificate": {URL: verified.URL, Username: "dbops_root", CA: verified.CA},
		"system's authorities":  {URL: m.ConnectionURL("") + "?tls=true", Username: "plain"},
		"another authority":     {URL: verified.URL, Username: "plain", CertificateKey: both},
	} {
		config.Password = verified.Password
		require.Error(t, open(t, config).Verify(t.Context()), name)
	}
	skipping := Config{URL: m.ConnectionURL(""), Username: "plain", Password: verified.Password, SkipVerify: true}
	identity, err = open(t, skipping).Identity(t.Context(), "")
	require.NoError(t, err)
	require.True(t, identity.TLS)

	bare := testenv.MariaDB(t, testenv.MariaDBOptions{})
	rootUser(bare)
	wanting := rootConfig(bare)
	wanting.URL, wanting.CA = bare.ConnectionURL("")+"?tls=preferred", verified.CA
	require.ErrorContains(t, open(t, wanting).Verify(t.Context()), "does not speak TLS")
}

// Where the operator is no superuser, RDS' own procedure ends sessions.
func TestDriver_EndOnRDS(t *testing.T) {
	t.Parallel()
	m := testenv.MariaDB(t, testenv.MariaDBOptions{})
	m.Exec("mysql", `CREATE USER 'dbops_root'@'%' IDENTIFIED BY 'root-password'; GRANT CREATE USER, PROCESS, SELECT ON *.* TO 'dbops_root'@'%' WITH GRANT OPTION;
CREATE PROCEDURE mysql.rds_kill(IN id BIGINT) SQL SECURITY DEFINER KILL id; GRANT EXECUTE ON PROCEDURE mysql.rds_kill TO 'dbops_root'@'%'`)
	driver := open(t, rootConfig(m))
	require.NoError(t, driver.Create(t.Context(), createRequest("managed", createLogin)))
	session, err := login(t.Context(), m, "managed", "pw-of-user")
	require.NoError(t, err)
	defer session.Close()
	require.NoError(t, driver.End(t.Context(), account.EndRequest{Username: "managed"}))
	require.False(t, session.Alive(t.Context()))
	require.False(t, exists(m, "managed"))
}

func TestNew_WrongFieldsAreNamed(t *testing.T) {
	t.Parallel()
	url := "{{username}}:{{password}}@tcp(localhost:3306)/"
	for field, config := range map[string]Config{
		"tls_ca":              {URL: url, CA: "planted"},
		"tls_certificate_key": {URL: url, CertificateKey: wire.NewSecret("planted")},
	} {
		_, err := New(config)
		var wrong *account.FieldError
		require.ErrorAs(t, err, &wrong, field)
		require.Equal(t, field, wrong.Field)
		require.NotContains(t, err.Error(), "planted")
	}
	for _, url := range []string{
		"planted", "u:planted@tcp(h:planted)/", "u:planted@tcp(h:1/", "u:planted@pipe(x)/", url + "?tls=planted", url + "?timeout=planted",
		url + "?sql_mode=planted", url + "?sql_mode=%27ORACLE%27", url + "?character_set_client=sjis", url + "?sql_mode=%27a%27%2Cautocommit%3D0",
	} {
		_, err := New(Config{URL: url})
		var wrong *account.FieldError
		require.ErrorAs(t, err, &wrong, url)
		require.Equal(t, "connection_url", wrong.Field)
		require.NotContains(t, err.Error(), "planted")
	}
}
