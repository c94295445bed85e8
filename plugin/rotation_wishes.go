package plugin

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// wish is the entry under rotation/all/: all static roles of a connection are to
// be rotated once.
type wish struct {
	Since time.Time `json:"since"`
}

func (q *rotationQueue) loadWishes(ctx context.Context, s logical.Storage) error {
	names, err := listStored(ctx, s, prefixRotationAll)
	if err != nil {
		return err
	}
	for _, name := range names {
		stored, err := getStored[wish](ctx, s, prefixRotationAll+name)
		if err != nil {
			return err
		}
		if stored != nil {
			q.setWish(name, stored.Since)
		}
	}
	return nil
}

func (q *rotationQueue) setWish(connection string, since time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.wishes[connection] = since
}

func (q *rotationQueue) wish(connection string) time.Time {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.wishes[connection]
}

// forgetWishes removes those that had been granted before a crash.
func (q *rotationQueue) forgetWishes(ctx context.Context, s logical.Storage) error {
	q.mu.Lock()
	connections := slices.Collect(maps.Keys(q.wishes))
	q.mu.Unlock()
	for _, connection := range connections {
		if err := q.forgetWish(ctx, s, connection); err != nil {
			return err
		}
	}
	return nil
}

// forgetWish removes a wish when no role is left that waits for it.
func (q *rotationQueue) forgetWish(ctx context.Context, s logical.Storage, connection string) error {
	since := q.wish(connection)
	if since.IsZero() {
		return nil
	}
	names, err := q.b.staticRolesOf(ctx, s, connection)
	if err != nil {
		return err
	}
	for _, name := range names {
		if r, err := q.b.staticRoles.get(ctx, s, name); err != nil || r != nil && !r.Fulfilled.All.Equal(since) {
			return err
		}
	}
	q.mu.Lock()
	newer := q.wishes[connection] != since
	if !newer {
		delete(q.wishes, connection)
	}
	q.mu.Unlock()
	if newer {
		return nil
	}
	return deleteStored(ctx, s, prefixRotationAll+connection)
}

// staticRolesOf lists the static roles of a connection.
func (b *backend) staticRolesOf(ctx context.Context, s logical.Storage, connection string) ([]string, error) {
	names, err := listStored(ctx, s, prefixStaticRole)
	if err != nil {
		return nil, err
	}
	found := []string{}
	for _, name := range names {
		r, err := b.staticRoles.get(ctx, s, name)
		if err != nil {
			return nil, err
		}
		if r != nil && r.DBName == connection {
			found = append(found, name)
		}
	}
	return found, nil
}
