package plugin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/race"
)

func (m *engine) issue(operation string, side wire.Side) issuedAccount {
	m.t.Helper()
	issued, err := m.issueAccount(m.t.Context(), m.storage, accountRequest{
		Connection: "prod", Role: "app", OperationID: operation, Side: side, Purpose: wire.PurposeRead,
		TTL: 15 * time.Minute, DisplayName: "agent", ConnectionLimit: 3,
	})
	require.NoError(m.t, err)
	return issued
}

func TestAccounts_OfAnOperationEndTogether(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, nil)
	source, target := m.issue("clone-1", wire.Source), m.issue("clone-1", wire.Target)
	other := m.issue("clone-2", wire.Source)
	require.Equal(t, "3", p.Value("postgres", `SELECT rolconnlimit::text FROM pg_roles WHERE rolname = $1`, source.Username))

	exists := func(username string) bool {
		return p.Value("postgres", `SELECT count(*) FROM pg_roles WHERE rolname = $1`, username) == "1"
	}
	require.NoError(t, m.endOperationAccounts(t.Context(), m.storage, "clone-1", wire.Source))
	require.False(t, exists(source.Username))
	require.True(t, exists(target.Username))
	require.NoError(t, m.endOperationAccounts(t.Context(), m.storage, "clone-1", ""))
	require.False(t, exists(target.Username))
	require.True(t, exists(other.Username))
	require.NoError(t, m.endOperationAccounts(t.Context(), m.storage, "clone-1", ""), "nothing left is success")
	require.Error(t, m.endOperationAccounts(t.Context(), m.storage, groupCreds, ""))

	require.NoError(t, m.renewAccount(t.Context(), m.storage, other.RecordID, time.Hour))
	require.NoError(t, m.endAccount(t.Context(), m.storage, other.RecordID))
	require.NoError(t, m.endAccount(t.Context(), m.storage, other.RecordID))
	require.ErrorContains(t, m.renewAccount(t.Context(), m.storage, other.RecordID, time.Hour), string(wire.CodeLeaseLost))
	require.Empty(t, keys(t, m.storage, prefixAccount))
}

// dies makes storage fail from the n-th Put or Delete on, as if the process had
// ended there.
type dies struct {
	logical.Storage
	mu   sync.Mutex
	left int
}

var errDied = errors.New("died")

func (d *dies) step() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.left <= 0 {
		return errDied
	}
	d.left--
	return nil
}

func (d *dies) Put(ctx context.Context, entry *logical.StorageEntry) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.Storage.Put(ctx, entry)
}

func (d *dies) Delete(ctx context.Context, key string) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.Storage.Delete(ctx, key)
}

// Whatever write is the last before a crash, the next instance leaves no login
// and no record behind once their time is over.
func TestAccounts_CrashAtEachWrite(t *testing.T) {
	t.Parallel()
	p := database(t)
	for left := range 4 {
		t.Run(fmt.Sprint(left), func(t *testing.T) {
			storage := &logical.InmemStorage{}
			first := newMount(t, storage)
			first.configure("prod", p)
			first.must(logical.CreateOperation, "roles/app", map[string]any{"db_name": "prod", "creation_statements": createStored})
			_, err := first.mountID(t.Context(), storage)
			require.NoError(t, err)
			crashing := &dies{Storage: storage, left: left}
			issued, err := first.issueAccount(t.Context(), crashing, accountRequest{Connection: "prod", Role: "app"})
			if left == 0 {
				require.Error(t, err)
				require.Equal(t, "0", logins(t, p), "no login without a record")
				return
			}
			require.NoError(t, err)
			if left > 1 {
				require.Error(t, errors.Join(first.endAccount(t.Context(), crashing, issued.RecordID), crashing.step(), crashing.step(), crashing.step()))
			}
			// No lease was ever made; the process ends here.
			second := newMount(t, storage)
			second.start()
			second.clock.advance(2 * time.Hour)
			second.ticksUntil(func() bool {
				return logins(t, p) == "0" && len(keys(t, storage, prefixAccount))+len(keys(t, storage, prefixRevocation)) == 0
			})
		})
	}
}

// A record whose login was never made is cleared away too.
func TestAccounts_CrashBeforeCreate(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, nil)
	c, err := m.connections.get(t.Context(), m.storage, "prod")
	require.NoError(t, err)
	require.NoError(t, m.keepRecord(t.Context(), m.storage, &accountRecord{
		ID: newRecordID(""), Connection: "prod", ConnectionID: c.ID, Role: "app", Username: "dbops-never", ExpiresAt: m.now(),
	}))
	second := newMount(t, m.storage)
	second.start()
	never(t, 300*time.Millisecond, func() bool { return len(keys(t, m.storage, prefixAccount)) == 0 }) // within the grace it is left alone
	second.clock.advance(endGrace + time.Second)
	second.ticksUntil(func() bool { return len(keys(t, m.storage, prefixAccount)) == 0 })
}

// Live accounts survive a restart; a login with our id and no record does not,
// one of another mount does.
func TestAccounts_OrphansAreEnded(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, nil)
	live := m.must(logical.ReadOperation, "creds/app", nil)
	id, err := m.mountID(t.Context(), m.storage)
	require.NoError(t, err)
	orphan, foreign := usernamePrefix(id)+"orphan", usernamePrefix("zzzzzzzz")+"foreign"
	p.Exec("postgres", `SET ROLE dbops_root`, `CREATE ROLE "`+orphan+`" LOGIN`, `CREATE ROLE "`+foreign+`" LOGIN`)

	second := newMount(t, m.storage)
	second.start()
	require.Eventually(t, func() bool { return logins(t, p) == "2" }, 30*time.Second, 20*time.Millisecond)
	_, err = login(t, p, live.Data["username"].(string), live.Data["password"].(string))
	require.NoError(t, err)
	require.Equal(t, "1", p.Value("postgres", `SELECT count(*) FROM pg_roles WHERE rolname = $1`, foreign))
	require.Equal(t, []string{live.Data["username"].(string)}, accountNames(second))
}

// A dead database: the lease ends all the same, what is left to do is stored and
// shown, survives a restart, and is done when the database is back.
func TestAccounts_DeadDatabaseIsRetried(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, nil)
	response := m.must(logical.ReadOperation, "creds/app", nil)
	username := response.Data["username"].(string)
	p.Stop()
	_, err := m.revoke(response.Secret)
	require.NoError(t, err)
	ids := m.must(logical.ListOperation, "revocations/", nil).Data["keys"].([]string)
	require.Len(t, ids, 1)
	entry := m.must(logical.ReadOperation, "revocations/"+ids[0], nil).Data
	require.Equal(t, username, entry["username"])
	require.Equal(t, "1", entry["attempts"])
	require.Equal(t, string(wire.CodeUnavailable), entry["code"])
	_, err = m.renew(response.Secret)
	require.ErrorContains(t, err, string(wire.CodeLeaseLost), "an account that is being ended is not renewed")

	second := newMount(t, m.storage)
	second.start()
	p.Start()
	require.Equal(t, "1", logins(t, p))
	second.clock.advance(lastRetry * 2)
	second.ticksUntil(func() bool {
		return logins(t, p) == "0" && len(keys(t, m.storage, prefixRevocation))+len(keys(t, m.storage, prefixAccount)) == 0
	})
}

// One black hole delays no other connection: not creds, not ends, not the start.
func TestAccounts_BlackHoleDelaysNobodyElse(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, nil)
	m.config("hole", map[string]any{
		"connection_url": "postgresql://{{username}}:{{password}}@" + testenv.BlackHole(t).String() + "/x", "username": "u", "password": "planted-password", "allowed_roles": "*",
	})
	m.must(logical.CreateOperation, "roles/hole", map[string]any{"db_name": "hole", "creation_statements": createLogin})
	hole, err := m.connections.get(t.Context(), m.storage, "hole")
	require.NoError(t, err)
	for range 20 {
		require.NoError(t, m.keepRecord(t.Context(), m.storage, &accountRecord{
			ID: newRecordID(""), Connection: "hole", ConnectionID: hole.ID, Username: "lost", ExpiresAt: m.now().Add(-time.Hour),
		}))
	}
	began := time.Now()
	m.start()
	// Whoever waits for the black hole waits this long.
	const held = account.ConnectTimeout * race.Slowdown
	require.Less(t, time.Since(began), held)
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			_, err := m.request(logical.ReadOperation, "creds/hole", nil)
			if err == nil || !strings.Contains(err.Error(), string(wire.CodeUnavailable)) {
				t.Errorf("creds of the black hole: %v", err)
			}
		})
	}
	var slowest time.Duration
	for range 10 {
		one := time.Now()
		response := m.must(logical.ReadOperation, "creds/app", nil)
		_, err := m.revoke(response.Secret)
		require.NoError(t, err)
		slowest = max(slowest, time.Since(one))
	}
	require.Less(t, slowest, held)
	group.Wait()
	require.Less(t, time.Since(began), 8*held, "as if one had asked it after the other")
}

// The caller who is gone before the answer gets no login, and none stays.
func TestAccounts_CallerGone(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := m.issueAccount(ctx, m.storage, accountRequest{Connection: "prod", Role: "app"})
	require.ErrorIs(t, err, context.Canceled)
	m.start()
	m.clock.advance(time.Second)
	m.ticksUntil(func() bool { return logins(t, p) == "0" && len(keys(t, m.storage, prefixAccount)) == 0 })
}

// A creation whose outcome is unknown keeps its record and is ended soon, but not
// before the server must have given up on it.
func TestAccounts_AmbiguousCreate(t *testing.T) {
	t.Parallel()
	m := newMount(t, &logical.InmemStorage{})
	record := &accountRecord{ID: newRecordID(""), Username: "x", ExpiresAt: m.now().Add(time.Hour)}
	require.NoError(t, m.keepRecord(t.Context(), m.storage, record))
	require.NoError(t, m.giveUp(t.Context(), m.storage, record, &account.Error{Code: wire.CodeUnavailable, Ambiguous: true}))
	require.Empty(t, m.accounts.index.dueByServer(m.now().Add(ambiguousWait-time.Second)))
	require.Len(t, m.accounts.index.dueByServer(m.now().Add(ambiguousWait+time.Second)), 1)
	stored, err := getRecord(t.Context(), m.storage, record.ID)
	require.NoError(t, err)
	require.WithinDuration(t, m.now().Add(ambiguousWait), stored.ExpiresAt, time.Second)
	require.NoError(t, m.giveUp(t.Context(), m.storage, record, &account.Error{Code: wire.CodeEngine}))
	require.Empty(t, keys(t, m.storage, prefixAccount))
}

// Pointed at another server, a connection still ends its accounts where they are.
func TestAccounts_ConnectionMoves(t *testing.T) {
	t.Parallel()
	before, after := database(t), database(t)
	m := withRole(t, before, nil)
	response := m.must(logical.ReadOperation, "creds/app", nil)
	m.must(logical.UpdateOperation, "config/prod", map[string]any{"connection_url": after.ConnectionURL("postgres")})
	_, err := m.renew(response.Secret)
	require.ErrorContains(t, err, string(wire.CodeLeaseLost))
	_, err = m.revoke(response.Secret)
	require.NoError(t, err)
	require.Equal(t, "0", logins(t, before))
	m.must(logical.ReadOperation, "creds/app", nil)
	require.Equal(t, "1", logins(t, after))
}

func TestRetryPause(t *testing.T) {
	t.Parallel()
	for attempts, want := range map[int]time.Duration{1: firstRetry, 2: 2 * firstRetry, 7: lastRetry, 1000: lastRetry} {
		for range 100 {
			got := retryPause(attempts, false)
			require.GreaterOrEqual(t, got, want*4/5)
			require.LessOrEqual(t, got, want*6/5)
			require.LessOrEqual(t, retryPause(attempts, true), unavailableRetry*6/5, "nothing waits long after an outage")
		}
	}
}

// Storage holds no password of any login, and only where it must that of the
// connection.
func TestAccounts_StorageHoldsNoLoginPassword(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, nil)
	password := m.must(logical.ReadOperation, "creds/app", nil).Data["password"].(string)
	var holders []string
	for _, key := range keys(t, m.storage, "") {
		entry, err := m.storage.Get(t.Context(), key)
		require.NoError(t, err)
		require.NotContains(t, string(entry.Value), password, key)
		if strings.Contains(string(entry.Value), rootPassword) {
			holders = append(holders, key)
		}
	}
	slices.Sort(holders)
	require.Equal(t, []string{"config/prod"}, holders)
}
