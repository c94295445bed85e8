package plugin

import (
	"bytes"
	"context"
	"errors"
	"net"
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
	// advanced is told that time has jumped: what sleeps would not see it.
	advanced func()
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.offset)
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	c.offset += d
	c.mu.Unlock()
	if c.advanced != nil {
		c.advanced()
	}
}

// lockedBuffer takes the log of background work too.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// engine is a mounted engine on storage of its own.
type engine struct {
	*backend
	t       *testing.T
	storage logical.Storage
	clock   *clock
	log     *lockedBuffer
}

// newMount makes an engine; the sweeper runs only if initialize is asked for.
func newMount(t *testing.T, storage logical.Storage) *engine {
	t.Helper()
	m := &engine{t: t, storage: storage, clock: &clock{}, log: &lockedBuffer{}}
	m.backend = newBackend(DefaultVersion, m.clock.now)
	m.clock.advanced = m.rotations.poke
	require.NoError(t, m.Setup(t.Context(), &logical.BackendConfig{
		Logger: hclog.New(&hclog.LoggerOptions{Output: m.log, Level: hclog.Trace, JSONFormat: true}),
		System: &logical.StaticSystemView{DefaultLeaseTTLVal: time.Hour, MaxLeaseTTLVal: 24 * time.Hour},
	}))
	t.Cleanup(func() {
		m.clean(context.Background())
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

// blackHole takes connections and never answers.
func blackHole(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, listener.Close()) })
	return listener.Addr().String()
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
	m.log.b.Reset() // the log may say what the caller may not know
	for _, sentinel := range sentinels() {
		_, err := m.answer(&logical.Request{}, nil, wrapped(sentinel))
		require.True(t, err == sentinel, "%v", err) //nolint:errorlint // it must be bare
	}
}

func wrapped(err error) error { return errors.Join(errors.New("outer"), err) }
