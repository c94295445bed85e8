package plugin

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// withStatic makes a mount with a connection, a login svc and nothing else.
func withStatic(t *testing.T) (*engine, *testenv.PostgresServer) {
	t.Helper()
	p := database(t)
	p.Exec("postgres", `CREATE ROLE svc LOGIN PASSWORD 'before'`, `GRANT svc TO dbops_root WITH ADMIN OPTION`)
	m := newMount(t, &logical.InmemStorage{})
	m.configure("prod", p)
	return m, p
}

func (m *engine) staticPassword(name string) string {
	m.t.Helper()
	password, ok := m.must(logical.ReadOperation, "static-creds/"+name, nil).Data["password"].(string)
	require.True(m.t, ok)
	return password
}

// works reports whether a password logs in.
func works(t *testing.T, p *testenv.PostgresServer, username, password string) bool {
	t.Helper()
	_, err := login(t, p, username, password)
	return err == nil
}

func TestStaticRoles_Life(t *testing.T) {
	t.Parallel()
	m, p := withStatic(t)
	m.must(logical.CreateOperation, "static-roles/app", map[string]any{"db_name": "prod", "username": "svc", "rotation_period": "24h"})
	first := m.staticPassword("app")
	require.True(t, works(t, p, "svc", first))
	require.False(t, works(t, p, "svc", "before"))
	require.Equal(t, []string{"app"}, m.must(logical.ListOperation, "static-roles/", nil).Data["keys"])

	content, err := json.Marshal(m.must(logical.ReadOperation, "static-roles/app", nil).Data)
	require.NoError(t, err)
	require.NotContains(t, string(content), first)
	var read map[string]any
	require.NoError(t, json.Unmarshal(content, &read))
	rotated, err := time.Parse(time.RFC3339, read["last_vault_rotation"].(string))
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), rotated, time.Minute)
	delete(read, "last_vault_rotation")
	require.Equal(t, map[string]any{
		"db_name": "prod", "username": "svc", "rotation_statements": []any{}, "credential_type": "password",
		"skip_import_rotation": false, "rotation_period": 86400.0,
	}, read)
	creds := m.must(logical.ReadOperation, "static-creds/app", nil).Data
	require.InDelta(t, 86400, creds["ttl"], 60)
	require.EqualValues(t, 86400, creds["rotation_period"])

	m.must(logical.UpdateOperation, "rotate-role/app", nil)
	second := m.staticPassword("app")
	require.NotEqual(t, first, second)
	require.True(t, works(t, p, "svc", second))
	require.False(t, works(t, p, "svc", first))

	// A schedule takes the place of the period, and clients still see a period.
	m.must(logical.UpdateOperation, "static-roles/app", map[string]any{"rotation_schedule": "0 * * * *", "rotation_window": 3600})
	creds = m.must(logical.ReadOperation, "static-creds/app", nil).Data
	require.EqualValues(t, 3600, creds["rotation_period"])
	require.LessOrEqual(t, creds["ttl"], int64(3600))
	require.Equal(t, "0 * * * *", creds["rotation_schedule"])
	require.EqualValues(t, 3600, creds["rotation_window"])
	require.Equal(t, second, creds["password"])

	for _, test := range []struct {
		field string
		path  string
		data  map[string]any
	}{
		{"username", "static-roles/app", map[string]any{"username": "other"}},
		{"rotation_period", "static-roles/app", map[string]any{"rotation_period": 4}},
		{"rotation_schedule", "static-roles/app", map[string]any{"rotation_schedule": "* * * * * *"}},
		{"rotation_schedule", "static-roles/app", map[string]any{"rotation_schedule": "0 0 30 2 *"}},
		{"rotation_schedule", "static-roles/app", map[string]any{"rotation_schedule": "TZ=Europe/Berlin 0 0 * * *"}},
		{"rotation_window", "static-roles/app", map[string]any{"rotation_window": 3599}},
		{"rotation_window", "static-roles/app", map[string]any{"rotation_period": 60, "rotation_window": 3600}},
		{"rotation_period", "static-roles/app", map[string]any{"rotation_period": 60, "rotation_schedule": "0 0 * * *"}},
		{"rotation_period", "static-roles/new", map[string]any{"db_name": "prod", "username": "svc"}},
		{"db_name", "static-roles/new", map[string]any{"username": "svc", "rotation_period": 60}},
		{"db_name", "static-roles/new", map[string]any{"db_name": "none", "username": "svc", "rotation_period": 60}},
		{"username", "static-roles/new", map[string]any{"db_name": "prod", "rotation_period": 60}},
		{"username", "static-roles/new", map[string]any{"db_name": "prod", "username": "dbops_root", "rotation_period": 60}},
		{"credential_type", "static-roles/new", map[string]any{"db_name": "prod", "username": "svc", "rotation_period": 60, "credential_type": "x"}},
		{"name", "roles/app", map[string]any{"db_name": "prod", "creation_statements": createLogin}},
	} {
		refusal, status := m.refused(logical.UpdateOperation, test.path, test.data)
		require.Equal(t, 400, status, "%v", test.data)
		require.Equal(t, test.field, refusal.Field, "%v", test.data)
	}
	require.Nil(t, m.must(logical.ReadOperation, "static-roles/new", nil))
	refusal, _ := m.refused(logical.CreateOperation, "static-roles/new", map[string]any{"db_name": "prod", "username": "nobody", "rotation_period": 60})
	require.Equal(t, wire.CodeConflict, refusal.Code)
	require.Empty(t, keys(t, m.storage, prefixRotation), "what failed for sure leaves nothing")
	require.Nil(t, m.must(logical.ReadOperation, "static-roles/new", nil))

	m.must(logical.DeleteOperation, "static-roles/app", nil)
	require.True(t, works(t, p, "svc", second))
	_, status := m.refused(logical.ReadOperation, "static-creds/app", nil)
	require.Equal(t, 400, status)
	_, status = m.refused(logical.UpdateOperation, "rotate-role/app", nil)
	require.Equal(t, 404, status)
}

func TestStaticRoles_Onboarding(t *testing.T) {
	t.Parallel()
	m, p := withStatic(t)
	m.must(logical.CreateOperation, "static-roles/known", map[string]any{
		"db_name": "prod", "username": "svc", "manual": true, "skip_import_rotation": true, "password": "before",
	})
	require.Equal(t, "before", m.staticPassword("known"))
	require.True(t, works(t, p, "svc", "before"))
	read := m.must(logical.ReadOperation, "static-roles/known", nil).Data
	require.NotContains(t, read, "last_vault_rotation")
	require.Equal(t, true, read["manual"])
	m.start()
	m.clock.advance(10 * 365 * 24 * time.Hour)
	creds := m.must(logical.ReadOperation, "static-creds/known", nil).Data
	require.Equal(t, "before", creds["password"], "rotated on request only")
	require.EqualValues(t, 0, creds["ttl"])
	require.NotContains(t, creds, "rotation_period")
	m.must(logical.UpdateOperation, "rotate-role/known", nil)
	password := m.staticPassword("known")
	// As when the queue is read from storage during the rotation.
	m.rotations.put(staticRoleKey("known"), "prod", 0, true)
	require.NoError(t, m.rotateStaticRole(t.Context(), m.storage, "known", nil, true))
	require.Equal(t, password, m.staticPassword("known"))
	require.True(t, works(t, p, "svc", password))
	m.must(logical.DeleteOperation, "static-roles/known", nil)

	m.must(logical.UpdateOperation, "config/prod", map[string]any{"skip_static_role_import_rotation": true})
	m.must(logical.CreateOperation, "static-roles/unknown", map[string]any{"db_name": "prod", "username": "svc", "rotation_period": "1h"})
	refusal, _ := m.refused(logical.ReadOperation, "static-creds/unknown", nil)
	require.Equal(t, wire.CodeConflict, refusal.Code)
}

// A key pair goes to the server as its public half only.
func TestStaticRoles_KeyPair(t *testing.T) {
	t.Parallel()
	m, p := withStatic(t)
	role := map[string]any{"db_name": "prod", "username": "svc", "rotation_period": "1h", "credential_type": credentialRSA}
	refusal, _ := m.refused(logical.CreateOperation, "static-roles/app", role)
	require.Equal(t, wire.CodeUnsupported, refusal.Code)
	role["rotation_statements"] = []string{`COMMENT ON ROLE "{{name}}" IS '{{public_key}}'`}
	role["credential_config"] = map[string]any{"key_bits": "3072"}
	m.must(logical.CreateOperation, "static-roles/app", role)
	creds := m.must(logical.ReadOperation, "static-creds/app", nil).Data
	require.NotContains(t, creds, "password")
	key, ok := creds[credentialRSA].(string)
	require.True(t, ok)
	request, err := storedCredential{PrivateKey: key}.request("svc", nil)
	require.NoError(t, err)
	require.Equal(t, string(request.PublicKey), p.Value("postgres", `SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = 'svc'`))
	// Written again without its settings, they stay.
	m.must(logical.UpdateOperation, "static-roles/app", map[string]any{"credential_type": credentialRSA})
	require.Equal(t, map[string]string{"key_bits": "3072"}, m.must(logical.ReadOperation, "static-roles/app", nil).Data["credential_config"])

	// A rotation that was interrupted is rolled forward with its key, as with a password.
	r, err := m.staticRoles.get(t.Context(), m.storage, "app")
	require.NoError(t, err)
	next, err := m.newCredential(t.Context(), m.connectionNow("prod"), r)
	require.NoError(t, err)
	require.NoError(t, putStored(t.Context(), m.storage, prefixRotationRole+"app", intention{
		ConnectionID: m.connectionNow("prod").ID, Username: "svc", Credential: next, StartedAt: m.now(),
	}))
	second := newMount(t, m.storage)
	second.start()
	require.Eventually(t, func() bool { return len(keys(t, m.storage, prefixRotation)) == 0 }, 30*time.Second, 20*time.Millisecond)
	require.Equal(t, next.PrivateKey, second.must(logical.ReadOperation, "static-creds/app", nil).Data[credentialRSA])
	request, err = next.request("svc", nil)
	require.NoError(t, err)
	require.Equal(t, string(request.PublicKey), p.Value("postgres", `SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = 'svc'`))
}

// rotateRootless manages the login svc, whose password is "before", through a
// connection without a user of its own, and returns its first and second password.
func (m *engine) rotateRootless(plugin, url string) (first, second string) {
	m.t.Helper()
	m.must(logical.CreateOperation, "config/rootless", map[string]any{
		"plugin_name": plugin, "connection_url": url, "self_managed": true, "allowed_roles": "*",
	})
	role := map[string]any{"db_name": "rootless", "username": "svc", "rotation_period": "1h"}
	refusal, _ := m.refused(logical.CreateOperation, "static-roles/app", role)
	require.Equal(m.t, "password", refusal.Field)
	role["password"] = "planted-wrong"
	refusal, _ = m.refused(logical.CreateOperation, "static-roles/app", role)
	require.Equal(m.t, wire.CodeLoginRefused, refusal.Code)
	role["password"] = "before"
	m.must(logical.CreateOperation, "static-roles/app", role)
	first = m.staticPassword("app")
	m.must(logical.UpdateOperation, "rotate-role/app", nil)
	_, status := m.refused(logical.UpdateOperation, "rotate-root/rootless", nil)
	require.Equal(m.t, 400, status)
	return first, m.staticPassword("app")
}

// A login that changes its own password needs no root user.
func TestStaticRoles_SelfManaged(t *testing.T) {
	t.Parallel()
	m, p := withStatic(t)
	first, second := m.rotateRootless(postgresPluginName, p.ConnectionURL("postgres"))
	require.False(t, works(t, p, "svc", first))
	require.True(t, works(t, p, "svc", second))
}

// Whatever write is the last before a crash, the next instance knows the
// credential that works.
func TestRotation_CrashAtEachWrite(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"create", "rotate", "self", "root"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			_, p := withStatic(t)
			for left := range 4 {
				p.Exec("postgres", `ALTER ROLE svc PASSWORD 'before'`, `ALTER ROLE dbops_root PASSWORD '`+rootPassword+`'`)
				m := newMount(t, &logical.InmemStorage{})
				m.configure("prod", p)
				role := map[string]any{"db_name": "prod", "username": "svc", "rotation_period": "1h"}
				if kind == "self" {
					role["self_managed_password"] = "before"
				}
				if kind != "create" {
					m.must(logical.CreateOperation, "static-roles/app", role)
				}
				path := map[string]string{"create": "static-roles/app", "rotate": "rotate-role/app", "self": "rotate-role/app", "root": "rotate-root/prod"}[kind]
				_, err := m.HandleRequest(t.Context(), &logical.Request{
					Operation: logical.UpdateOperation, Path: path, Data: map[string]any{}, Storage: &dies{Storage: m.storage, left: left},
				})
				if kind == "create" {
					_, err = m.HandleRequest(t.Context(), &logical.Request{
						Operation: logical.UpdateOperation, Path: path, Data: role, Storage: &dies{Storage: m.storage, left: left},
					})
				}
				require.Equal(t, left < 2, err != nil, "%d: %v", left, err)

				second := newMount(t, m.storage)
				second.start()
				require.Eventually(t, func() bool { return len(keys(t, m.storage, prefixRotation)) == 0 }, 30*time.Second, 20*time.Millisecond, "%d", left)
				switch {
				case kind == "root":
					second.must(logical.UpdateOperation, "reset/prod", nil)
				case kind == "create" && left == 0:
					require.Nil(t, second.must(logical.ReadOperation, "static-roles/app", nil))
					require.True(t, works(t, p, "svc", "before"))
				default:
					require.True(t, works(t, p, "svc", second.staticPassword("app")), "%d", left)
				}
				require.NotContains(t, strings.Join(keys(t, m.storage, ""), " "), "rotation/")
			}
		})
	}
}

// An intention whose change never reached the server is rolled forward too.
func TestRotation_CrashBeforeChange(t *testing.T) {
	t.Parallel()
	m, p := withStatic(t)
	m.must(logical.CreateOperation, "static-roles/app", map[string]any{"db_name": "prod", "username": "svc", "rotation_period": "1h"})
	c, err := m.connections.get(t.Context(), m.storage, "prod")
	require.NoError(t, err)
	for key, username := range map[string]string{prefixRotationRole + "app": "svc", prefixRotationOwn + c.ID: "dbops_root"} {
		require.NoError(t, putStored(t.Context(), m.storage, key, intention{
			Connection: c.Name, ConnectionID: c.ID, Username: username, Credential: storedCredential{Password: "new-" + username}, StartedAt: m.now(),
		}))
	}
	second := newMount(t, m.storage)
	second.start()
	require.Eventually(t, func() bool { return len(keys(t, m.storage, prefixRotation)) == 0 }, 30*time.Second, 20*time.Millisecond)
	require.Equal(t, "new-svc", second.staticPassword("app"))
	require.True(t, works(t, p, "svc", "new-svc"))
	require.True(t, works(t, p, "dbops_root", "new-dbops_root"))
	second.must(logical.UpdateOperation, "reset/prod", nil)
}

func TestRotation_Root(t *testing.T) {
	t.Parallel()
	m, p := withStatic(t)
	m.start()
	m.must(logical.UpdateOperation, "rotate-root/prod", nil)
	require.False(t, works(t, p, "dbops_root", rootPassword))
	m.must(logical.CreateOperation, "roles/app", map[string]any{"db_name": "prod", "creation_statements": createLogin})
	m.must(logical.ReadOperation, "creds/app", nil)
	_, status := m.refused(logical.UpdateOperation, "rotate-root/none", nil)
	require.Equal(t, 404, status)

	// By itself, free here.
	stored := func() string {
		config, err := getStored[storedConnection](t.Context(), m.storage, prefixConfig+"prod")
		require.NoError(t, err)
		return config.Secrets[detailPassword]
	}
	before := stored()
	m.must(logical.UpdateOperation, "config/prod", map[string]any{"rotation_schedule": "0 0 * * *", "rotation_window": "2h"})
	read := m.must(logical.ReadOperation, "config/prod", nil).Data
	require.Equal(t, "0 0 * * *", read["rotation_schedule"])
	require.EqualValues(t, 7200, read["rotation_window"])
	m.must(logical.UpdateOperation, "config/prod", map[string]any{"rotation_period": "1h"})
	m.clock.advance(time.Hour + time.Second)
	require.Eventually(t, func() bool { return stored() != before }, 30*time.Second, 20*time.Millisecond)
	require.True(t, works(t, p, "dbops_root", stored()))
	m.must(logical.ReadOperation, "creds/app", nil)

	m.must(logical.UpdateOperation, "config/prod", map[string]any{"disable_automated_rotation": true})
	require.Equal(t, true, m.must(logical.ReadOperation, "config/prod", nil).Data["disable_automated_rotation"])
	require.True(t, m.connectionNow("prod").NextRootRotation.IsZero())

	reloaded := m.must(logical.UpdateOperation, "reload/"+postgresPluginName, nil).Data
	require.Equal(t, map[string]any{"connections": []string{"prod"}, "count": 1}, reloaded)
	_, status = m.refused(logical.UpdateOperation, "reset/none", nil)
	require.Equal(t, 404, status)
}

// A server restored from a backup of before the password of the connection's own user
// was rotated lets nobody in. The error says since when and what to do, and that works.
func TestRotation_RootOnARestoredServer(t *testing.T) {
	t.Parallel()
	m, p := withStatic(t)
	m.must(logical.CreateOperation, "static-roles/app", map[string]any{"db_name": "prod", "username": "svc", "manual": true})
	m.must(logical.CreateOperation, "roles/leased", map[string]any{"db_name": "prod", "creation_statements": createLogin})
	m.must(logical.UpdateOperation, "rotate-root/prod", nil)
	rotated := m.connectionNow("prod").LastRootRotation.UTC().Format(time.RFC3339)
	restore := func(password string) {
		p.Exec("postgres", `ALTER ROLE dbops_root PASSWORD '`+password+`'`, `ALTER ROLE svc PASSWORD 'before'`,
			`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'dbops_root'`)
	}
	restore(rootPassword)
	for path, operation := range map[string]logical.Operation{
		"creds/leased": logical.ReadOperation, "rotate-role/app": logical.UpdateOperation, "rotate-root/prod": logical.UpdateOperation, "reset/prod": logical.UpdateOperation,
	} {
		refusal, _ := m.refused(operation, path, nil)
		require.Equal(t, wire.CodeLoginRefused, refusal.Code, path)
		for _, part := range []string{`"dbops_root"`, rotated, "backup", "config/prod", "rotate-root/prod", "rotate-all/prod"} {
			require.Contains(t, refusal.Hint, part, path)
		}
	}

	restore("planted-by-the-administrator")
	m.must(logical.UpdateOperation, "config/prod", map[string]any{"password": "planted-by-the-administrator"})
	require.Zero(t, m.connectionNow("prod").LastRootRotation, "a person knows it")
	m.start()
	m.must(logical.UpdateOperation, "rotate-root/prod", nil)
	require.NotZero(t, m.connectionNow("prod").LastRootRotation)
	require.False(t, works(t, p, "dbops_root", "planted-by-the-administrator"))
	m.must(logical.UpdateOperation, "rotate-all/prod", nil)
	require.Eventually(t, func() bool { return len(keys(t, m.storage, prefixRotation)) == 0 }, 30*time.Second, 20*time.Millisecond)
	require.True(t, works(t, p, "svc", m.staticPassword("app")))
	m.must(logical.ReadOperation, "creds/leased", nil)
}

func (m *engine) connectionNow(name string) *connection {
	m.t.Helper()
	c, err := m.connections.get(m.t.Context(), m.storage, name)
	require.NoError(m.t, err)
	return c
}

// rotate-all is done in the background and survives a restart.
func TestRotation_All(t *testing.T) {
	t.Parallel()
	m, p := withStatic(t)
	p.Exec("postgres", `CREATE ROLE svc2 LOGIN`, `GRANT svc2 TO dbops_root WITH ADMIN OPTION`)
	m.must(logical.CreateOperation, "static-roles/a", map[string]any{"db_name": "prod", "username": "svc", "manual": true})
	m.must(logical.CreateOperation, "static-roles/b", map[string]any{"db_name": "prod", "username": "svc2", "rotation_period": "24h"})
	before := []string{m.staticPassword("a"), m.staticPassword("b")}
	disk, first := m.storage, &process{}
	m.storage = &processStorage{Storage: disk, process: first}
	answer := m.must(logical.UpdateOperation, "rotate-all/prod", nil).Data
	require.Equal(t, map[string]any{"roles": []string{"a", "b"}, "count": 2}, answer)
	first.kill()
	m.clean(t.Context())
	m.storage = disk
	granted, err := getStored[wish](t.Context(), disk, prefixRotationAll+"prod")
	require.NoError(t, err)
	second := newMount(t, disk)
	second.start()
	require.Eventually(t, func() bool { return len(keys(t, m.storage, prefixRotation)) == 0 }, 30*time.Second, 20*time.Millisecond)
	require.NotEqual(t, before[0], second.staticPassword("a"))
	require.NotEqual(t, before[1], second.staticPassword("b"))
	require.True(t, works(t, p, "svc2", second.staticPassword("b")))

	// One that was granted when the engine ended is no more than removed.
	password := second.staticPassword("b")
	require.NoError(t, putStored(t.Context(), m.storage, prefixRotationAll+"prod", granted))
	third := newMount(t, m.storage)
	third.start()
	require.Eventually(t, func() bool { return len(keys(t, m.storage, prefixRotation)) == 0 }, 30*time.Second, 20*time.Millisecond)
	require.Equal(t, password, third.staticPassword("b"))
}

// A rotation missed while down is done inside its window, and not after it.
func TestRotation_MissedWhileDown(t *testing.T) {
	t.Parallel()
	m, _ := withStatic(t)
	m.must(logical.CreateOperation, "static-roles/app", map[string]any{
		"db_name": "prod", "username": "svc", "rotation_schedule": "0 0 1 1 *", "rotation_window": "2h",
	})
	first := m.staticPassword("app")
	r, err := m.staticRoles.get(t.Context(), m.storage, "app")
	require.NoError(t, err)

	late := newMount(t, m.storage)
	late.clock.advance(r.NextRotation.Add(3 * time.Hour).Sub(m.now()))
	late.start()
	never(t, 500*time.Millisecond, func() bool { return late.staticPassword("app") != first })
	require.Positive(t, late.must(logical.ReadOperation, "static-creds/app", nil).Data["ttl"], "of the next time")

	inside := newMount(t, m.storage)
	inside.clock.advance(r.NextRotation.Add(time.Hour).Sub(m.now()))
	inside.start()
	require.Eventually(t, func() bool { return inside.staticPassword("app") != first }, 30*time.Second, 20*time.Millisecond)
}

// The own user of a connection is rotated by a schedule: at its time, inside its
// window after an outage, and not after it.
func TestRotation_RootBySchedule(t *testing.T) {
	t.Parallel()
	m, p := withStatic(t)
	m.must(logical.UpdateOperation, "config/prod", map[string]any{"rotation_schedule": "0 0 1 1 *", "rotation_window": "2h"})
	due := m.connectionNow("prod").NextRootRotation
	require.Equal(t, "01-01 00:00", due.UTC().Format("01-02 15:04"))
	password := func(m *engine) string {
		stored, err := getStored[storedConnection](t.Context(), m.storage, prefixConfig+"prod")
		require.NoError(t, err)
		return stored.Secrets[detailPassword]
	}

	late := newMount(t, m.storage)
	late.clock.advance(due.Add(3 * time.Hour).Sub(m.now()))
	late.start()
	never(t, 500*time.Millisecond, func() bool { return password(late) != rootPassword })

	inside := newMount(t, m.storage)
	inside.clock.advance(due.Add(time.Hour).Sub(m.now()))
	inside.start()
	require.Eventually(t, func() bool { return password(inside) != rootPassword }, 30*time.Second, 20*time.Millisecond)
	second := password(inside)
	require.True(t, works(t, p, "dbops_root", second))

	inTime := newMount(t, m.storage)
	inTime.clock.advance(inside.now().Sub(m.now()))
	inTime.start()
	next := inTime.connectionNow("prod").NextRootRotation
	require.Equal(t, due.UTC().AddDate(1, 0, 0), next.UTC())
	never(t, 500*time.Millisecond, func() bool { return password(inTime) != second })
	inTime.clock.advance(next.Add(time.Second).Sub(inTime.now()))
	require.Eventually(t, func() bool { return password(inTime) != second }, 30*time.Second, 20*time.Millisecond)
	require.True(t, works(t, p, "dbops_root", password(inTime)))
}

// A password the server refuses for good is not tried for ever, and the one that
// works is kept.
func TestRotation_RefusedIsGivenUp(t *testing.T) {
	t.Parallel()
	m, p := withStatic(t)
	m.must(logical.CreateOperation, "static-roles/app", map[string]any{"db_name": "prod", "username": "svc", "rotation_period": "1h"})
	first := m.staticPassword("app")
	m.must(logical.UpdateOperation, "static-roles/app", map[string]any{"rotation_statements": []string{`SELECT nonsense('{{password}}')`}})
	require.NoError(t, putStored(t.Context(), m.storage, prefixRotationRole+"app", intention{
		Username: "svc", Credential: storedCredential{Password: "planted-refused"}, StartedAt: m.now(),
	}))
	refusal, _ := m.refused(logical.UpdateOperation, "rotate-role/app", nil)
	require.Equal(t, wire.CodeEngine, refusal.Code)
	require.Empty(t, keys(t, m.storage, prefixRotation))
	require.Equal(t, first, m.staticPassword("app"))
	require.True(t, works(t, p, "svc", first))
}
