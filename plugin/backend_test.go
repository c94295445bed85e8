package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// The root user's password; no log, error or answer may hold it.
const rootPassword = "planted-root-password"

const (
	createLogin = `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'`
	// createStored makes logins whose records are kept in Vault's storage.
	createStored = createMember + ` COMMENT ON ROLE "{{name}}" IS 'one of somebody''s own'`
	createMember = createLogin + ` CONNECTION LIMIT 4 IN ROLE dbops_read; ALTER ROLE "{{name}}" SET role TO dbops_read;`
)

// clock is the time of a test.
type clock struct {
	mu     sync.Mutex
	offset time.Duration
	// set is what the wall clock was set by, which nothing else sees.
	set time.Duration
	// boot is another one after a start of the machine.
	boot string
	// advanced is told that time has jumped: what sleeps would not see it.
	advanced func()
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.set != 0 {
		return time.Now().Round(0).Add(c.offset + c.set)
	}
	return time.Now().Add(c.offset)
}

func (c *clock) uptime() uptime {
	c.mu.Lock()
	defer c.mu.Unlock()
	up := systemUptime()()
	return uptime{Boot: up.Boot + c.boot, At: up.At + c.offset}
}

// step sets the wall clock.
func (c *clock) step(d time.Duration) {
	c.mu.Lock()
	c.set += d
	c.mu.Unlock()
	if c.advanced != nil {
		c.advanced()
	}
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	c.offset += d
	c.mu.Unlock()
	if c.advanced != nil {
		c.advanced()
	}
}

// engine is a mounted engine on storage of its own.
type engine struct {
	*backend
	t       *testing.T
	storage logical.Storage
	clock   *clock
	log     *testenv.Buffer
}

// newMount makes an engine; the sweeper runs only if initialize is asked for.
func newMount(t *testing.T, storage logical.Storage) *engine {
	t.Helper()
	m := &engine{t: t, storage: storage, clock: &clock{}, log: &testenv.Buffer{}}
	m.backend = newBackend(DefaultVersion, m.clock.now, m.clock.uptime)
	m.clock.advanced = m.rotations.poke
	require.NoError(t, m.Setup(t.Context(), &logical.BackendConfig{
		Logger: hclog.New(&hclog.LoggerOptions{Output: m.log, Level: hclog.Trace, JSONFormat: true}),
		System: &logical.StaticSystemView{DefaultLeaseTTLVal: time.Hour, MaxLeaseTTLVal: 24 * time.Hour},
	}))
	t.Cleanup(func() {
		m.clean(context.Background())
		if t.Failed() {
			t.Logf("log of the engine:\n%s", m.log.String())
		}
		require.NotContains(t, m.log.String(), "planted", "a secret is in the log")
	})
	return m
}

// system gives the engine another view of Vault.
func (m *engine) system(view logical.SystemView) {
	m.t.Helper()
	require.NoError(m.t, m.Setup(m.t.Context(), &logical.BackendConfig{
		Logger: hclog.New(&hclog.LoggerOptions{Output: m.log, Level: hclog.Trace, JSONFormat: true}), System: view,
	}))
}

// start initializes the engine, with its background work.
func (m *engine) start() {
	m.t.Helper()
	require.NoError(m.t, m.Initialize(m.t.Context(), &logical.InitializationRequest{Storage: m.storage}))
}

// tick is what Vault does once a minute.
func (m *engine) tick() {
	m.t.Helper()
	require.NoError(m.t, m.periodic(m.t.Context(), &logical.Request{Operation: logical.RollbackOperation, Storage: m.storage}))
}

// ticksUntil lets time pass until the background work has done it. Time passes faster
// than it does: what could not be done at the first try, on a machine with much else to
// do, is put off for as long as ten minutes.
func (m *engine) ticksUntil(done func() bool) {
	m.t.Helper()
	require.Eventually(m.t, func() bool {
		m.clock.advance(time.Second)
		m.tick()
		return done()
	}, 30*time.Second, 20*time.Millisecond)
}

// never fails the test if something happens within d, or has. It looks in the test's
// own goroutine: require.Never may leave its last look running, beside what the test
// does next.
func never(t *testing.T, d time.Duration, happened func() bool) {
	t.Helper()
	for until := time.Now().Add(d); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		require.False(t, happened())
	}
}

func (m *engine) request(operation logical.Operation, path string, data map[string]any) (*logical.Response, error) {
	return m.HandleRequest(m.t.Context(), &logical.Request{
		Operation: operation, Path: path, Data: data, Storage: m.storage,
		DisplayName: "token-alice", EntityID: "entity-alice", MountPoint: "dbops/",
	})
}

// must fails the test unless the request succeeds.
func (m *engine) must(operation logical.Operation, path string, data map[string]any) *logical.Response {
	m.t.Helper()
	response, err := m.request(operation, path, data)
	require.NoError(m.t, err)
	if response != nil {
		require.NoError(m.t, response.Error())
	}
	return response
}

// refused returns the error of a request that must fail, as Vault would see it.
func (m *engine) refused(operation logical.Operation, path string, data map[string]any) (*wire.Error, int) {
	m.t.Helper()
	response, err := m.request(operation, path, data)
	require.Error(m.t, err, "answer: %v", response)
	require.NotContains(m.t, err.Error(), "planted")
	coded, ok := err.(logical.HTTPCodedError) //nolint:errorlint // it must be bare: Vault does not unwrap it
	require.True(m.t, ok, "%T %v", err, err)
	parsed := wire.ParseError(err.Error())
	require.NotNil(m.t, parsed, "%v", err)
	require.Equal(m.t, parsed.Code.Info().HTTP, coded.Code())
	return parsed, coded.Code()
}

func (m *engine) renew(secret *logical.Secret) (*logical.Response, error) {
	return m.HandleRequest(m.t.Context(), &logical.Request{Operation: logical.RenewOperation, Path: "creds/x", Secret: secret, Storage: m.storage})
}

func (m *engine) revoke(secret *logical.Secret) (*logical.Response, error) {
	return m.HandleRequest(m.t.Context(), &logical.Request{Operation: logical.RevokeOperation, Path: "creds/x", Secret: secret, Storage: m.storage})
}

// database starts a server with the roles of README.
func database(t *testing.T) *testenv.PostgresServer {
	t.Helper()
	p := testenv.Postgres(t, testenv.PostgresOptions{})
	p.Exec("postgres",
		`CREATE ROLE dbops_read NOLOGIN`,
		`CREATE ROLE dbops_owner NOLOGIN CREATEDB`,
		`CREATE ROLE dbops_root LOGIN CREATEROLE PASSWORD '`+rootPassword+`'`,
		`GRANT dbops_read, dbops_owner TO dbops_root WITH ADMIN OPTION`,
	)
	return p
}

func (m *engine) configure(name string, p *testenv.PostgresServer) {
	m.t.Helper()
	m.must(logical.CreateOperation, "config/"+name, map[string]any{
		"plugin_name": postgresPluginName, "connection_url": p.ConnectionURL("postgres"),
		"username": "dbops_root", "password": rootPassword, "allowed_roles": "*",
	})
}

// login opens a session as a user would; the caller need not close it.
func login(t *testing.T, p *testenv.PostgresServer, username, password string) (*pgx.Conn, error) {
	t.Helper()
	config := p.ConnConfig("postgres")
	config.User, config.Password = username, password
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err == nil {
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
	}
	return conn, err
}

func logins(t *testing.T, p *testenv.PostgresServer) string {
	t.Helper()
	return p.Value("postgres", `SELECT count(*) FROM pg_roles WHERE rolname LIKE 'dbops-%'`)
}

func keys(t *testing.T, s logical.Storage, prefix string) []string {
	t.Helper()
	found, err := logical.CollectKeysWithPrefix(t.Context(), s, prefix)
	require.NoError(t, err)
	return found
}

// decode reads an answer the way the other side does.
func decode[T any](t *testing.T, data map[string]any) T {
	t.Helper()
	content, err := json.Marshal(data)
	require.NoError(t, err)
	var value T
	require.NoError(t, json.Unmarshal(content, &value))
	return value
}

// A mount written by a newer plugin is refused altogether, and left as it is.
func TestBackend_NewerSchemaIsRefused(t *testing.T) {
	t.Parallel()
	storage := &logical.InmemStorage{}
	require.NoError(t, putStored(t.Context(), storage, keySchema, schema{Version: schemaVersion + 1}))
	m := newMount(t, storage)
	require.Error(t, m.Initialize(t.Context(), &logical.InitializationRequest{Storage: storage}))
	refusal, status := m.refused(logical.ReadOperation, "info", nil)
	require.Equal(t, wire.CodeConflict, refusal.Code)
	require.Equal(t, 409, status)
	require.Equal(t, []string{keySchema}, keys(t, storage, ""))
}

func TestBackend_SchemaAndMountIDAreKept(t *testing.T) {
	t.Parallel()
	storage := &logical.InmemStorage{}
	first := newMount(t, storage)
	first.start()
	id, err := first.mountID(t.Context(), storage)
	require.NoError(t, err)
	require.Len(t, id, mountIDLength)
	second := newMount(t, storage)
	second.start()
	again, err := second.mountID(t.Context(), storage)
	require.NoError(t, err)
	require.Equal(t, id, again)
}

// What leaves the engine is bare: an error that is wrapped reaches Vault as 500.
func TestBackend_Answer(t *testing.T) {
	t.Parallel()
	m := newMount(t, &logical.InmemStorage{})
	denied := &wire.Error{Code: wire.CodeDenied, Reason: "no policy"}
	for name, test := range map[string]struct {
		err    error
		status int
	}{
		"ours":              {denied, 403},
		"ours, wrapped":     {wrapped(denied), 403},
		"ours, joined":      {errors.Join(denied, errors.New("storage")), 403},
		"coded, wrapped":    {wrapped(logical.CodedError(418, "tea")), 418},
		"unknown":           {errors.New("planted detail"), 500},
		"context cancelled": {wrapped(context.Canceled), 503},
	} {
		_, err := m.answer(&logical.Request{}, nil, test.err)
		coded, ok := err.(logical.HTTPCodedError) //nolint:errorlint // it must be bare
		require.True(t, ok, name)
		require.Equal(t, test.status, coded.Code(), name)
		require.NotContains(t, err.Error(), "planted")
	}
	m.log.Reset() // the log may say what the caller may not know
	for _, sentinel := range sentinels() {
		_, err := m.answer(&logical.Request{}, nil, wrapped(sentinel))
		require.True(t, err == sentinel, "%v", err) //nolint:errorlint // it must be bare
	}
}

func wrapped(err error) error { return errors.Join(errors.New("outer"), err) }
