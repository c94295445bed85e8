package plugin

import (
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// copyOf is an engine on a copy of another one's storage, as of a snapshot that was
// restored into another Vault.
func copyOf(t *testing.T, m *engine) *engine {
	t.Helper()
	_, err := m.mountID(t.Context(), m.storage) // made when it is first needed
	require.NoError(t, err)
	storage := &logical.InmemStorage{}
	for _, key := range keys(t, m.storage, "") {
		entry, err := m.storage.Get(t.Context(), key)
		require.NoError(t, err)
		require.NoError(t, storage.Put(t.Context(), entry))
	}
	return newMount(t, storage)
}

// shared is what posture says of logins that the mount has not made.
func (m *engine) shared() string {
	m.t.Helper()
	var connections []*connection
	for _, name := range keys(m.t, m.storage, prefixConfig) {
		connections = append(connections, m.connectionNow(strings.TrimPrefix(name, prefixConfig)))
	}
	mount, err := m.postureMount(m.t.Context(), m.storage, connections)
	require.NoError(m.t, err)
	for _, f := range mount.Findings() {
		if f.ID == "mount_id_shared" {
			return f.Seen
		}
	}
	return ""
}

// settle starts an engine and waits until it knows what its server has.
func (m *engine) settle() {
	m.t.Helper()
	id := ""
	for _, name := range keys(m.t, m.storage, prefixConfig) {
		id = m.connectionNow(strings.TrimPrefix(name, prefixConfig)).ID
	}
	m.start()
	require.Eventually(m.t, func() bool {
		m.clock.advance(ambiguousWait)
		m.tick()
		return m.accounts.strangers.settled(id)
	}, 30*time.Second, 50*time.Millisecond)
}

// Two Vaults that were made of one: on a server that keeps no records of logins each
// ends what the other makes, and says so. Orphans of a process or a snapshot of before
// are ended without such a finding.
func TestStrangers_CopyOfVault(t *testing.T) {
	t.Parallel()
	m, _ := withRedis(t, testenv.RedisOptions{}, nil)
	snapshot := copyOf(t, m)
	m.must(logical.ReadOperation, "creds/app", nil) // not in the snapshot
	snapshot.settle()
	logins, err := redisDriver(t, m).Logins(t.Context(), "V_")
	require.NoError(t, err)
	require.Empty(t, logins)
	require.Empty(t, snapshot.shared(), "the snapshot was restored in place, as far as it can tell")

	username := m.must(logical.ReadOperation, "creds/app", nil).Data["username"].(string)
	snapshot.clock.advance(orphansEvery + time.Second)
	snapshot.ticksUntil(func() bool { return snapshot.shared() != "" })
	require.Contains(t, snapshot.shared(), username)
	require.Contains(t, snapshot.log.String(), "another Vault runs on a copy of its storage")
	require.Eventually(t, func() bool {
		logins, err := redisDriver(t, m).Logins(t.Context(), "V_")
		return err == nil && len(logins) == 0
	}, 30*time.Second, 20*time.Millisecond)
	snapshot.clock.advance(strangersKept)
	require.Empty(t, snapshot.shared())
}

// On PostgreSQL what the other one makes is known by its note, and left until its time
// is over; it is told all the same. An engine's own logins are none of these.
func TestStrangers_CopyOfVaultOnPostgreSQL(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, map[string]any{"default_ttl": "50m"})
	snapshot := copyOf(t, m)
	snapshot.settle()
	response := m.must(logical.ReadOperation, "creds/app", nil)
	snapshot.must(logical.ReadOperation, "creds/app", nil)
	snapshot.clock.advance(orphansEvery + time.Second)
	snapshot.ticksUntil(func() bool { return snapshot.shared() != "" })
	require.Contains(t, snapshot.shared(), "logins: 1, the last of them "+response.Data["username"].(string))
	_, err := login(t, p, response.Data["username"].(string), response.Data["password"].(string))
	require.NoError(t, err)
}

// What is remembered of a server goes with the last that is kept of its connection, and
// not before; what of others is remembered stays.
func TestSweeper_ForgetsConnectionsThatAreGone(t *testing.T) {
	t.Parallel()
	p, other := database(t), database(t)
	m := withRole(t, p, nil)
	m.configure("stays", other)
	gone, stays := m.connectionNow("prod").ID, m.connectionNow("stays").ID
	w := newSweeper(m.backend, m.storage)
	require.NoError(t, m.accounts.index.load(t.Context(), m.storage, endOf))
	remembered := func(id string) (in []string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if _, ok := w.asks[id]; ok {
			in = append(in, "asks")
		}
		if _, ok := w.pauses[id]; ok {
			in = append(in, "pauses")
		}
		s := &m.accounts.strangers
		s.mu.Lock()
		defer s.mu.Unlock()
		if _, ok := s.answers[id]; ok {
			in = append(in, "answers")
		}
		if _, ok := s.seen[id]; ok {
			in = append(in, "seen")
		}
		if m.accounts.index.wasAsked(id) {
			in = append(in, "asked")
		}
		return in
	}
	all := []string{"asks", "pauses", "answers", "seen", "asked"}
	for _, id := range []string{gone, stays} {
		w.pause(id)
		m.accounts.strangers.note(id, []string{"V_somebody"}, m.now())
	}
	round := func() { w.round(t.Context()) }
	require.Eventually(t, func() bool {
		round()
		return len(remembered(gone)) == len(all) && len(remembered(stays)) == len(all)
	}, 30*time.Second, 50*time.Millisecond)

	response := m.must(logical.ReadOperation, "creds/app", nil)
	m.must(logical.DeleteOperation, "config/prod", nil)
	m.clock.advance(2 * retiredKept)
	w.pause(gone)
	w.pause(stays)
	round()
	require.Equal(t, all, remembered(gone), "it has a login")
	_, err := m.revoke(response.Secret)
	require.NoError(t, err)
	require.Eventually(t, func() bool { round(); return len(remembered(gone)) == 0 }, 30*time.Second, 50*time.Millisecond)
	require.Equal(t, all, remembered(stays))
	require.Empty(t, keys(t, m.storage, prefixRetired))
}
