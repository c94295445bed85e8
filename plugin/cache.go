package plugin

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// cache keeps decoded storage entries in memory, since each read of storage is a
// call to Vault. Own writes replace or forget entries; [backend.invalidate]
// forgets what another node wrote. Missing entries are not remembered.
type cache[T any] struct {
	load func(ctx context.Context, s logical.Storage, name string) (*T, error)
	// dropped is called, without the lock, for each value that left the cache.
	dropped func(*T)

	mu     sync.RWMutex
	values map[string]*T
	// changes counts what happened to the cache, so that a value read before a
	// change is not kept after it.
	changes uint64
}

func newCache[T any](load func(context.Context, logical.Storage, string) (*T, error), dropped func(*T)) *cache[T] {
	return &cache[T]{load: load, dropped: dropped, values: make(map[string]*T)}
}

// exists tells whether the request is about something that is there already.
func (c *cache[T]) exists(ctx context.Context, req *logical.Request, data *framework.FieldData) (bool, error) {
	value, err := c.get(ctx, req.Storage, field[string](data, "name"))
	return value != nil, err
}

// get returns the value, which nobody may change, or nil when there is none.
func (c *cache[T]) get(ctx context.Context, s logical.Storage, name string) (*T, error) {
	c.mu.RLock()
	value, changes := c.values[name], c.changes
	c.mu.RUnlock()
	if value != nil {
		return value, nil
	}
	loaded, err := c.load(ctx, s, name)
	if err != nil || loaded == nil {
		return nil, err
	}
	c.mu.Lock()
	if current := c.values[name]; current != nil {
		c.mu.Unlock()
		c.dropped(loaded)
		return current, nil
	}
	keep := c.changes == changes
	if keep {
		c.values[name] = loaded
	}
	c.mu.Unlock()
	if !keep {
		c.dropped(loaded)
	}
	return loaded, nil
}

// put replaces a value; nil forgets it.
func (c *cache[T]) put(name string, value *T) {
	c.mu.Lock()
	before := c.values[name]
	c.changes++
	if value == nil {
		delete(c.values, name)
	} else {
		c.values[name] = value
	}
	c.mu.Unlock()
	if before != nil && before != value {
		c.dropped(before)
	}
}

// all lists the values that are known.
func (c *cache[T]) all() []*T {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return slices.Collect(maps.Values(c.values))
}

// clear forgets everything.
func (c *cache[T]) clear() {
	c.mu.Lock()
	before := c.values
	c.values = make(map[string]*T)
	c.changes++
	c.mu.Unlock()
	for _, value := range before {
		c.dropped(value)
	}
}
