package postgres

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// row is one that only one of those who change it at once gets to change.
type row struct {
	mu      sync.Mutex
	version int
	tries   atomic.Int32
}

func (r *row) change() error {
	r.tries.Add(1)
	r.mu.Lock()
	seen := r.version
	r.mu.Unlock()
	time.Sleep(10 * time.Millisecond)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.version != seen {
		return &pgconn.PgError{Code: stateInternal, Message: "tuple concurrently updated"}
	}
	r.version++
	return nil
}

func (t *turns) do(ctx context.Context, kind string, script func() error) error {
	n, err := t.take(ctx, "create", kind)
	if err != nil {
		return err
	}
	defer n.end()
	return n.run(ctx, script)
}

// Scripts that meet go one by one from then on, others and those of later do not.
func TestTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		turns, r := newTurns(), &row{}
		all := func(n int) time.Duration {
			began := time.Now()
			var group sync.WaitGroup
			for range n {
				group.Go(func() {
					require.NoError(t, turns.do(t.Context(), "grant", r.change))
				})
				time.Sleep(time.Millisecond)
			}
			group.Wait()
			return time.Since(began)
		}
		all(100)
		require.LessOrEqual(t, r.tries.Load(), int32(100+2*10), "only those that were under way when the first met")
		r.tries.Store(0)
		require.Less(t, all(100), 1100*time.Millisecond, "one after the other, without a pause")
		require.Equal(t, int32(100), r.tries.Load())

		// Others do not wait.
		holds, err := turns.take(t.Context(), "create", "grant")
		require.NoError(t, err)
		require.NoError(t, turns.do(t.Context(), "other", (&row{}).change))

		// Who waits too long is told so.
		began := time.Now()
		var refused *account.Error
		require.ErrorAs(t, turns.do(t.Context(), "grant", r.change), &refused)
		require.Equal(t, wire.CodeUnavailable, refused.Code)
		require.False(t, refused.Ambiguous)
		require.Equal(t, account.ConnectTimeout, time.Since(began))
		holds.end()

		// When for a while no two have come at once they need not wait any more.
		time.Sleep(crowdedFor + time.Millisecond)
		require.False(t, turns.isCrowded("grant"))
		require.Empty(t, turns.crowded)
	})
}

// What fails for another reason fails at once, and so does what meets others when there
// is no time left; and nobody's turn lasts after that.
func TestTurns_Failure(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns()
		tries, failure := 0, error(&pgconn.PgError{Code: stateInsufficientPrivilege})
		fails := func() error { tries++; return failure }
		require.ErrorIs(t, turns.do(t.Context(), "grant", fails), failure)
		require.Equal(t, 1, tries)
		require.False(t, turns.isCrowded("grant"))

		failure = &pgconn.PgError{Code: stateInternal, Message: "tuple concurrently updated"}
		require.ErrorIs(t, turns.do(t.Context(), "grant", fails), failure)
		require.Equal(t, 1+1+8, tries, "once beside others, and then in its turn")
		require.Len(t, turns.one, 0)

		holds, err := turns.take(t.Context(), "create", "grant")
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		before := tries
		require.ErrorIs(t, turns.do(ctx, "other", fails), failure)
		require.Equal(t, before+1, tries)
		holds.end()
		require.Len(t, turns.one, 0)
	})
}
