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
	prefixRotationOwn  = prefixRotation + "own/"  // intention for a connection's own user, by connection id
	prefixRotationRoot = prefixRotation + "root/" // the same by connection, before storage schema 3
	prefixRotationAll  = prefixRotation + "all/"  // wish, by connection
)

// The queue sleeps until something is due, but not longer: the wall clock may be set
// meanwhile. By how much is worth looking again at everything.
const (
	longestSleep = time.Minute
	clockStep    = time.Second
)

// rotationQueue rotates what is due. What is due when is in memory only: the
// times are stored with the roles and read again when the engine starts. Its
// timetable knows one clock, the uptime, so that nothing in it is out of order when
// the wall clock is set.
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

// put sets in how long key is due; without ever it is not. Nothing of it was begun.
func (q *rotationQueue) put(key rotationKey, connection string, left time.Duration, ever bool) {
	due := q.due(left, ever)
	q.change(func(t *timetable) { t.put(key, connection, due) })
}

// plan is put for what may have been begun: that stays due when it is.
func (q *rotationQueue) plan(key rotationKey, connection string, left time.Duration, ever bool) {
	due := q.due(left, ever)
	q.change(func(t *timetable) { t.plan(key, connection, due) })
}

// finish makes what was begun due now.
func (q *rotationQueue) finish(key rotationKey, connection string) {
	now := q.now()
	q.change(func(t *timetable) { t.finish(key, connection, now) })
}

// due is the time of the timetable in left; the zero time without ever.
func (q *rotationQueue) due(left time.Duration, ever bool) time.Time {
	if !ever {
		return time.Time{}
	}
	return q.now().Add(left)
}

func (q *rotationQueue) remove(key rotationKey) { q.put(key, "", 0, false) }

// now is the time of the timetable.
func (q *rotationQueue) now() time.Time { return time.Unix(0, 0).UTC().Add(q.b.uptime().At) }

// retry makes due what was begun and did not succeed: after a pause that grows
// with each failure or, if the server could not be reached, when it can.
func (q *rotationQueue) retry(key rotationKey, connection string, err error) {
	now := q.now()
	q.change(func(t *timetable) {
		if unavailable(err) {
			t.finish(key, connection, now)
		} else {
			t.retry(key, connection, now)
		}
	})
}

// retryNow forgets the failures on a connection, which has been changed.
func (q *rotationQueue) retryNow(connection string) {
	now := q.now()
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
	seen := q.b.clockPoint()
	for {
		point := q.b.clockPoint()
		passed, _ := point.Up.since(seen.Up)
		if step := point.Wall.Sub(seen.Wall) - passed; step.Abs() >= clockStep {
			q.b.Logger().Warn("the clock was set; what is to be rotated when is looked at again", "by", step)
			q.lookAgain(ctx, s)
		}
		seen = point
		now := q.now()
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

// rotate rotates one credential. A failure is logged, and tried again later.
func (q *rotationQueue) rotate(ctx context.Context, s logical.Storage, item *rotationItem) {
	kind, role := "static role", item.key.name
	switch {
	case item.key.root:
		kind, role = "root", ""
	case item.key.retired:
		kind = "root of a former connection"
	}
	err := q.b.refuseLocked(ctx, s) // a lockdown may have begun since it was taken
	switch {
	case err != nil:
	case item.key.root:
		err = q.b.rotateRoot(ctx, s, item.key.name, true)
	case item.key.retired:
		err = q.b.settleRetired(ctx, s, item.key.name)
	default:
		err = q.b.rotateStaticRole(ctx, s, item.key.name, nil, true)
	}
	if err != nil {
		if !item.key.retired { // nobody asked for it to be rotated
			q.b.noteRotated(item.at, role, "", err)
		}
		q.b.Logger().Warn("a rotation did not succeed and is tried again", "kind", kind, "name", item.key.name, "connection", item.at, "error", err)
	}
	var idle bool
	q.change(func(t *timetable) { idle = t.done(item, outcomeOf(err), q.now()) })
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
	for _, begun := range []struct {
		prefix string
		load   func(context.Context, logical.Storage, string) error
	}{{prefixRotationRoot, q.b.adoptRoot}, {prefixRotationOwn, q.loadBegunRoot}, {prefixRotationRole, q.loadBegun}} {
		names, err := listStored(ctx, s, begun.prefix)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := begun.load(ctx, s, name); err != nil {
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
		if r != nil && q.b.fromLaterClock(&r.Rotation, r.NextRotation, r.Planned) {
			if err := q.b.replanStaticRole(ctx, s, name); err != nil {
				return err
			}
		} else if r != nil {
			left, ever := q.b.staticRoleLeft(r)
			q.addMissing(staticRoleKey(name), r.DBName, left, ever)
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
		if stored != nil && q.b.fromLaterClock(&stored.Rotation, stored.NextRootRotation, stored.RootPlanned) {
			if err := q.b.replanRoot(ctx, s, name); err != nil {
				return err
			}
		} else if stored != nil {
			left, ever := q.b.rootLeft(stored)
			q.addMissing(rootKey(name), name, left, ever)
		}
	}
	return q.forgetWishes(ctx, s)
}

// loadBegun queues what was begun for a static role.
func (q *rotationQueue) loadBegun(ctx context.Context, s logical.Storage, name string) error {
	begun, err := getStored[intention](ctx, s, prefixRotationRole+name)
	if err != nil || begun == nil {
		return err
	}
	r, err := q.b.staticRoles.get(ctx, s, name)
	if err != nil {
		return err
	}
	if r == nil {
		r = begun.Role
	}
	connection := ""
	if r != nil {
		connection = r.DBName
	}
	q.finish(staticRoleKey(name), connection)
	return nil
}

// loadBegunRoot queues what was begun for the own user of the connection with the id,
// which may be retired since.
func (q *rotationQueue) loadBegunRoot(ctx context.Context, s logical.Storage, id string) error {
	begun, err := getStored[intention](ctx, s, prefixRotationOwn+id)
	if err != nil || begun == nil {
		return err
	}
	current, err := getStored[storedConnection](ctx, s, prefixConfig+begun.Connection)
	if err != nil {
		return err
	}
	if current != nil && current.ID == id {
		q.finish(rootKey(current.Name), current.Name)
	} else {
		q.finish(retiredKey(id), id)
	}
	return nil
}

// addMissing is put for what is not queued yet.
func (q *rotationQueue) addMissing(key rotationKey, connection string, left time.Duration, ever bool) {
	now := q.now()
	q.change(func(t *timetable) {
		if t.items[key] == nil && ever {
			t.put(key, connection, now.Add(left))
		}
	})
}

// lookAgain reckons anew when everything is due, but for what is being worked on and
// what has failed, which is tried again after a pause.
func (q *rotationQueue) lookAgain(ctx context.Context, s logical.Storage) {
	q.mu.Lock()
	var keys []rotationKey
	for key, item := range q.timetable.items {
		if !item.working && item.attempts == 0 {
			keys = append(keys, key)
		}
	}
	q.mu.Unlock()
	for _, key := range keys {
		if err := q.lookAgainAt(ctx, s, key); err != nil {
			q.b.Logger().Warn("when a rotation is due cannot be looked at again", "name", key.name, "root", key.root, "error", err)
		}
	}
}

func (q *rotationQueue) lookAgainAt(ctx context.Context, s logical.Storage, key rotationKey) error {
	if key.retired {
		return nil // no clock says when
	}
	if key.root {
		c, err := q.b.connections.get(ctx, s, key.name)
		if err == nil && c != nil {
			q.b.requeueRoot(&c.storedConnection)
		}
		return err
	}
	r, err := q.b.staticRoles.get(ctx, s, key.name)
	if err == nil && r != nil {
		q.b.requeueStaticRole(r)
	}
	return err
}

// queueStaticRole queues the next rotation of a role that none was begun of.
func (b *backend) queueStaticRole(r *staticRole) {
	left, ever := b.staticRoleLeft(r)
	b.rotations.put(staticRoleKey(r.Name), r.DBName, left, ever)
}

// requeueStaticRole is queueStaticRole for one that may have one to finish first.
func (b *backend) requeueStaticRole(r *staticRole) {
	left, ever := b.staticRoleLeft(r)
	b.rotations.plan(staticRoleKey(r.Name), r.DBName, left, ever)
}

// queueRoot and requeueRoot are the same for the own user of a connection.
func (b *backend) queueRoot(s *storedConnection) {
	left, ever := b.rootLeft(s)
	b.rotations.put(rootKey(s.Name), s.Name, left, ever)
}

func (b *backend) requeueRoot(s *storedConnection) {
	left, ever := b.rootLeft(s)
	b.rotations.plan(rootKey(s.Name), s.Name, left, ever)
}
