package plugin

import (
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// accountNames are the logins an instance knows of.
func accountNames(m *engine) []string {
	var names []string
	for name := range m.accounts.index.usernames() {
		names = append(names, name)
	}
	return names
}

// stored is true while anything of accounts stands in storage.
func storedAccounts(t *testing.T, m *engine) bool {
	t.Helper()
	return len(keys(t, m.storage, prefixAccount))+len(keys(t, m.storage, prefixRevocation)) > 0
}

// What storage used to hold stands beside the login at the server, and what there
// is to do with a lease is done by another instance as well, without any write.
func TestNotes_ServeAnotherInstance(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, map[string]any{"default_ttl": "10m", "max_ttl": "1h"})
	kept, renewed := m.must(logical.ReadOperation, "creds/app", nil), m.must(logical.ReadOperation, "creds/app", nil)
	require.False(t, storedAccounts(t, m))
	note := p.Value("postgres", `SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = $1`, kept.Data["username"])
	require.Contains(t, note, "entity-alice")
	require.NotContains(t, note, kept.Data["password"])

	second := newMount(t, m.storage)
	_, err := second.renew(renewed.Secret)
	require.NoError(t, err, "before it was started")
	require.Equal(t, "2", logins(t, p))
	require.ElementsMatch(t, []string{kept.Data["username"].(string), renewed.Data["username"].(string)}, accountNames(second))
	third := newMount(t, m.storage)
	_, err = third.revoke(renewed.Secret)
	require.NoError(t, err)
	require.Equal(t, "1", logins(t, p))
	_, err = newMount(t, m.storage).renew(renewed.Secret)
	require.ErrorContains(t, err, string(wire.CodeLeaseLost))
	require.False(t, storedAccounts(t, m))
}

// A login whose process died before its lease was made is ended in time by the next
// one, which finds it at the server.
func TestNotes_CrashBeforeTheLease(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, nil)
	_, err := m.issueAccount(t.Context(), m.storage, accountRequest{Connection: "prod", Role: "app", TTL: time.Minute})
	require.NoError(t, err)
	second := newMount(t, m.storage)
	second.start()
	require.Eventually(t, func() bool { return len(accountNames(second)) == 1 }, 30*time.Second, 20*time.Millisecond)
	second.clock.advance(time.Minute)
	second.tick()
	never(t, 300*time.Millisecond, func() bool { return logins(t, p) == "0" }) // it is left to its lease for a while
	second.clock.advance(endGrace + time.Second)
	second.ticksUntil(func() bool { return logins(t, p) == "0" })
	require.False(t, storedAccounts(t, second))
}

// What another process had begun when it ended may come after the first look.
func TestNotes_LateLoginIsFound(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, nil)
	second := newMount(t, m.storage)
	second.start()
	c, err := second.connections.get(t.Context(), m.storage, "prod")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return second.accounts.index.wasAsked(c.ID) }, 30*time.Second, 20*time.Millisecond)
	m.must(logical.ReadOperation, "creds/app", nil)
	require.Empty(t, accountNames(second))
	second.clock.advance(ambiguousWait)
	second.ticksUntil(func() bool { return len(accountNames(second)) == 1 })
}

// A server that is down at the start is asked when it is back.
func TestNotes_ServerDownAtTheStart(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, nil)
	_, err := m.issueAccount(t.Context(), m.storage, accountRequest{Connection: "prod", Role: "app", TTL: time.Minute})
	require.NoError(t, err)
	p.Stop()
	second := newMount(t, m.storage)
	second.start()
	c, err := second.connections.get(t.Context(), m.storage, "prod")
	require.NoError(t, err)
	never(t, 500*time.Millisecond, func() bool { return second.accounts.index.wasAsked(c.ID) })
	p.Start()
	second.clock.advance(time.Minute + endGrace + time.Second)
	second.ticksUntil(func() bool { return logins(t, p) == "0" })
}

// A deleted connection stays known as long as its server keeps a login of it, over
// a restart too.
func TestNotes_DeletedConnection(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, map[string]any{"default_ttl": "5m"})
	lease := m.must(logical.ReadOperation, "creds/app", nil)
	m.must(logical.ReadOperation, "creds/app", nil)
	m.must(logical.DeleteOperation, "config/prod", nil)

	second := newMount(t, m.storage)
	_, err := second.revoke(lease.Secret)
	require.NoError(t, err)
	require.Equal(t, "1", logins(t, p))
	second.start()
	require.Eventually(t, func() bool { return len(accountNames(second)) == 1 }, 30*time.Second, 20*time.Millisecond)
	second.clock.advance(2 * time.Minute)
	second.tick()
	never(t, 300*time.Millisecond, func() bool { return len(keys(t, m.storage, prefixRetired)) == 0 })
	second.clock.advance(4 * time.Minute)
	second.ticksUntil(func() bool { return logins(t, p) == "0" && len(keys(t, m.storage, prefixRetired)) == 0 })
}

// Two connections to one server: each knows its own logins after a start, and their
// limits count them.
func TestNotes_TwoConnectionsToOneServer(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, nil)
	m.configure("other", p)
	m.must(logical.UpdateOperation, "config/other", map[string]any{capLeases: 2})
	m.must(logical.CreateOperation, "roles/other", map[string]any{"db_name": "other", "creation_statements": createLogin})
	m.must(logical.ReadOperation, "creds/app", nil)
	m.must(logical.ReadOperation, "creds/app", nil)
	m.must(logical.ReadOperation, "creds/other", nil)

	second := newMount(t, m.storage)
	second.must(logical.ReadOperation, "creds/other", nil)
	refusal, _ := second.refused(logical.ReadOperation, "creds/other", nil)
	require.Equal(t, capLeases, refusal.Rule)
}

// Only what the server can hold is left to it.
func TestNotes_RolesWithRecordsInStorage(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, nil)
	for what, role := range map[string]map[string]any{
		"own comment":           {"creation_statements": createStored},
		"no expiry":             {"creation_statements": `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}'`},
		"revocation statements": {"creation_statements": createLogin, "revocation_statements": `DROP ROLE "{{name}}"`},
		"renew statements":      {"creation_statements": createLogin, "revocation_statements": "", "renew_statements": `ALTER ROLE "{{name}}" CONNECTION LIMIT 7`},
		"a name without our id": {"creation_statements": createLogin, "renew_statements": ""},
	} {
		t.Run(what, func(t *testing.T) {
			m := newMount(t, &logical.InmemStorage{})
			m.configure("prod", p)
			if what == "a name without our id" {
				m.must(logical.UpdateOperation, "config/prod", map[string]any{"username_template": "own-{{random 12}}"})
			}
			role["db_name"] = "prod"
			m.must(logical.CreateOperation, "roles/app", role)
			response := m.must(logical.ReadOperation, "creds/app", nil)
			require.Len(t, keys(t, m.storage, prefixAccount), 1)
			_, err := m.renew(response.Secret)
			require.NoError(t, err)
			_, err = m.revoke(response.Secret)
			require.NoError(t, err)
			require.False(t, storedAccounts(t, m))
		})
	}
	require.Equal(t, "0", logins(t, p))
	// Statements that come later put the record into storage.
	lease := m.must(logical.ReadOperation, "creds/app", nil)
	require.False(t, storedAccounts(t, m))
	m.must(logical.UpdateOperation, "roles/app", map[string]any{"renew_statements": `ALTER ROLE "{{name}}" CONNECTION LIMIT 7`})
	_, err := m.renew(lease.Secret)
	require.NoError(t, err)
	require.Len(t, keys(t, m.storage, prefixAccount), 1)
	_, err = m.revoke(lease.Secret)
	require.NoError(t, err)
	require.False(t, storedAccounts(t, m))
}

func TestRecordOfNote(t *testing.T) {
	t.Parallel()
	c := &connection{storedConnection: storedConnection{Name: "prod", ID: "c1"}}
	created := time.UnixMilli(1_800_000_000_123)
	record := &accountRecord{ID: "creds/01X", ConnectionID: "c1", Role: "app", Username: "u", EntityID: "e", CreatedAt: created}
	note, err := noteOf(record, created.Add(2*time.Hour))
	require.NoError(t, err)
	expires := created.Add(time.Hour)
	for _, test := range []struct {
		what  string
		login account.Login
		until time.Time // zero: none of ours
	}{
		{"alive", account.Login{CanLogin: true, Expires: expires, Note: note}, expires.Add(-expirySlack)},
		{"being ended", account.Login{Expires: expires, Note: note}, created},
		{"its end was taken away", account.Login{CanLogin: true, Note: note}, created.Add(2 * time.Hour)},
		{"no note", account.Login{CanLogin: true, Expires: expires}, time.Time{}},
		{"somebody's comment", account.Login{CanLogin: true, Expires: expires, Note: "of the billing team"}, time.Time{}},
		{"other JSON", account.Login{CanLogin: true, Expires: expires, Note: `{"record":"creds/01X"}`}, time.Time{}},
		{"of an operation", account.Login{CanLogin: true, Expires: expires, Note: `{"dbops":1,"record":"op-1/01X"}`}, time.Time{}},
	} {
		test.login.Name = "u"
		got, _, ok := recordOfNote(test.login, c)
		require.Equal(t, !test.until.IsZero(), ok, test.what)
		if !ok {
			continue
		}
		require.WithinDuration(t, test.until, got.ExpiresAt, 0, test.what)
		require.True(t, got.atServer)
		require.Equal(t, []any{record.ID, "prod", "c1", "app", "u", "e"}, []any{got.ID, got.Connection, got.ConnectionID, got.Role, got.Username, got.EntityID}, test.what)
		require.WithinDuration(t, created, got.CreatedAt, 0, test.what)
	}
}

// A mount of version 1 is taken over; its records in storage are still records.
func TestSchema_TakesOverVersion1(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, map[string]any{"creation_statements": createStored})
	require.NoError(t, putStored(t.Context(), m.storage, keySchema, schema{Version: 1}))
	response := m.must(logical.ReadOperation, "creds/app", nil)
	delete(response.Secret.InternalData, "connection_id")
	delete(response.Secret.InternalData, "at_server")
	second := newMount(t, m.storage)
	second.start()
	stored, err := getStored[schema](t.Context(), m.storage, keySchema)
	require.NoError(t, err)
	require.Equal(t, schemaVersion, stored.Version)
	_, err = second.renew(response.Secret)
	require.NoError(t, err)
	_, err = second.revoke(response.Secret)
	require.NoError(t, err)
	require.Equal(t, "0", logins(t, p))
}
