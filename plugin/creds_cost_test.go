package plugin

import (
	"context"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"
)

// calls counts what goes from the plugin to Vault, each a call between processes.
type calls struct {
	get, put, list, remove, system int
}

type countedStorage struct {
	logical.Storage
	calls *calls
}

func (s countedStorage) Get(ctx context.Context, key string) (*logical.StorageEntry, error) {
	s.calls.get++
	return s.Storage.Get(ctx, key)
}

func (s countedStorage) Put(ctx context.Context, entry *logical.StorageEntry) error {
	s.calls.put++
	return s.Storage.Put(ctx, entry)
}

func (s countedStorage) List(ctx context.Context, prefix string) ([]string, error) {
	s.calls.list++
	return s.Storage.List(ctx, prefix)
}

func (s countedStorage) Delete(ctx context.Context, key string) error {
	s.calls.remove++
	return s.Storage.Delete(ctx, key)
}

type countedSystem struct {
	logical.StaticSystemView
	calls *calls
}

func (s countedSystem) DefaultLeaseTTL() time.Duration { s.calls.system++; return time.Hour }
func (s countedSystem) MaxLeaseTTL() time.Duration     { s.calls.system++; return 24 * time.Hour }
func (s countedSystem) Tainted() bool                  { s.calls.system++; return false }
func (s countedSystem) ReplicationState() consts.ReplicationState {
	s.calls.system++
	return s.StaticSystemView.ReplicationState()
}

func (s countedSystem) EntityInfo(id string) (*logical.Entity, error) {
	s.calls.system++
	return s.StaticSystemView.EntityInfo(id)
}

// A login whose record the server keeps costs no call to Vault besides those of its
// lease, and its end none. Elsewhere it costs one write, its end one read and one
// deletion.
func TestCreds_CallsToVault(t *testing.T) {
	t.Parallel()
	p := database(t)
	var counted calls
	m := newMount(t, countedStorage{&logical.InmemStorage{}, &counted})
	require.NoError(t, m.Setup(t.Context(), &logical.BackendConfig{
		Logger: hclog.New(&hclog.LoggerOptions{Output: m.log, Level: hclog.Trace, JSONFormat: true}), System: countedSystem{calls: &counted},
	}))
	m.configure("prod", p)
	m.must(logical.UpdateOperation, "roles/app", map[string]any{"db_name": "prod", "creation_statements": createLogin, "default_ttl": "10m"})
	m.must(logical.ReadOperation, "creds/app", nil) // fills the caches

	for statements, want := range map[string][2]calls{
		createLogin:  {},
		createStored: {{put: 1}, {get: 1, remove: 1}},
	} {
		m.must(logical.UpdateOperation, "roles/app", map[string]any{"creation_statements": statements})
		counted = calls{}
		response := m.must(logical.ReadOperation, "creds/app", nil)
		require.Equal(t, want[0], counted, statements)

		counted = calls{}
		_, err := m.revoke(response.Secret)
		require.NoError(t, err)
		require.Equal(t, want[1], counted, statements)
		require.Equal(t, "1", logins(t, p))
	}
}

// What has piled up for one server is ended whole, and what is gone already is no
// reason to stop.
func TestSweeper_EndsAllOfOneServer(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, nil)
	ids := []string{"creds/gone"}
	for range 20 {
		ids = append(ids, m.issue("", "").RecordID)
	}
	require.Equal(t, "20", logins(t, p))
	w := newSweeper(m.backend, m.storage)
	w.endAll(t.Context(), "server", append(ids, ids...))
	require.Equal(t, "0", logins(t, p))
	require.Empty(t, keys(t, m.storage, prefixAccount))
	require.Empty(t, w.pauses)
}
