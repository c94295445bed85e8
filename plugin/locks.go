package plugin

import (
	"hash/maphash"
	"sync"
)

// nameLocks serialises writes of one object. They are held for storage calls
// only, never while a database is asked.
type nameLocks struct {
	seed  maphash.Seed
	locks [64]sync.Mutex
}

func newNameLocks() *nameLocks { return &nameLocks{seed: maphash.MakeSeed()} }

// lock locks name, and whatever other names share its lock.
func (l *nameLocks) lock(name string) *sync.Mutex {
	m := &l.locks[maphash.String(l.seed, name)%uint64(len(l.locks))]
	m.Lock()
	return m
}
