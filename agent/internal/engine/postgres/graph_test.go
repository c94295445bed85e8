package postgres

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var onePerPool = [pools]int{2, 3, 2}

// Everything runs once, after what it waits for, and never beside a task whose
// lock conflicts.
func TestGraph_OrderAndLocks(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var (
		g     graph
		mutex sync.Mutex
		done  = map[*task]bool{}
		held  = map[uint32][]lockMode{}
		runs  atomic.Int64
	)
	for range 300 {
		self := &task{pool: pool(random.IntN(int(pools))), weight: random.Int64N(5)}
		for range random.IntN(3) {
			self.locks = append(self.locks, lock{uint32(random.IntN(4)), lockMode(random.IntN(int(lockExclusive) + 1))})
		}
		var before []*task
		for range random.IntN(4) {
			if len(g.tasks) > 0 {
				before = append(before, g.tasks[random.IntN(len(g.tasks))])
			}
		}
		self.run = func(context.Context, int) error {
			runs.Add(1)
			mutex.Lock()
			for _, b := range before {
				if !done[b] {
					t.Error("too early")
				}
			}
			for _, l := range self.locks {
				for _, mode := range held[l.table] {
					if conflicts(l.mode, mode) {
						t.Error("conflicting locks")
					}
				}
			}
			for _, l := range self.locks {
				held[l.table] = append(held[l.table], l.mode)
			}
			mutex.Unlock()
			time.Sleep(time.Millisecond)
			mutex.Lock()
			defer mutex.Unlock()
			for _, l := range self.locks {
				list := held[l.table]
				for i := range list {
					if list[i] == l.mode {
						held[l.table] = append(list[:i:i], list[i+1:]...)
						break
					}
				}
			}
			done[self] = true
			return nil
		}
		g.add(self)
		for _, b := range before {
			self.after(b)
		}
	}
	require.NoError(t, g.run(context.Background(), onePerPool))
	require.EqualValues(t, len(g.tasks), runs.Load())
}

func TestGraph_Failure(t *testing.T) {
	boom := errors.New("boom")
	var g graph
	first := g.add(&task{run: func(context.Context, int) error { return boom }})
	second := g.add(&task{run: func(context.Context, int) error { t.Error("ran"); return nil }})
	second.after(first)
	g.add(&task{pool: poolIndex, run: func(ctx context.Context, _ int) error { <-ctx.Done(); return ctx.Err() }})
	require.ErrorIs(t, g.run(context.Background(), onePerPool), boom)

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	require.ErrorIs(t, new(graph).run(ctx, onePerPool), context.Canceled)
}

func TestGraph_Stuck(t *testing.T) {
	var g graph
	a := g.add(&task{run: func(context.Context, int) error { return nil }})
	b := g.add(&task{pool: poolIndex, run: func(context.Context, int) error { return nil }})
	a.after(b)
	b.after(a)
	require.ErrorIs(t, g.run(context.Background(), onePerPool), errStuck)
	require.NoError(t, new(graph).run(context.Background(), onePerPool))
}
