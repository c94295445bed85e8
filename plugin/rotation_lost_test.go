package plugin

import (
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// A rotation of the own user was begun, and then its connection deleted and made
// again: the password that the new one was given is not changed behind its back.
func TestRotation_RootOfADeletedConnection(t *testing.T) {
	t.Parallel()
	for what, reached := range map[string]bool{"the server has not heard of it": false, "the server has the new one": true} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			m, p := withStatic(t)
			former := m.connectionNow("prod").ID
			require.NoError(t, putStored(t.Context(), m.storage, prefixRotationOwn+former, intention{
				Connection: "prod", ConnectionID: former, Username: "dbops_root", Credential: storedCredential{Password: "begun"}, StartedAt: m.now(),
			}))
			m.must(logical.DeleteOperation, "config/prod", nil)
			if reached {
				p.Exec("postgres", `ALTER ROLE dbops_root PASSWORD 'begun'`)
			} else {
				m.configure("prod", p)
			}
			second := newMount(t, m.storage)
			second.start()
			require.Eventually(t, func() bool { return len(keys(t, m.storage, prefixRotation)) == 0 }, 30*time.Second, 20*time.Millisecond)
			if reached {
				kept, err := second.retired.get(t.Context(), m.storage, former)
				require.NoError(t, err)
				require.Equal(t, "begun", kept.Secrets[detailPassword], "what ends its logins")
				return
			}
			second.must(logical.UpdateOperation, "reset/prod", nil)
			require.True(t, works(t, p, "dbops_root", rootPassword))
		})
	}
}

// The same while the engine runs: the rotation that goes on when its connection is
// deleted holds up none of the next connection of that name, and is settled after it.
func TestRotation_RootOfAConnectionBeingDeleted(t *testing.T) {
	t.Parallel()
	m, p := withStatic(t)
	m.start()
	former := m.connectionNow("prod").ID
	unlock, err := m.rotationLocks.lock(t.Context(), prefixRotationOwn+former)
	require.NoError(t, err)
	require.NoError(t, putStored(t.Context(), m.storage, prefixRotationOwn+former, intention{
		Connection: "prod", ConnectionID: former, Username: "dbops_root", Credential: storedCredential{Password: "begun"}, StartedAt: m.now(),
	}))
	p.Exec("postgres", `ALTER ROLE dbops_root PASSWORD 'begun'`, `CREATE ROLE next_root LOGIN CREATEROLE PASSWORD 'next'`)
	m.must(logical.DeleteOperation, "config/prod", nil)
	m.must(logical.CreateOperation, "config/prod", map[string]any{
		"plugin_name": postgresPluginName, "connection_url": p.ConnectionURL("postgres"), "username": "next_root", "password": "next", "allowed_roles": "*",
	})
	m.must(logical.UpdateOperation, "rotate-root/prod", nil)
	require.False(t, works(t, p, "next_root", "next"))
	require.Equal(t, []string{prefixRotationOwn + former}, keys(t, m.storage, prefixRotation))
	unlock()
	require.Eventually(t, func() bool { return len(keys(t, m.storage, prefixRotation)) == 0 }, 10*time.Second, 20*time.Millisecond)
	kept, err := m.retired.get(t.Context(), m.storage, former)
	require.NoError(t, err)
	require.Equal(t, "begun", kept.Secrets[detailPassword], "what ends its logins")
}

// The server has the new password of a connection that was deleted since, but does
// not let the user in for a while: it is not given up for that, and ends the logins that are
// left. When another one is let in it is, for it is of no use any more.
func TestRotation_RootOfADeletedConnectionIsRefusedForAWhile(t *testing.T) {
	t.Parallel()
	begin := func(m *engine) (former string) {
		former = m.connectionNow("prod").ID
		require.NoError(t, putStored(t.Context(), m.storage, prefixRotationOwn+former, intention{
			Connection: "prod", ConnectionID: former, Username: "dbops_root", Credential: storedCredential{Password: "begun"}, StartedAt: m.now(),
		}))
		m.must(logical.DeleteOperation, "config/prod", nil)
		return former
	}
	p := database(t)
	p.Exec("postgres", `ALTER ROLE dbops_root PASSWORD 'begun' NOLOGIN`)
	m := newMount(t, &logical.InmemStorage{})
	m.must(logical.CreateOperation, "config/prod", map[string]any{
		"plugin_name": postgresPluginName, "connection_url": p.ConnectionURL("postgres"), "username": "dbops_root", "password": rootPassword,
		"allowed_roles": "*", "verify_connection": false,
	})
	former := begin(m)
	err := m.settleRetired(t.Context(), m.storage, former)
	var refusal *wire.Error
	require.ErrorAs(t, err, &refusal)
	require.Equal(t, wire.CodeLoginRefused, refusal.Code)
	require.Len(t, keys(t, m.storage, prefixRotation), 1, "nobody else knows it")
	// The server's words for a user whose time is over are those for a wrong password.
	p.Exec("postgres", `ALTER ROLE dbops_root LOGIN VALID UNTIL '2020-01-01'`)
	require.Error(t, m.settleRetired(t.Context(), m.storage, former))
	require.Len(t, keys(t, m.storage, prefixRotation), 1)
	p.Exec("postgres", `ALTER ROLE dbops_root VALID UNTIL 'infinity'`)
	require.NoError(t, m.settleRetired(t.Context(), m.storage, former))
	require.Empty(t, keys(t, m.storage, prefixRotation))
	kept, err := m.retired.get(t.Context(), m.storage, former)
	require.NoError(t, err)
	require.Equal(t, "begun", kept.Secrets[detailPassword])

	// The next connection of the same user has another password, and it is right.
	p.Exec("postgres", `ALTER ROLE dbops_root PASSWORD '`+rootPassword+`'`)
	m = newMount(t, &logical.InmemStorage{})
	m.configure("prod", p)
	former = begin(m)
	p.Exec("postgres", `ALTER ROLE dbops_root PASSWORD 'of somebody'`)
	require.Error(t, m.settleRetired(t.Context(), m.storage, former))
	require.Len(t, keys(t, m.storage, prefixRotation), 1)
	m.must(logical.CreateOperation, "config/next", map[string]any{
		"plugin_name": postgresPluginName, "connection_url": p.ConnectionURL("postgres"), "username": "dbops_root", "password": "of somebody",
	})
	require.NoError(t, m.settleRetired(t.Context(), m.storage, former))
	require.Empty(t, keys(t, m.storage, prefixRotation))
	kept, err = m.retired.get(t.Context(), m.storage, former)
	require.NoError(t, err)
	require.Equal(t, rootPassword, kept.Secrets[detailPassword])
}

// What storage schema 2 kept of a rotation that was begun is moved, whatever write of
// that is the last before a crash, and the rotation rolled forward.
func TestSchema_TakesOverBegunRootRotation(t *testing.T) {
	t.Parallel()
	_, p := withStatic(t)
	for left := range 3 {
		p.Exec("postgres", `ALTER ROLE dbops_root PASSWORD '`+rootPassword+`'`)
		m := newMount(t, &logical.InmemStorage{})
		m.configure("prod", p)
		p.Exec("postgres", `ALTER ROLE dbops_root PASSWORD 'begun'`)
		require.NoError(t, putStored(t.Context(), m.storage, prefixRotationRoot+"prod", intention{
			ConnectionID: m.connectionNow("prod").ID, Username: "dbops_root", Credential: storedCredential{Password: "begun"}, StartedAt: m.now(),
		}))
		err := m.adoptRoot(t.Context(), &dies{Storage: m.storage, left: left}, "prod")
		require.Equal(t, left < 2, err != nil, "%d: %v", left, err)
		second := newMount(t, m.storage)
		second.start()
		require.Eventually(t, func() bool { return len(keys(t, m.storage, prefixRotation)) == 0 }, 10*time.Second, 20*time.Millisecond, "%d", left)
		require.Equal(t, "begun", second.connectionNow("prod").Secrets[detailPassword], "%d", left)
		require.NotZero(t, second.connectionNow("prod").LastRootRotation, "%d", left)
	}
}

// A rotation was begun on a connection that has been deleted or re-pointed since, and
// whose server is gone. It holds up no rotation of the next connection of that name, is
// kept while logins of the former one may be left, and is given up with it.
func TestRotation_RootOfAnotherServer(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"deleted", "re-pointed"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			p := database(t)
			gone := "postgresql://{{username}}:{{password}}@" + testenv.BlackHole(t).String() + "/x"
			m := newMount(t, &logical.InmemStorage{})
			m.must(logical.CreateOperation, "config/prod", map[string]any{
				"plugin_name": postgresPluginName, "connection_url": gone, "username": "dbops_root", "password": "planted-former",
				"allowed_roles": "*", "verify_connection": false,
			})
			former := m.connectionNow("prod").ID
			// As a version of before storage schema 3 was killed.
			require.NoError(t, putStored(t.Context(), m.storage, prefixRotationRoot+"prod", intention{
				ConnectionID: former, Username: "dbops_root", Credential: storedCredential{Password: "planted-begun"}, StartedAt: m.now(),
			}))
			if how == "deleted" {
				m.must(logical.DeleteOperation, "config/prod", nil)
				m.configure("prod", p)
			} else {
				m.must(logical.UpdateOperation, "config/prod", map[string]any{"connection_url": p.ConnectionURL("postgres"), "password": rootPassword})
			}
			require.NotEqual(t, former, m.connectionNow("prod").ID)

			m.must(logical.UpdateOperation, "rotate-root/prod", nil)
			require.False(t, works(t, p, "dbops_root", rootPassword))
			kept := keys(t, m.storage, prefixRotation)
			require.Len(t, kept, 1, "its password may be the one that works there")
			begun, err := getStored[intention](t.Context(), m.storage, kept[0])
			require.NoError(t, err)
			require.Equal(t, []string{former, "planted-begun"}, []string{begun.ConnectionID, begun.Credential.Password})

			// The next instance finds it, and rotates by itself what is due.
			m.must(logical.UpdateOperation, "config/prod", map[string]any{"rotation_period": "1h"})
			before := m.connectionNow("prod").Secrets[detailPassword]
			second := newMount(t, m.storage)
			second.clock.advance(2 * time.Hour)
			second.start()
			require.Eventually(t, func() bool { return second.connectionNow("prod").Secrets[detailPassword] != before }, 10*time.Second, 20*time.Millisecond)
			require.Equal(t, kept, keys(t, m.storage, prefixRotation))
			second.clock.advance(25 * time.Hour)
			second.ticksUntil(func() bool { return len(keys(t, m.storage, prefixRetired)) == 0 })
			second.clock.advance(longestRetry)
			require.Eventually(t, func() bool { return len(keys(t, m.storage, prefixRotation)) == 0 }, 10*time.Second, 20*time.Millisecond)
		})
	}
}

// A login that Vault's host is not let in with says nothing of its password: what may
// be the one that works is kept until it is sure that it is not.
func TestRotation_LoginThatMayNotComeFromHere(t *testing.T) {
	t.Parallel()
	p := testenv.Postgres(t, testenv.PostgresOptions{HBA: []string{"host all svc all reject", "local all all trust"}})
	p.Exec("postgres", `CREATE ROLE svc LOGIN`, `CREATE ROLE dbops_root LOGIN SUPERUSER PASSWORD '`+rootPassword+`'`)
	m := newMount(t, &logical.InmemStorage{})
	m.configure("prod", p)
	m.must(logical.CreateOperation, "static-roles/app", map[string]any{"db_name": "prod", "username": "svc", "rotation_period": "1h"})
	// The server took it, the answer was lost, and then it took no more for a while.
	require.NoError(t, putStored(t.Context(), m.storage, prefixRotationRole+"app", intention{
		Username: "svc", Credential: storedCredential{Password: "begun"}, StartedAt: m.now(),
	}))
	m.must(logical.UpdateOperation, "static-roles/app", map[string]any{"rotation_statements": []string{`SELECT nonsense('{{password}}')`}})
	refusal, _ := m.refused(logical.UpdateOperation, "rotate-role/app", nil)
	require.Equal(t, wire.CodeEngine, refusal.Code)
	require.Len(t, keys(t, m.storage, prefixRotationRole), 1, "the password that may work is not forgotten")
	m.must(logical.UpdateOperation, "static-roles/app", map[string]any{"rotation_statements": []string{}})
	m.must(logical.UpdateOperation, "rotate-role/app", nil)
	require.Empty(t, keys(t, m.storage, prefixRotation))
	require.Equal(t, "begun", m.staticPassword("app"))
}

// Statements that cannot be rendered fail before anybody logs in. That says nothing of
// which password works: one that the server never had is not taken for the present one.
func TestRotation_RefusedBeforeTheLogin(t *testing.T) {
	t.Parallel()
	m, _ := withStatic(t)
	c := m.connectionNow("prod")
	m.must(logical.UpdateOperation, "config/prod", map[string]any{"root_rotation_statements": []string{`ALTER ROLE "{{username}}" PASSWORD '{{password}}`}})
	require.NoError(t, putStored(t.Context(), m.storage, prefixRotationOwn+c.ID, intention{
		Connection: "prod", ConnectionID: c.ID, Username: "dbops_root", Credential: storedCredential{Password: "planted-never-there"}, StartedAt: m.now(),
	}))
	refusal, _ := m.refused(logical.UpdateOperation, "rotate-root/prod", nil)
	require.Equal(t, wire.CodeInvalid, refusal.Code)
	require.Empty(t, keys(t, m.storage, prefixRotation), "the old one is let in")
	m.must(logical.UpdateOperation, "reset/prod", nil)
	m.must(logical.UpdateOperation, "config/prod", map[string]any{"root_rotation_statements": []string{}})
	m.must(logical.UpdateOperation, "rotate-root/prod", nil)
}

// The own user of a connection is never rotated as a static role: the connection would
// not know the new password.
func TestStaticRoles_OwnUserOfAConnection(t *testing.T) {
	t.Parallel()
	m, p := withStatic(t)
	p.Exec("postgres", `CREATE ROLE other_root LOGIN CREATEROLE PASSWORD 'planted-other'`)
	m.must(logical.CreateOperation, "static-roles/app", map[string]any{"db_name": "prod", "username": "svc", "rotation_period": "1h"})
	password := m.staticPassword("app")
	m.must(logical.CreateOperation, "config/svc", map[string]any{
		"plugin_name": postgresPluginName, "connection_url": p.ConnectionURL("postgres"), "username": "svc", "password": password, "allowed_roles": "*",
	})
	refusal, _ := m.refused(logical.UpdateOperation, "static-roles/app", map[string]any{"db_name": "svc"})
	require.Equal(t, "username", refusal.Field)
	refusal, _ = m.refused(logical.UpdateOperation, "static-roles/app", map[string]any{"db_name": "none"})
	require.Equal(t, "db_name", refusal.Field)

	// The connection's user becomes the role's.
	m.must(logical.UpdateOperation, "config/prod", map[string]any{"username": "svc", "password": password})
	refusal, _ = m.refused(logical.UpdateOperation, "rotate-role/app", nil)
	require.Equal(t, "username", refusal.Field)
	require.True(t, works(t, p, "svc", password))
}
