package plugin

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// process is one life of the engine. What it does to storage and to databases ends
// with it, as if it had been killed: whatever it still runs reaches neither.
type process struct {
	mu   sync.RWMutex
	dead bool
}

var errKilled = errors.New("the process was killed")

// kill waits for effects under way: each is whole or has not begun.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead = true
}

// does runs one effect. It must not be nested: a kill may be waiting.
func (p *process) does(effect func() error) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.dead {
		return errKilled
	}
	return effect()
}

// processStorage is a storage as one process reaches it.
type processStorage struct {
	logical.Storage
	process *process
}

func (s *processStorage) List(ctx context.Context, prefix string) (names []string, err error) {
	err = s.process.does(func() (err error) {
		names, err = s.Storage.List(ctx, prefix)
		return err
	})
	return names, err
}

func (s *processStorage) Get(ctx context.Context, key string) (entry *logical.StorageEntry, err error) {
	err = s.process.does(func() (err error) {
		entry, err = s.Storage.Get(ctx, key)
		return err
	})
	return entry, err
}

func (s *processStorage) Put(ctx context.Context, entry *logical.StorageEntry) error {
	return s.process.does(func() error { return s.Storage.Put(ctx, entry) })
}

func (s *processStorage) Delete(ctx context.Context, key string) error {
	return s.process.does(func() error { return s.Storage.Delete(ctx, key) })
}

// What an instance was doing when it was killed goes on neither in storage nor at
// the databases, and its successor finishes it.
func TestDesk_RestartEndsTheOldProcess(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	id, fence := m.running()
	old, oldStorage := m.b, m.storage
	reached, killed, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	m.db.set(func(f *fakeAccounts) {
		f.onEnding = func() {
			close(reached)
			<-killed
		}
	})
	go func() {
		ended <- old.ops.accounts.endOperationAccounts(context.Background(), oldStorage, id, "")
	}()
	<-reached
	m.db.set(func(f *fakeAccounts) { f.onEnding = nil })
	m.restart()
	close(killed)
	require.ErrorIs(t, <-ended, errKilled)
	require.Len(t, m.db.openAccounts(), 2)
	for _, err := range []error{
		oldStorage.Put(t.Context(), &logical.StorageEntry{Key: "x"}), oldStorage.Delete(t.Context(), prefixOperation+id),
		old.ops.accounts.renewAccount(t.Context(), oldStorage, "record-1", time.Hour),
	} {
		require.ErrorIs(t, err, errKilled)
	}
	_, err := old.ops.accounts.issueAccount(t.Context(), oldStorage, accountRequest{})
	require.ErrorIs(t, err, errKilled)
	_, err = oldStorage.Get(t.Context(), prefixOperation+id)
	require.ErrorIs(t, err, errKilled)
	_, err = oldStorage.List(t.Context(), "")
	require.ErrorIs(t, err, errKilled)

	m.must(m.work("a1", id, "finish", "fence", fence, "outcome", "failed", "code", string(wire.CodeEngine)))
	m.settle()
	require.Empty(t, m.db.openAccounts())
}
