package postgres

import (
	"context"
	"errors"
	"sync"
)

// pool is a kind of work with workers and sessions of its own.
type pool int

const (
	poolCopy pool = iota
	poolIndex
	poolVerify
	pools
)

// lockMode is the strength of a lock a task takes on a table, as the server
// does it. Tasks whose locks conflict are not started beside each other: one
// would only wait in a session that another task could use, or both would wait
// for each other for ever.
type lockMode int

const (
	lockRead      lockMode = iota // ACCESS SHARE: COPY TO
	lockAnalyze                   // SHARE UPDATE EXCLUSIVE: ANALYZE, CREATE STATISTICS
	lockShare                     // SHARE: CREATE INDEX
	lockRow                       // SHARE ROW EXCLUSIVE: ADD FOREIGN KEY
	lockExclusive                 // ACCESS EXCLUSIVE
)

func conflicts(a, b lockMode) bool {
	switch {
	case a == lockExclusive || b == lockExclusive:
		return true
	case a == lockRead || b == lockRead:
		return false
	case a == lockShare && b == lockShare:
		return false
	}
	return true
}

type lock struct {
	table uint32
	mode  lockMode
}

// task is one piece of work. Run gets the number of its worker within the pool.
type task struct {
	pool   pool
	weight int64 // heavier ones first
	locks  []lock
	run    func(ctx context.Context, worker int) error

	waits     int // tasks that must be done before
	followers []*task
	order     int
}

// after makes t wait for before.
func (t *task) after(before *task) {
	if before == nil || before == t {
		return
	}
	before.followers = append(before.followers, t)
	t.waits++
}

// graph runs tasks once all that they wait for is done, each pool with its own
// number of workers.
type graph struct {
	tasks []*task
}

func (g *graph) add(t *task) *task {
	t.order = len(g.tasks)
	g.tasks = append(g.tasks, t)
	return t
}

// run returns once every task is done, or one has failed and the others have
// ended; then it returns the first error.
func (g *graph) run(ctx context.Context, workers [pools]int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := &graphRun{held: map[uint32][]lockMode{}, left: len(g.tasks)}
	r.change = sync.NewCond(&r.mutex)
	for _, t := range g.tasks {
		if t.waits == 0 {
			r.ready[t.pool] = append(r.ready[t.pool], t)
		}
	}
	defer context.AfterFunc(ctx, func() {
		r.mutex.Lock()
		defer r.mutex.Unlock()
		r.change.Broadcast()
	})()
	var group sync.WaitGroup
	for kind := range pools {
		for number := range workers[kind] {
			group.Go(func() {
				for {
					t := r.take(ctx, kind)
					if t == nil {
						return
					}
					if err := t.run(ctx, number); err != nil {
						cancel(err)
					}
					r.finish(t)
				}
			})
		}
	}
	group.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if r.left > 0 {
		return errStuck
	}
	return nil
}

type graphRun struct {
	mutex  sync.Mutex
	change *sync.Cond
	ready  [pools][]*task
	held   map[uint32][]lockMode
	left   int // tasks not done
	busy   int // tasks running
}

// take waits for a task of the pool that may run now. It returns nil when there
// will be none any more.
func (r *graphRun) take(ctx context.Context, kind pool) *task {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	for {
		if ctx.Err() != nil || r.left == 0 {
			return nil
		}
		best := -1
		for i, t := range r.ready[kind] {
			if r.free(t) && (best < 0 || heavier(t, r.ready[kind][best])) {
				best = i
			}
		}
		if best >= 0 {
			list := r.ready[kind]
			t := list[best]
			r.ready[kind] = append(list[:best], list[best+1:]...)
			for _, l := range t.locks {
				r.held[l.table] = append(r.held[l.table], l.mode)
			}
			r.busy++
			return t
		}
		if r.busy == 0 && r.idle() {
			// Nothing runs and nothing can start: tasks wait for each other.
			r.change.Broadcast()
			return nil
		}
		r.change.Wait()
	}
}

// idle reports that no task of any pool is ready.
func (r *graphRun) idle() bool {
	for _, list := range r.ready {
		if len(list) > 0 {
			return false
		}
	}
	return true
}

func heavier(a, b *task) bool {
	return a.weight > b.weight || a.weight == b.weight && a.order < b.order
}

func (r *graphRun) free(t *task) bool {
	for _, l := range t.locks {
		for _, mode := range r.held[l.table] {
			if conflicts(l.mode, mode) {
				return false
			}
		}
	}
	return true
}

func (r *graphRun) finish(t *task) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	for _, l := range t.locks {
		held := r.held[l.table]
		for i, mode := range held {
			if mode == l.mode {
				held[i] = held[len(held)-1]
				r.held[l.table] = held[:len(held)-1]
				break
			}
		}
	}
	for _, next := range t.followers {
		next.waits--
		if next.waits == 0 {
			r.ready[next.pool] = append(r.ready[next.pool], next)
		}
	}
	r.left--
	r.busy--
	r.change.Broadcast()
}

// errStuck is a defect of ours: tasks that wait for each other.
var errStuck = errors.New("the work cannot be put in an order")
