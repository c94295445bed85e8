package plugin

import (
	"context"
	"fmt"
	"sync"
)

// keyLocks has one lock per key. Unlike [nameLocks] they may be held while a
// database is asked: no two keys share one, and waiting ends with the context.
type keyLocks struct {
	mu   sync.Mutex
	held map[string]*keyLock
}

type keyLock struct {
	slot chan struct{} // holds one value while the lock is taken
	uses int
}

func newKeyLocks() *keyLocks { return &keyLocks{held: make(map[string]*keyLock)} }

// lock takes the lock of key and returns what gives it back.
func (l *keyLocks) lock(ctx context.Context, key string) (func(), error) {
	l.mu.Lock()
	lock := l.held[key]
	if lock == nil {
		lock = &keyLock{slot: make(chan struct{}, 1)}
		l.held[key] = lock
	}
	lock.uses++
	l.mu.Unlock()
	select {
	case lock.slot <- struct{}{}:
		return func() {
			<-lock.slot
			l.forget(key, lock)
		}, nil
	case <-ctx.Done():
		l.forget(key, lock)
		return nil, fmt.Errorf("wait for %s: %w", key, context.Cause(ctx))
	}
}

func (l *keyLocks) forget(key string, lock *keyLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	lock.uses--
	if lock.uses == 0 {
		delete(l.held, key)
	}
}
