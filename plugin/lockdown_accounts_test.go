package plugin

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// withPeople gives the engine an identity store that knows entity-alice, who makes
// its requests, and entity-bob.
func (m *engine) withPeople() {
	m.t.Helper()
	m.system(&identities{
		StaticSystemView: logical.StaticSystemView{DefaultLeaseTTLVal: time.Hour, MaxLeaseTTLVal: 24 * time.Hour},
		entities:         map[string]*logical.Entity{alice: {ID: alice, Name: "alice"}, bob: {ID: bob, Name: "bob"}},
	})
}

func (m *engine) unlock(fields map[string]any) error {
	_, err := m.HandleRequest(m.t.Context(), &logical.Request{
		Operation: logical.UpdateOperation, Path: "unlock", Data: fields, Storage: m.storage, EntityID: bob,
	})
	return err
}

func (m *engine) lockdownState() wire.Lockdown {
	m.t.Helper()
	return decode[wire.Lockdown](m.t, m.must(logical.ReadOperation, "lockdown", nil).Data)
}

// awaitLockdown waits until a lockdown has nothing left.
func (m *engine) awaitLockdown() {
	m.t.Helper()
	testenv.Await(m.t, "the lockdown to have nothing left", 20*time.Second, func() error {
		if state := m.lockdownState(); !state.Done {
			return fmt.Errorf("left: %+v", *state.Left)
		}
		return nil
	})
}

// All logins of the mount go, sessions and all: leased ones, and one that no record
// stands for. Leases are not renewed, but can be revoked. Static and root
// credentials that are due wait, are rotated once that is asked for, and are read
// again after the lockdown.
func TestLockdown_EndsAccountsAndRotates(t *testing.T) {
	t.Parallel()
	m, p := withStatic(t)
	m.must(logical.CreateOperation, "roles/app", map[string]any{"db_name": "prod", "creation_statements": createLogin})
	m.withPeople()
	m.start()
	m.must(logical.CreateOperation, "static-roles/app-svc", map[string]any{"db_name": "prod", "username": "svc", "rotation_period": "1h"})
	static := m.staticPassword("app-svc")
	var last *logical.Response
	for range 12 {
		last = m.must(logical.ReadOperation, "creds/app", nil)
	}
	session, err := login(t, p, last.Data["username"].(string), last.Data["password"].(string))
	require.NoError(t, err)
	mountID, err := m.mountID(t.Context(), m.storage)
	require.NoError(t, err)
	forgotten := usernamePrefix(mountID) + "forgotten"
	root, err := login(t, p, "dbops_root", rootPassword)
	require.NoError(t, err)
	_, err = root.Exec(t.Context(), `CREATE ROLE "`+forgotten+`" LOGIN`)
	require.NoError(t, err)

	m.must(logical.UpdateOperation, "lockdown", map[string]any{"reason": "leak"})
	require.Error(t, m.unlock(map[string]any{"reason": "too early"}))
	m.awaitLockdown()
	require.Equal(t, "0", logins(t, p))
	require.Error(t, session.Ping(t.Context()), "the session was ended")
	require.Empty(t, keys(t, m.storage, prefixAccount))
	_, err = m.renew(last.Secret)
	require.ErrorContains(t, err, "locked: ")
	_, err = m.revoke(last.Secret)
	require.NoError(t, err)
	for _, path := range []string{"creds/app", "static-creds/app-svc"} {
		refusal, status := m.refused(logical.ReadOperation, path, nil)
		require.Equal(t, wire.CodeLocked, refusal.Code)
		require.Equal(t, 423, status)
	}

	m.clock.advance(2 * time.Hour)
	found, _ := m.rotations.take(m.now())
	require.Empty(t, found, "what is due waits")
	m.awaitLockdown()
	require.True(t, works(t, p, "svc", static))
	m.must(logical.UpdateOperation, "lockdown", map[string]any{"reason": "leak", "rotate": true})
	m.awaitLockdown()
	require.False(t, works(t, p, "svc", static), "the static credential was rotated")
	require.False(t, works(t, p, "dbops_root", rootPassword), "the root credential was rotated")

	require.NoError(t, m.unlock(map[string]any{"reason": "over"}))
	require.True(t, works(t, p, "svc", m.staticPassword("app-svc")))
	m.must(logical.ReadOperation, "creds/app", nil)
}

// The engine dies while it ends accounts; the next one goes on and ends all.
func TestLockdown_ResumesAfterCrash(t *testing.T) {
	t.Parallel()
	p := database(t)
	first := withRole(t, p, nil)
	first.withPeople()
	first.start()
	for range 60 {
		first.must(logical.ReadOperation, "creds/app", nil)
	}
	first.must(logical.UpdateOperation, "lockdown", map[string]any{"reason": "leak"})
	testenv.Await(t, "the first accounts to go", 30*time.Second, func() error {
		if len(keys(t, first.storage, prefixAccount)) == 60 {
			return fmt.Errorf("none is gone")
		}
		return nil
	})
	first.work.cancel()
	first.clean(context.Background())
	t.Logf("%s accounts when the engine went", logins(t, p))
	second := newMount(t, first.storage)
	second.withPeople()
	second.start()
	require.Equal(t, "leak", second.lockdownState().Reason)
	second.awaitLockdown()
	require.Equal(t, "0", logins(t, p))
	refusal, _ := second.refused(logical.ReadOperation, "creds/app", nil)
	require.Equal(t, wire.CodeLocked, refusal.Code)
}

// A server that cannot be reached is named with its reason and keeps the lockdown
// from being lifted, until who lifts it names it; it delays no other.
func TestLockdown_UnreachableServer(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, nil)
	m.withPeople()
	m.start()
	m.must(logical.CreateOperation, "config/gone", map[string]any{
		"plugin_name": postgresPluginName, "connection_url": "postgresql://{{username}}:{{password}}@127.0.0.1:1/postgres",
		"username": "x", "password": "planted", "allowed_roles": "*", "verify_connection": false,
	})
	m.must(logical.ReadOperation, "creds/app", nil)
	m.must(logical.UpdateOperation, "lockdown", map[string]any{"reason": "drill", "rotate": true})
	testenv.Await(t, "only the dead server to be left", 20*time.Second, func() error {
		left := m.lockdownState().Left
		if left.Accounts != 0 || len(left.Servers) != 1 || left.Servers[0].Reason == "" || len(left.Rotations) != 1 {
			return fmt.Errorf("left: %+v", *left)
		}
		return nil
	})
	require.Equal(t, "0", logins(t, p))
	left := m.lockdownState().Left
	require.Equal(t, "gone", left.Servers[0].Connection)
	require.Equal(t, wire.CodeUnavailable, left.Servers[0].Code)
	require.Equal(t, wire.LockdownRotation{Root: true, Name: "gone"}, left.Rotations[0])
	require.ErrorContains(t, m.unlock(map[string]any{"reason": "over"}), "gone")
	require.ErrorContains(t, m.unlock(map[string]any{"reason": "over", "leave": "prod"}), "gone")
	require.NoError(t, m.unlock(map[string]any{"reason": "over", "leave": "gone"}))
	require.Equal(t, []string{"gone"}, m.lockdownState().History[0].LeftBehind)
}

// A connection without a user of its own can have made no logins: nobody knocks at its
// server, and a lockdown does not wait for it.
func TestLockdown_ConnectionWithoutAUser(t *testing.T) {
	t.Parallel()
	m, p := withStatic(t)
	m.must(logical.CreateOperation, "config/rootless", map[string]any{
		"plugin_name": postgresPluginName, "connection_url": p.ConnectionURL("postgres"), "self_managed": true, "allowed_roles": "*",
	})
	m.withPeople()
	m.start()
	m.must(logical.UpdateOperation, "lockdown", map[string]any{"reason": "leak"})
	m.awaitLockdown()
	require.NotContains(t, m.log.String(), "logins without a record were not looked for")
}
