package plugin

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Every reason to refuse a request is a 4xx with its own code, and nothing is
// stored.
func TestClone_Refusals(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	ask := func(entity string, fields ...any) (*logical.Response, error) {
		return m.write(entity, "clone/prod/staging", fields...)
	}
	refused := func(code wire.Code, rule string) func(*logical.Response, error) {
		return func(resp *logical.Response, err error) {
			t.Helper()
			require.Equal(t, rule, m.refused(code, resp, err).Rule)
		}
	}
	refused(wire.CodeNoIdentity, "require_authentication")(ask("")) // a root token has no entity
	refused(wire.CodeNoIdentity, "require_authentication")(ask("entity-gone"))
	m.system.add(&logical.Entity{ID: "entity-disabled", Disabled: true})
	refused(wire.CodeNoIdentity, "require_authentication")(ask("entity-disabled"))

	refused(wire.CodeDenied, "default_deny")(ask(bob))
	// Whether a connection exists is told to those only whom a policy gave its name.
	refused(wire.CodeDenied, "default_deny")(m.write(alice, "clone/prod/nowhere"))
	m.must(m.write("", "policies/names", "entities", alice, "sources", "*", "targets", "nowhere,empty,prod", "allowed_operations", "clone"))
	refused(wire.CodeNotFound, "")(m.write(alice, "clone/prod/nowhere"))
	m.must(m.write("", "connections/empty", "labels", "tier=x"))
	refused(wire.CodeNotFound, "")(m.write(alice, "clone/prod/empty")) // no config
	refused(wire.CodeSameDatabase, "same_database")(m.write(alice, "clone/prod/prod", "jobs", "1"))

	for field, value := range map[string]string{"owner": "me", "acl": "some", "jobs": "17", "replace": "maybe"} {
		resp, err := ask(alice, field, value)
		require.Equal(t, field, m.refused(wire.CodeInvalid, resp, err).Field)
	}

	m.must(m.write("", "connections/staging", "purposes", "inspect=i"))
	resp, err := ask(alice)
	e := m.refused(wire.CodeInvalid, resp, err)
	require.Equal(t, "purposes", e.Field)
	require.Contains(t, e.Hint, "connections/staging")
	m.must(m.write("", "connections/staging", "purposes", "inspect=i,write=w"))

	m.must(m.write("", "connections/staging", "protected", true))
	refused(wire.CodeProtectedTarget, "allow_protected_target")(ask(alice))
	m.must(m.write("", "connections/staging", "protected", false))

	m.must(m.write("", "policies/other", "entities", bob, "sources", "*", "targets", "*", "source_labels", "owner=x"))
	refused(wire.CodeUnclassified, "labels")(ask(alice))
	m.must(m.handle("", logical.DeleteOperation, "policies/other"))

	m.must(m.write("", "policies/dev", "allowed_operations", "backup"))
	refused(wire.CodeDenied, "allowed_operations")(ask(alice))
	m.must(m.write("", "policies/dev", "allowed_operations", "clone"))

	m.db.connect("staging", "c2", wire.Endpoint{Engine: wire.EngineMySQL, Host: "db2", Port: 3306, Database: "shop"})
	refused(wire.CodeDenied, "allow_cross_engine_operations")(ask(alice))
	m.db.connect("staging", "c2", wire.Endpoint{Engine: wire.EnginePostgres, Host: "db2", Port: 5432, Database: "shop"})
	m.must(m.write("", "policies/dev", "require_tls", true))
	refused(wire.CodeDenied, "require_tls")(ask(alice))
	m.must(m.write("", "policies/dev", "require_tls", false))

	for _, path := range []string{"merge/prod/staging", "migrate/prod/staging", "backup/prod", "restore/b1/staging"} {
		resp, err := m.write(alice, path)
		require.Contains(t, m.refused(wire.CodeUnsupported, resp, err).Hint, "README")
		resp, err = m.write("", path)
		m.refused(wire.CodeNoIdentity, resp, err)
	}
	require.Empty(t, m.must(m.handle("", logical.ListOperation, "all/operations"))["keys"])
	m.clone()
}

// One database under two names is refused at once, by address and by the servers'
// own word, and a protected name protects the database under its other names.
func TestClone_SameDatabaseUnderTwoNames(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.db.connect("staging", "c2", wire.Endpoint{Engine: wire.EnginePostgres, Host: "DB1", Port: 5432, Database: "shop"})
	resp, err := m.write(alice, "clone/prod/staging")
	m.refused(wire.CodeSameDatabase, resp, err)

	m.db.connect("staging", "c2", wire.Endpoint{Engine: wire.EnginePostgres, Host: "10.0.0.1", Port: 5432, Database: "shop"})
	m.db.identify("prod", wire.ServerIdentity{Engine: wire.EnginePostgres, Server: "77", Database: "shop"})
	m.db.identify("staging", wire.ServerIdentity{Engine: wire.EnginePostgres, Server: "77", Database: "postgres"})
	resp, err = m.write(alice, "clone/prod/staging")
	m.refused(wire.CodeSameDatabase, resp, err)

	m.must(m.write("", "connections/staging", "database", "shop_copy"))
	m.clone() // another database of the same server

	m.db.connect("live", "c3", wire.Endpoint{Engine: wire.EnginePostgres, Host: "10.0.0.1", Port: 5432, Database: "shop_copy"})
	m.must(m.write("", "connections/live", "labels", "tier=gold", "protected", true))
	resp, err = m.write(alice, "clone/prod/staging")
	m.refused(wire.CodeProtectedTarget, resp, err)
}

// A limit of fifty admits exactly fifty of two hundred parallel requests, those of
// many entities included where the limit is the mount's.
func TestClone_LimitIsExactUnderParallelRequests(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		limit    string
		entities int
	}{
		"entity": {"max_operations_per_hour", 1}, "target": {"max_operations_per_hour_target", 7}, "mount": {"max_operations_per_hour_mount", 7},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newDesk(t)
			for i := range c.entities {
				id := fmt.Sprintf("entity-%d", i)
				m.system.add(&logical.Entity{ID: id, Name: id})
			}
			m.must(m.write("", "policies/dev", "entities", "*", "max_operations_per_hour", 0))
			m.must(m.write("", "policies/dev", c.limit, 50))
			var admitted, limited atomic.Int64
			var wait sync.WaitGroup
			for i := range 200 {
				wait.Go(func() {
					_, err := m.write(fmt.Sprintf("entity-%d", i%c.entities), "clone/prod/staging")
					switch {
					case err == nil:
						admitted.Add(1)
					case wire.ParseError(err.Error()) != nil && wire.ParseError(err.Error()).Code == wire.CodeRateLimited:
						limited.Add(1)
					}
				})
			}
			wait.Wait()
			require.EqualValues(t, 50, admitted.Load())
			require.EqualValues(t, 150, limited.Load())
			stored, err := m.storage.List(context.Background(), prefixOperation)
			require.NoError(t, err)
			require.Len(t, stored, 50)

			// The windows come back from storage.
			m.restart()
			resp, err := m.write("entity-0", "clone/prod/staging")
			e := m.refused(wire.CodeRateLimited, resp, err)
			require.Equal(t, c.limit, e.Rule)
			require.True(t, e.RetryAt.Equal(m.clock.now().Add(time.Hour).Truncate(time.Second)), "%v", e.RetryAt)
			m.clock.pass(61 * time.Minute)
			m.must(m.write("entity-0", "clone/prod/staging"))
		})
	}
}

func TestClone_MaxConcurrent(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.must(m.write("", "policies/dev", "max_concurrent", 1))
	op := m.clone()
	resp, err := m.write(alice, "clone/prod/staging")
	require.Equal(t, "max_concurrent", m.refused(wire.CodeRateLimited, resp, err).Rule)
	m.must(m.write(alice, "operations/"+op.ID+"/cancel"))
	m.clone()
}

// A repeated request_id answers the same operation, also when the limit is used up
// and after a restart; other content is refused, another entity is another id.
func TestClone_RequestID(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.must(m.write("", "policies/dev", "entities", alice+","+bob, "max_operations_per_hour", 1))
	first := m.clone("request_id", "r-1")
	require.Regexp(t, `^op-[0-9a-z]{26}$`, first.ID)
	require.Equal(t, first.ID, m.clone("request_id", "r-1").ID)
	m.restart()
	require.Equal(t, first.ID, m.clone("request_id", "r-1").ID)
	resp, err := m.write(alice, "clone/prod/staging", "request_id", "r-1", "jobs", "3")
	m.refused(wire.CodeRequestIDReused, resp, err)
	other := into[wire.Operation](m, m.must(m.write(bob, "clone/prod/staging", "request_id", "r-1")))
	require.NotEqual(t, first.ID, other.ID)

	var wait sync.WaitGroup
	got := make([]string, 20)
	m.must(m.write("", "policies/dev", "max_operations_per_hour", 0))
	for i := range got {
		wait.Go(func() {
			resp, err := m.write(alice, "clone/prod/staging", "request_id", "r-2")
			if err == nil {
				got[i] = resp.Data["id"].(string)
			}
		})
	}
	wait.Wait()
	for _, id := range got {
		require.NotEmpty(t, id)
		require.Equal(t, got[0], id)
	}
}

// A request whose Put failed leaves no trace in the rate windows.
func TestClone_FailedPutFreesItsPlace(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.must(m.write("", "policies/dev", "max_operations_per_hour", 1))
	m.disk.Underlying().FailPut(true)
	_, err := m.write(alice, "clone/prod/staging")
	require.Error(t, err)
	require.Equal(t, wire.CodeInternal, wire.ParseError(err.Error()).Code)
	m.disk.Underlying().FailPut(false)
	m.clone()
}
