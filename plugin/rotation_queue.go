package plugin

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// Storage keys of rotation.
const (
	prefixStaticRole = "static-role/"
	// prefixRotation has what must survive a crash of a rotation.
	prefixRotation     = "rotation/"
	prefixRotationRole = prefixRotation + "role/" // intention, by static role
	prefixRotationRoot = prefixRotation + "root/" // intention, by connection
	prefixRotationAll  = prefixRotation + "all/"  // wish, by connection
)

// The queue sleeps until something is due, but not longer: clocks are set.
const longestSleep = time.Minute

// rotationQueue rotates what is due. What is due when is in memory only: the
// times are stored with the roles and read again when the engine starts.
type rotationQueue struct {
	b *backend

	mu        sync.Mutex
	timetable *timetable
	// wishes are since when all static roles of a connection are to be rotated.
	wishes map[string]time.Time
	wake   chan struct{}
}

func newRotationQueue(b *backend) *rotationQueue {
	return &rotationQueue{b: b, timetable: newTimetable(), wishes: make(map[string]time.Time), wake: make(chan struct{}, 1)}
}

func (q *rotationQueue) poke() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// change changes the timetable and has the queue look at it.
func (q *rotationQueue) change(f func(t *timetable)) {
	q.mu.Lock()
	f(q.timetable)
	q.mu.Unlock()
	q.poke()
}

// put sets when key is due; a zero time is never.
func (q *rotationQueue) put(key rotationKey, connection string, due time.Time) {
	q.change(func(t *timetable) { t.put(key, connection, due) })
}

func (q *rotationQueue) remove(key rotationKey) { q.put(key, "", time.Time{}) }

// retry makes due what was begun and did not succeed: after a pause that grows
// with each failure or, if the server could not be reached, when it can.
func (q *rotationQueue) retry(key rotationKey, connection string, err error) {
	now := q.b.now()
	q.change(func(t *timetable) {
		if unavailable(err) {
			t.put(key, connection, now)
		} else {
			t.retry(key, connection, now)
		}
	})
}

// retryNow forgets the failures on a connection, which has been changed.
func (q *rotationQueue) retryNow(connection string) {
	now := q.b.now()
	q.change(func(t *timetable) { t.retryNow(connection, now) })
}

// work is the life of the queue. What it starts ends with ctx.
func (q *rotationQueue) work(ctx context.Context, s logical.Storage) {
	for ctx.Err() == nil {
		err := q.load(ctx, s)
		if err == nil {
			break
		}
		q.b.Logger().Error("what is to be rotated cannot be read", "error", err)
		if !pauseFor(ctx, loadRetry) {
			return
		}
	}
	for {
		now := q.b.now()
		taken, next := q.take(now)
		for _, item := range taken {
			q.b.work.run(func(ctx context.Context) { q.rotate(ctx, s, item) })
		}
		sleep := longestSleep
		if !next.IsZero() {
			sleep = min(next.Sub(now), longestSleep)
		}
		timer := time.NewTimer(sleep)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-q.wake:
			timer.Stop()
		}
	}
}

// take takes what is due, and tells when to look again. During a lockdown it is
// nothing: what that rotates, it does itself.
func (q *rotationQueue) take(now time.Time) (taken []*rotationItem, next time.Time) {
	if q.b.lockdown.holds() {
		return nil, time.Time{}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.timetable.take(now)
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

// rotate rotates one credential. A failure is logged, and tried again later.
func (q *rotationQueue) rotate(ctx context.Context, s logical.Storage, item *rotationItem) {
	kind, role := "static role", item.key.name
	if item.key.root {
		kind, role = "root", ""
	}
	err := q.b.refuseLocked(ctx, s) // a lockdown may have begun since it was taken
	switch {
	case err != nil:
	case item.key.root:
		err = q.b.rotateRoot(ctx, s, item.key.name, true)
	default:
		err = q.b.rotateStaticRole(ctx, s, item.key.name, nil, true)
	}
	if err != nil {
		q.b.noteRotated(item.at, role, "", err)
		q.b.Logger().Warn("a rotation did not succeed and is tried again", "kind", kind, "name", item.key.name, "connection", item.at, "error", err)
	}
	var idle bool
	q.change(func(t *timetable) { idle = t.done(item, outcomeOf(err), q.b.now()) })
	if !idle {
		return
	}
	if err := q.forgetWish(ctx, s, item.at); err != nil {
		q.b.Logger().Warn("a completed rotate-all is left", "connection", item.at, "error", err)
	}
}

// outcomeOf tells what the error of an attempt says of the server.
func outcomeOf(err error) outcome {
	switch {
	case err == nil:
		return answered
	case unavailable(err):
		return unreachable
	default:
		return unknownOutcome
	}
}

// load queues what is stored. What was begun comes first, and what requests have
// queued meanwhile stays.
func (q *rotationQueue) load(ctx context.Context, s logical.Storage) error {
	if err := q.loadWishes(ctx, s); err != nil {
		return err
	}
	for _, prefix := range []string{prefixRotationRoot, prefixRotationRole} {
		names, err := listStored(ctx, s, prefix)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := q.loadBegun(ctx, s, rotationKey{root: prefix == prefixRotationRoot, name: name}); err != nil {
				return err
			}
		}
	}
	roles, err := listStored(ctx, s, prefixStaticRole)
	if err != nil {
		return err
	}
	for _, name := range roles {
		r, err := q.b.staticRoles.get(ctx, s, name)
		if err != nil {
			return err
		}
		if r != nil {
			q.addMissing(staticRoleKey(name), r.DBName, q.b.dueAt(r))
		}
	}
	connections, err := listStored(ctx, s, prefixConfig)
	if err != nil {
		return err
	}
	for _, name := range connections {
		stored, err := getStored[storedConnection](ctx, s, prefixConfig+name)
		if err != nil {
			return err
		}
		if stored != nil {
			q.addMissing(rootKey(name), name, stored.NextRootRotation)
		}
	}
	return q.forgetWishes(ctx, s)
}

func (q *rotationQueue) loadBegun(ctx context.Context, s logical.Storage, key rotationKey) error {
	connection := key.name
	if !key.root {
		begun, err := getStored[intention](ctx, s, prefixRotationRole+key.name)
		if err != nil || begun == nil {
			return err
		}
		r, err := q.b.staticRoles.get(ctx, s, key.name)
		if err != nil {
			return err
		}
		if r == nil {
			r = begun.Role
		}
		connection = ""
		if r != nil {
			connection = r.DBName
		}
	}
	q.addMissing(key, connection, q.b.now())
	return nil
}

// addMissing is put for what is not queued yet.
func (q *rotationQueue) addMissing(key rotationKey, connection string, due time.Time) {
	q.change(func(t *timetable) {
		if t.items[key] == nil && !due.IsZero() {
			t.put(key, connection, due)
		}
	})
}

// dueAt is when a static role is to be rotated; zero is never. What was missed
// longer ago than its window is left to the next time.
func (b *backend) dueAt(r *staticRole) time.Time {
	if since := b.rotations.wish(r.DBName); !since.IsZero() && r.LastRotation.Before(since) {
		return since
	}
	if now := b.now(); !r.NextRotation.IsZero() && r.Rotation.missed(r.NextRotation, now) {
		return r.Rotation.next(now)
	}
	return r.NextRotation
}

func (b *backend) queueStaticRole(r *staticRole) {
	b.rotations.put(staticRoleKey(r.Name), r.DBName, b.dueAt(r))
}
