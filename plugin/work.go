package plugin

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// work owns what the engine does beside requests. It ends with the instance, or
// with its process; whatever matters is in storage and found again.
type work struct {
	ctx    context.Context //nolint:containedctx // the life of the instance
	cancel context.CancelFunc
	group  sync.WaitGroup

	mu      sync.Mutex
	stopped bool
	delayed map[*time.Timer]func()
}

func newWork() *work {
	w := &work{delayed: make(map[*time.Timer]func())}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	return w
}

// run starts f unless the instance is being removed.
func (w *work) run(f func(context.Context)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return
	}
	w.group.Go(func() { f(w.ctx) })
}

// later calls f after d, or at once when the instance is being removed.
func (w *work) later(d time.Duration, f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		// Closing may wait for calls in flight, and a request may be calling us.
		go f()
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(d, func() {
		w.mu.Lock()
		_, ours := w.delayed[timer]
		delete(w.delayed, timer)
		w.mu.Unlock()
		if ours {
			f()
		}
	})
	w.delayed[timer] = f
}

// stop ends everything and waits for it, but not longer than limit: what hangs in
// a call to a dead database ends by that call's own timeout.
func (w *work) stop(limit time.Duration) {
	w.mu.Lock()
	w.stopped = true
	delayed := w.delayed
	w.delayed = make(map[*time.Timer]func())
	w.mu.Unlock()
	w.cancel()
	for timer, f := range delayed {
		timer.Stop()
		w.group.Go(f)
	}
	done := make(chan struct{})
	go func() {
		w.group.Wait()
		close(done)
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// rounds yields every so often, and when woken, until ctx ends. Nothing wakes it where
// wake is nil.
func rounds(ctx context.Context, every time.Duration, wake <-chan struct{}) func(yield func() bool) {
	return func(yield func() bool) {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			case <-wake:
			}
			if !yield() {
				return
			}
		}
	}
}

// pauseFor returns false when ctx ended first.
func pauseFor(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// backOff is the pause after so many failures: doubled with each from the shortest to
// the longest, plus or minus a fifth.
func backOff(failures int, shortest, longest time.Duration) time.Duration {
	pause := longest
	if failures < 16 {
		pause = min(shortest<<max(failures-1, 0), longest)
	}
	return pause*4/5 + rand.N(pause*2/5) //nolint:gosec // spreads attempts, protects nothing
}
