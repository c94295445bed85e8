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
			require.NoError(t, putStored(t.Context(), m.storage, prefixRotationRoot+"prod", intention{
				ConnectionID: m.connectionNow("prod").ID, Username: "dbops_root", Credential: storedCredential{Password: "begun"}, StartedAt: m.now(),
			}))
			former := m.connectionNow("prod").ID
			m.must(logical.DeleteOperation, "config/prod", nil)
			if reached {
				p.Exec("postgres", `ALTER ROLE dbops_root PASSWORD 'begun'`)
			} else {
				m.configure("prod", p)
			}
			second := newMount(t, m.storage)
			second.start()
			require.Eventually(t, func() bool { return len(keys(t, m.storage, prefixRotation)) == 0 }, 10*time.Second, 20*time.Millisecond)
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
