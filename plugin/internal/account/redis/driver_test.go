package redis

import (
	"bufio"
	"context"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account/accounttest"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

func rootConfig(r *testenv.RedisServer) Config {
	config := Config{Host: r.Host, Port: r.Port, Username: r.User, Password: wire.NewSecret(r.Password)}
	if r.Certificate.CA != nil {
		config.TLS, config.CA = true, string(r.Certificate.CA)
	}
	return config
}

func open(t *testing.T, config Config) *Driver {
	t.Helper()
	driver, err := New(config)
	require.NoError(t, err)
	t.Cleanup(driver.Close)
	return driver
}

// user is one session of a user.
type user struct{ conn *redis.Conn }

func (u user) Alive(ctx context.Context) bool { return u.conn.Exists(ctx, "any").Err() == nil }
func (u user) Close()                         { _ = u.conn.Close() }

// login opens a session and reads with it.
func login(ctx context.Context, r *testenv.RedisServer, name, password string) (*redis.Conn, error) {
	config := rootConfig(r)
	config.Username, config.Password, config.MaxSessions = name, wire.NewSecret(password), 1
	options, err := config.options()
	if err != nil {
		return nil, err
	}
	conn := redis.NewClient(options).Conn()
	if err := conn.Exists(ctx, "any").Err(); err != nil {
		return nil, err
	}
	return conn, nil
}

func exists(t *testing.T, r *testenv.RedisServer, name string) bool {
	t.Helper()
	driver := open(t, rootConfig(r))
	users, err := driver.client.Do(t.Context(), "ACL", "USERS").StringSlice()
	require.NoError(t, err)
	for _, user := range users {
		if user == name {
			return true
		}
	}
	return false
}

func create(t *testing.T, d *Driver, name, password string, statements ...string) {
	t.Helper()
	require.NoError(t, d.Create(t.Context(), account.CreateRequest{Username: name, Password: wire.NewSecret(password), Statements: statements}))
}

func TestDriver_Conformance(t *testing.T) {
	t.Parallel()
	for name, options := range map[string]testenv.RedisOptions{
		"in memory":          {},
		"ACL file":           {Users: testenv.RedisUsersInACLFile},
		"configuration file": {Users: testenv.RedisUsersInConf},
		"TLS":                {TLS: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := testenv.Redis(t, options)
			accounttest.Run(t, func(t *testing.T) accounttest.Server {
				config := rootConfig(r)
				dead := config
				hole := testenv.BlackHole(t)
				dead.Host, dead.Port = hole.IP.String(), hole.Port
				return accounttest.Server{
					Driver:      account.Sanitize(open(t, config), config.Password),
					Create:      []string{DefaultCreation},
					Fail:        `["+@no-such-category"]`,
					Unreachable: account.Sanitize(open(t, dead), config.Password),
					Refuses:     func(name string) bool { return strings.ContainsAny(name, ` "'`) },
					Login: func(ctx context.Context, username, password string) (accounttest.Session, error) {
						conn, err := login(ctx, r, username, password)
						return user{conn}, err
					},
					Exists: func(t *testing.T, username string) bool {
						t.Helper()
						return exists(t, r, username)
					},
				}
			})
		})
	}
}

// The built-in engine takes the first statement only.
func TestDriver_EveryCreationStatementCounts(t *testing.T) {
	t.Parallel()
	r := testenv.Redis(t, testenv.RedisOptions{})
	d := open(t, rootConfig(r))
	create(t, d, "both", "pw", `["~app:*", "+get"]`, ` `, `["+set"]`)
	conn, err := login(t.Context(), r, "both", "pw")
	require.ErrorContains(t, err, "NOPERM", "EXISTS is not allowed")
	require.Nil(t, conn)
	options := &redis.Options{Addr: r.Address(), Username: "both", Password: "pw"}
	client := redis.NewClient(options)
	t.Cleanup(func() { _ = client.Close() })
	require.NoError(t, client.Set(t.Context(), "app:1", "x", 0).Err())
	require.NoError(t, client.Get(t.Context(), "app:1").Err())
	require.ErrorContains(t, client.Get(t.Context(), "other").Err(), "NOPERM")
}

// Rules that take the password away, add one or lock the login do not.
func TestDriver_RulesCannotChangeThePassword(t *testing.T) {
	t.Parallel()
	r := testenv.Redis(t, testenv.RedisOptions{})
	d := open(t, rootConfig(r))
	for name, rule := range map[string]string{"nopass": "nopass", "added": ">other", "off": "off", "reset": "reset", "resetpass": "resetpass"} {
		create(t, d, name, "right", `["`+rule+`", "~*", "+@read"]`)
		require.NoError(t, d.Login(t.Context(), name, wire.NewSecret("right")), rule)
		require.Error(t, d.Login(t.Context(), name, wire.NewSecret("other")), rule)
	}
}

// A login that is there is nobody's to take over: not the server's own, not the
// connection's, not another lease's.
func TestDriver_CreateNeverTakesOverALogin(t *testing.T) {
	t.Parallel()
	r := testenv.Redis(t, testenv.RedisOptions{})
	d := open(t, rootConfig(r))
	create(t, d, "taken", "first")
	for _, name := range []string{"taken", "default"} {
		err := d.Create(t.Context(), account.CreateRequest{Username: name, Password: wire.NewSecret("second"), Statements: []string{`["~*", "+@all"]`}})
		var e *account.Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, wire.CodeConflict, e.Code)
		require.False(t, e.Ambiguous)
		require.Error(t, d.Login(t.Context(), name, wire.NewSecret("second")))
	}
	require.NoError(t, d.Login(t.Context(), "taken", wire.NewSecret("first")))
	require.Error(t, d.End(t.Context(), account.EndRequest{Username: "default"}))
	require.Equal(t, "PONG", r.Command("PING"))
}

// Without a session nothing has succeeded: a rotation that was never done would
// otherwise be stored as done, and the password that works be lost.
func TestDriver_RefusedLoginIsNoSuccess(t *testing.T) {
	t.Parallel()
	r := testenv.Redis(t, testenv.RedisOptions{})
	create(t, open(t, rootConfig(r)), "victim", "before")
	wrong := rootConfig(r)
	wrong.Password = wire.NewSecret("secret-wrong")
	gone := rootConfig(r)
	gone.Port = 1
	for want, config := range map[wire.Code]Config{wire.CodeLoginRefused: wrong, wire.CodeUnavailable: gone} {
		driver := open(t, config)
		_, listed := driver.Logins(t.Context(), "")
		_, found, looked := driver.Find(t.Context(), "victim")
		require.False(t, found)
		for call, err := range map[string]error{
			"verify": driver.Verify(t.Context()),
			"create": driver.Create(t.Context(), account.CreateRequest{Username: "new", Password: wire.NewSecret("pw"), Statements: []string{DefaultCreation}}),
			"renew":  driver.Renew(t.Context(), account.RenewRequest{Username: "victim"}),
			"rotate": driver.Rotate(t.Context(), account.RotateRequest{Username: "victim", Password: wire.NewSecret("after")}),
			"end":    driver.End(t.Context(), account.EndRequest{Username: "victim"}),
			"list":   listed,
			"find":   looked,
		} {
			var e *account.Error
			require.ErrorAs(t, err, &e, call)
			require.Equal(t, want, e.Code, "%s: %v", call, err)
		}
	}
	require.True(t, exists(t, r, "victim"))
	require.False(t, exists(t, r, "new"))
	conn, err := login(t.Context(), r, "victim", "before")
	require.NoError(t, err)
	require.NoError(t, conn.Close())
}

// What a rule says never stands in an error; which rule it is does.
func TestDriver_ErrorsNameRulesByNumber(t *testing.T) {
	t.Parallel()
	r := testenv.Redis(t, testenv.RedisOptions{Users: testenv.RedisUsersInConf})
	d := open(t, rootConfig(r))
	for statement, want := range map[string]string{
		`["~*", "+@planted"]`:        "ACL rule 2",
		`["~*", "+planted-command"]`: "ACL rule 2",
		`["~*", "~planted"]`:         "ACL rule 2",
		`["planted"]`:                "ACL rule 1",
		`["#planted"]`:               "ACL rule 1",
		`["~planted's"]`:             "ACL rule 1",
		`["a\nplanted"]`:             "rule 1",
		`~planted`:                   "statement 1 is not a JSON array",
		`{"planted": 1}`:             "statement 1 is not a JSON array",
	} {
		err := d.Create(t.Context(), account.CreateRequest{Username: "wrong", Password: wire.NewSecret("planted"), Statements: []string{statement}})
		var e *account.Error
		require.ErrorAs(t, err, &e, statement)
		require.Equal(t, wire.CodeInvalid, e.Code, statement)
		require.False(t, e.Ambiguous, statement)
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "planted", statement)
		require.False(t, exists(t, r, "wrong"), statement)
	}
}

// Users made, rotated and ended are so after a crash of the server.
func TestDriver_ChangesOutliveTheServer(t *testing.T) {
	t.Parallel()
	for name, users := range map[string]testenv.RedisUsers{"ACL file": testenv.RedisUsersInACLFile, "configuration file": testenv.RedisUsersInConf} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := testenv.Redis(t, testenv.RedisOptions{Users: users})
			d := open(t, rootConfig(r))
			for _, name := range []string{"kept", "rotated", "ended"} {
				create(t, d, name, "first")
			}
			require.NoError(t, d.Rotate(t.Context(), account.RotateRequest{Username: "rotated", Password: wire.NewSecret("second")}))
			require.NoError(t, d.End(t.Context(), account.EndRequest{Username: "ended"}))
			r.Kill()
			err := d.Create(t.Context(), account.CreateRequest{Username: "dead", Password: wire.NewSecret("pw")})
			require.True(t, account.Unreachable(err), "%v", err)
			require.False(t, account.Ambiguous(err))
			r.Start()
			require.Eventually(t, func() bool { return d.Login(t.Context(), "kept", wire.NewSecret("first")) == nil }, 30*time.Second, 20*time.Millisecond)
			require.NoError(t, d.Login(t.Context(), "rotated", wire.NewSecret("second")))
			require.Error(t, d.Login(t.Context(), "rotated", wire.NewSecret("first")))
			require.False(t, exists(t, r, "ended"))
			create(t, d, "after", "pw") // with the same driver

			// The server's own user, whose password stands in requirepass too.
			require.NoError(t, d.Rotate(t.Context(), account.RotateRequest{Username: "default", Password: wire.NewSecret("new-root")}))
			old := r.Password
			r.Kill()
			r.Password = "new-root"
			r.Start()
			again := open(t, rootConfig(r))
			require.NoError(t, again.Verify(t.Context()))
			require.Error(t, again.Login(t.Context(), "default", wire.NewSecret(old)))
		})
	}
}

// A server whose file cannot be written from the start keeps users in memory, as
// with the built-in engine; one that stops being able to fails the change, and
// creates nothing.
func TestDriver_SavingThatStopsWorking(t *testing.T) {
	t.Parallel()
	r := testenv.Redis(t, testenv.RedisOptions{Users: testenv.RedisUsersInACLFile})
	d := open(t, rootConfig(r))
	create(t, d, "before", "pw")
	require.Equal(t, aclFile, d.saving.place(time.Now()))
	// The server's user may not save any more.
	// Redis 6 can allow a subcommand, but not take one away.
	unable := []string{"-acl", "+acl|getuser", "+acl|setuser", "+acl|deluser", "+acl|users"}
	limit := func(rules ...string) { r.Command(append([]string{"ACL", "SETUSER", "limited"}, rules...)...) }
	limit(append([]string{"on", ">limited", "~*", "+@all"}, unable...)...)
	config := rootConfig(r)
	config.Username, config.Password = "limited", wire.NewSecret("limited")
	limited := open(t, config)
	create(t, limited, "unsaved", "pw")
	require.Equal(t, nowhere, limited.saving.place(time.Now()))
	require.Equal(t, unknown, limited.saving.place(time.Now().Add(2*lookAgain)))

	proven := open(t, config)
	limit("+acl|save")
	create(t, proven, "saved", "pw")
	limit(unable...)
	err := proven.Create(t.Context(), account.CreateRequest{Username: "lost", Password: wire.NewSecret("pw")})
	var e *account.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, wire.CodePrivilege, e.Code)
	require.False(t, e.Ambiguous)
	require.False(t, exists(t, r, "lost"))
	require.Error(t, proven.End(t.Context(), account.EndRequest{Username: "saved"}))
	require.False(t, exists(t, r, "saved"), "it is shut out all the same")
	limit("+acl|save")
	require.NoError(t, proven.End(t.Context(), account.EndRequest{Username: "saved"}), "the next attempt saves")
}

// Sessions are kept over the end of a login: the built-in engine logs in anew.
func TestDriver_KeepsItsSessions(t *testing.T) {
	t.Parallel()
	r := testenv.Redis(t, testenv.RedisOptions{})
	d := open(t, rootConfig(r))
	connections := func() string {
		for line := range strings.Lines(r.Command("INFO", "stats")) {
			if value, ok := strings.CutPrefix(line, "total_connections_received:"); ok {
				return strings.TrimSpace(value)
			}
		}
		return ""
	}
	create(t, d, "warm", "pw")
	before, err := strconv.Atoi(connections())
	require.NoError(t, err)
	for i := range 20 {
		name := "kept-" + strconv.Itoa(i)
		create(t, d, name, "pw")
		require.NoError(t, d.End(t.Context(), account.EndRequest{Username: name}))
	}
	after, err := strconv.Atoi(connections())
	require.NoError(t, err)
	require.Equal(t, before+1, after, "the one that asks")
}

// Neither the server's monitor nor its log of refusals sees a password.
func TestDriver_PasswordNeverReachesTheServer(t *testing.T) {
	t.Parallel()
	r := testenv.Redis(t, testenv.RedisOptions{Users: testenv.RedisUsersInConf})
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", r.Address())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	_, err = conn.Write([]byte("AUTH " + r.Password + "\r\nMONITOR\r\n"))
	require.NoError(t, err)
	d := open(t, rootConfig(r))
	create(t, d, "watched", "planted-secret")
	require.NoError(t, d.Rotate(t.Context(), account.RotateRequest{Username: "watched", Password: wire.NewSecret("planted-other")}))
	r.Command("ECHO", "last-command")
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(5*time.Second)))
	in := bufio.NewReader(conn)
	for {
		line, err := in.ReadString('\n')
		require.NoError(t, err)
		require.NotContains(t, line, "planted")
		if strings.Contains(line, "last-command") {
			break
		}
	}
}

func TestDriver_TLS(t *testing.T) {
	t.Parallel()
	r := testenv.Redis(t, testenv.RedisOptions{TLS: true, ClientCertificates: true})
	good := rootConfig(r)
	good.Certificate, good.PrivateKey = string(r.Certificate.Cert), wire.NewSecret(string(r.Certificate.Key))
	d := open(t, good)
	require.NoError(t, d.Verify(t.Context()))
	identity, err := d.Identity(t.Context(), "")
	require.NoError(t, err)
	require.True(t, identity.TLS)

	for name, change := range map[string]func(*Config){
		"no client certificate": func(c *Config) { c.Certificate, c.PrivateKey = "", wire.Secret{} },
		"system roots":          func(c *Config) { c.CA = "" },
		"another name":          func(c *Config) { c.ServerName = "db.example.test" },
		"no TLS":                func(c *Config) { c.TLS, c.CA, c.Certificate, c.PrivateKey = false, "", "", wire.Secret{} },
	} {
		config := good
		change(&config)
		err := open(t, config).Verify(t.Context())
		require.True(t, account.Unreachable(err), "%s: %v", name, err)
	}
	insecure := good
	insecure.CA, insecure.InsecureTLS = "", true
	require.NoError(t, open(t, insecure).Verify(t.Context()))
	wrong := good
	wrong.Password = wire.NewSecret("planted-wrong")
	var e *account.Error
	require.ErrorAs(t, open(t, wrong).Verify(t.Context()), &e)
	require.Equal(t, wire.CodeLoginRefused, e.Code)
}

// The rights that README names are enough, for a user who saves.
func TestDriver_LeastRights(t *testing.T) {
	t.Parallel()
	r := testenv.Redis(t, testenv.RedisOptions{Users: testenv.RedisUsersInConf})
	command := []string{"ACL", "SETUSER", "vault", "on", ">root-password"}
	r.Command(append(command, strings.Fields("+ping +info +acl|getuser +acl|setuser +acl|deluser +acl|users +acl|save +config|get +config|rewrite")...)...)
	config := rootConfig(r)
	config.Username, config.Password = "vault", wire.NewSecret("root-password")
	d := open(t, config)
	require.NoError(t, d.Verify(t.Context()))
	create(t, d, "kept", "first")
	create(t, d, "ended", "first")
	require.NoError(t, d.Rotate(t.Context(), account.RotateRequest{Username: "kept", Password: wire.NewSecret("second")}))
	require.NoError(t, d.End(t.Context(), account.EndRequest{Username: "ended"}))
	logins, err := d.Logins(t.Context(), "")
	require.NoError(t, err)
	require.ElementsMatch(t, account.Named([]string{"default", "vault", "kept"}), logins)
	_, err = d.Identity(t.Context(), "")
	require.NoError(t, err)
	require.Equal(t, configFile, d.saving.place(time.Now()))
	require.True(t, d.saving.proven)
}

func TestConfig_Refusals(t *testing.T) {
	t.Parallel()
	good := Config{Host: "db.example.test", Port: 6379, Username: "root", Password: wire.NewSecret("planted")}
	for field, change := range map[string]func(*Config){
		"host":            func(c *Config) { c.Host = "redis://db" },
		"port":            func(c *Config) { c.Port = 65536 },
		"password":        func(c *Config) { c.Password = wire.Secret{} },
		"tls":             func(c *Config) { c.InsecureTLS = true },
		"ca_cert":         func(c *Config) { c.TLS, c.CA = true, "planted" },
		"tls_certificate": func(c *Config) { c.TLS, c.Certificate = true, "planted" },
	} {
		config := good
		change(&config)
		_, err := New(config)
		var wrong *account.FieldError
		require.ErrorAs(t, err, &wrong, field)
		require.Equal(t, field, wrong.Field)
		require.NotContains(t, err.Error(), "planted")
	}
}

func FuzzParseRules(f *testing.F) {
	for _, seed := range []string{DefaultCreation, `[]`, `[""]`, `["~*","(+get ~x)"]`, "", "null", `["\u0000"]`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, statement string) {
		rules, err := parseRules([]string{statement})
		if err != nil {
			return
		}
		if len(rules) == 0 {
			t.Fatal("a login without rules")
		}
		for _, rule := range rules {
			if rule == "" || strings.ContainsAny(rule, "\x00\r\n") {
				t.Fatalf("rule %q", rule)
			}
		}
	})
}
