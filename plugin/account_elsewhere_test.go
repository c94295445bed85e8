package plugin

import (
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// copyLogin makes at to what a copy of from has of a login: name, end and note.
func copyLogin(t *testing.T, from, to *testenv.PostgresServer, username string) {
	t.Helper()
	note := from.Value("postgres", `SELECT quote_literal(shobj_description(oid, 'pg_authid')) FROM pg_roles WHERE rolname = $1`, username)
	until := from.Value("postgres", `SELECT quote_literal(rolvaliduntil) FROM pg_roles WHERE rolname = $1`, username)
	root, err := login(t, to, "dbops_root", rootPassword)
	require.NoError(t, err)
	for _, statement := range []string{
		`CREATE ROLE "` + username + `" LOGIN VALID UNTIL ` + until, `COMMENT ON ROLE "` + username + `" IS ` + note,
	} {
		_, err := root.Exec(t.Context(), statement)
		require.NoError(t, err)
	}
}

// A copy of a server that is configured too has copies of its logins. They go when
// their time is over, though the server they were copied from knows them no more.
func TestNotes_CopyOfAServer(t *testing.T) {
	t.Parallel()
	p, other := database(t), database(t)
	m := withRole(t, p, map[string]any{"default_ttl": "1m"})
	m.configure("copy", other)
	response := m.must(logical.ReadOperation, "creds/app", nil)
	copyLogin(t, p, other, response.Data["username"].(string))
	m.start()
	_, err := m.revoke(response.Secret)
	require.NoError(t, err)
	require.Equal(t, "0", logins(t, p))
	require.Equal(t, "1", logins(t, other))
	m.clock.advance(orphansEvery + time.Minute)
	m.ticksUntil(func() bool { return logins(t, other) == "0" })
	require.False(t, storedAccounts(t, m))
}

// While the server that they were copied from is not heard they may be its own; they go
// soon after it is, not ten minutes later.
func TestNotes_CopyOfAServerThatIsHeardLate(t *testing.T) {
	t.Parallel()
	p, other := database(t), database(t)
	m := withRole(t, p, map[string]any{"default_ttl": "1m"})
	m.configure("copy", other)
	copyLogin(t, p, other, m.must(logical.ReadOperation, "creds/app", nil).Data["username"].(string))
	second := newMount(t, m.storage)
	second.clock.advance(3 * time.Minute)
	ids := map[string]string{}
	for _, name := range []string{"prod", "copy"} {
		ids[name] = second.connectionNow(name).ID
	}
	p.Pause()
	second.start()
	second.ticksUntil(func() bool { return second.accounts.strangers.settled(ids["copy"]) })
	require.False(t, second.accounts.index.wasAsked(ids["prod"]))
	require.Equal(t, "1", logins(t, other))
	p.Unpause()
	since := second.now()
	second.ticksUntil(func() bool { return logins(t, other) == "0" && logins(t, p) == "0" })
	require.Less(t, second.now().Sub(since), orphansEvery/2)
}

// A lockdown does not wait for their time.
func TestNotes_CopyOfAServerInALockdown(t *testing.T) {
	t.Parallel()
	p, other := database(t), database(t)
	m := withRole(t, p, nil)
	m.configure("copy", other)
	copyLogin(t, p, other, m.must(logical.ReadOperation, "creds/app", nil).Data["username"].(string))
	m.withPeople()
	m.start()
	m.must(logical.UpdateOperation, "lockdown", map[string]any{"reason": "leak"})
	m.awaitLockdown()
	require.Equal(t, "0", logins(t, p))
	require.Equal(t, "0", logins(t, other))
}

// What another Vault with this mount's id has renewed, such as one that was started
// from a snapshot, is left until its new time.
func TestNotes_RenewedBySomebodyElse(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, map[string]any{"default_ttl": "1m"})
	response := m.must(logical.ReadOperation, "creds/app", nil)
	second := newMount(t, m.storage)
	second.start()
	require.Eventually(t, func() bool { return len(accountNames(second)) == 1 }, 30*time.Second, 20*time.Millisecond)
	response.Secret.Increment = 30 * time.Minute
	_, err := m.renew(response.Secret)
	require.NoError(t, err)

	second.clock.advance(time.Minute + endGrace + time.Second)
	never(t, time.Second, func() bool { second.tick(); return logins(t, p) == "0" })
	_, err = login(t, p, response.Data["username"].(string), response.Data["password"].(string))
	require.NoError(t, err)
	second.clock.advance(30 * time.Minute)
	second.ticksUntil(func() bool { return logins(t, p) == "0" })
	require.False(t, storedAccounts(t, m))
}

// A connection that was deleted and made again: what the former one made is ended
// though its password has been rotated since.
func TestAccounts_RootRotatedAfterTheConnectionWasMadeAgain(t *testing.T) {
	t.Parallel()
	for what, own := range map[string]string{"kept by the server": createMember, "kept in storage": createStored} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			p := database(t)
			m := withRole(t, p, map[string]any{"creation_statements": own})
			response := m.must(logical.ReadOperation, "creds/app", nil)
			m.must(logical.DeleteOperation, "config/prod", nil)
			m.configure("again", p)
			// Another one to the same server, which is asked before and may not.
			p.Exec("postgres", `CREATE ROLE weak LOGIN PASSWORD 'planted-weak'`)
			m.must(logical.CreateOperation, "config/a-weak", map[string]any{
				"plugin_name": postgresPluginName, "connection_url": p.ConnectionURL("postgres"), "username": "weak", "password": "planted-weak",
			})
			m.must(logical.UpdateOperation, "rotate-root/again", nil)
			require.Equal(t, "1", logins(t, p))
			_, err := m.revoke(response.Secret)
			require.NoError(t, err)
			require.Equal(t, "0", logins(t, p))
			require.False(t, storedAccounts(t, m))
		})
	}
}

// The user of a connection that ends what a former one made runs no statement of a
// role that it does not allow.
func TestAccounts_EndedByAConnectionThatDoesNotAllowTheRole(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, map[string]any{"revocation_statements": []string{`CREATE ROLE planted`}})
	response := m.must(logical.ReadOperation, "creds/app", nil)
	m.must(logical.DeleteOperation, "config/prod", nil)
	m.configure("again", p)
	m.must(logical.UpdateOperation, "config/again", map[string]any{"allowed_roles": "others"})
	m.must(logical.UpdateOperation, "rotate-root/again", nil)
	_, err := m.revoke(response.Secret)
	require.NoError(t, err)
	require.Equal(t, "0", logins(t, p))
	require.False(t, storedAccounts(t, m))
	require.Equal(t, "0", p.Value("postgres", `SELECT count(*) FROM pg_roles WHERE rolname = 'planted'`))
}

// A connection whose configuration no version of today would store, as an older one
// may have: the lease ends, and the login when the configuration is right.
func TestAccounts_ConnectionThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, nil)
	response := m.must(logical.ReadOperation, "creds/app", nil)
	stored := m.connectionNow("prod").storedConnection
	url := stored.Details["connection_url"]
	stored.Details["connection_url"] = "of another time"
	require.NoError(t, putStored(t.Context(), m.storage, prefixConfig+"prod", stored))

	second := newMount(t, m.storage)
	_, err := second.revoke(response.Secret)
	require.NoError(t, err)
	require.Len(t, keys(t, m.storage, prefixRevocation), 1)
	stored.Details["connection_url"] = url
	require.NoError(t, putStored(t.Context(), m.storage, prefixConfig+"prod", stored))
	second.start()
	second.clock.advance(lastRetry * 2)
	second.ticksUntil(func() bool { return logins(t, p) == "0" })
	require.False(t, storedAccounts(t, m))
}

// A node that may not write, a performance standby or secondary, makes no login that
// only another one could end: Vault asks the node that may.
func TestCreds_OnANodeThatMayNotWrite(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, nil)
	for _, state := range []consts.ReplicationState{consts.ReplicationPerformanceStandby, consts.ReplicationPerformanceSecondary} {
		standby := newMount(t, m.storage)
		standby.system(&logical.StaticSystemView{DefaultLeaseTTLVal: time.Hour, MaxLeaseTTLVal: 24 * time.Hour, ReplicationStateVal: state})
		standby.start()
		_, err := standby.request(logical.ReadOperation, "creds/app", nil)
		require.Equal(t, logical.ErrReadOnly, err)
		require.Equal(t, "0", logins(t, p))
	}
	m.start()
	require.Equal(t, wire.EnginePostgres, m.connectionNow("prod").product.engine)
	m.must(logical.ReadOperation, "creds/app", nil)
}
