package plugin

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
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

const (
	// rotationsAtOnce are rotations on one connection at a time.
	rotationsAtOnce = 4
	// The queue looks at the clock at least this often.
	queueLongest  = 2 * time.Second
	queueShortest = 50 * time.Millisecond
)

// rotationKey names what is rotated: a static role, or a connection's own user.
type rotationKey struct {
	root bool
	name string
}

func staticRoleKey(name string) rotationKey { return rotationKey{name: name} }

func rootKey(connection string) rotationKey { return rotationKey{root: true, name: connection} }

type rotationItem struct {
	connection string
	due        time.Time
	attempts   int
}

// rotationQueue holds when each credential is rotated next. It is in memory
// only: the times are stored with the roles and read again when the engine
// starts. Connections are worked on side by side, so that one that does not
// answer delays no other.
type rotationQueue struct {
	b *backend

	mu    sync.Mutex
	items map[rotationKey]*rotationItem
	busy  map[string]bool // connections at work on
	// pauses are connections that could not be reached.
	pauses map[string]rotationPause
	// wishes are since when all static roles of a connection are to be rotated.
	wishes map[string]time.Time
	wake   chan struct{}
}

type rotationPause struct {
	until    time.Time
	attempts int
}

func newRotationQueue(b *backend) *rotationQueue {
	return &rotationQueue{
		b: b, items: make(map[rotationKey]*rotationItem), busy: make(map[string]bool),
		pauses: make(map[string]rotationPause), wishes: make(map[string]time.Time), wake: make(chan struct{}, 1),
	}
}

func (q *rotationQueue) poke() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// put sets when key is due; a zero time is never.
func (q *rotationQueue) put(key rotationKey, connection string, due time.Time) {
	q.mu.Lock()
	if due.IsZero() {
		delete(q.items, key)
	} else {
		q.items[key] = &rotationItem{connection: connection, due: due}
	}
	q.mu.Unlock()
	q.poke()
}

func (q *rotationQueue) remove(key rotationKey) { q.put(key, "", time.Time{}) }

// retry makes key due after a pause that grows with each failure.
func (q *rotationQueue) retry(key rotationKey, connection string) {
	q.mu.Lock()
	item := q.items[key]
	if item == nil {
		item = &rotationItem{}
		q.items[key] = item
	}
	item.connection = connection
	item.attempts++
	item.due = q.b.now().Add(rotationPauseOf(item.attempts, longestRetry))
	q.mu.Unlock()
	q.poke()
}

// retryNow forgets the pause of a connection, which has been changed.
func (q *rotationQueue) retryNow(connection string) {
	q.mu.Lock()
	delete(q.pauses, connection)
	for _, item := range q.items {
		if item.connection == connection && item.attempts > 0 {
			item.due, item.attempts = q.b.now(), 0
		}
	}
	q.mu.Unlock()
	q.poke()
}

// pause leaves a connection alone that could not be reached.
func (q *rotationQueue) pause(connection string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	pause := q.pauses[connection]
	pause.attempts++
	pause.until = q.b.now().Add(rotationPauseOf(pause.attempts, longestPause))
	q.pauses[connection] = pause
}

// Pauses after failures double from the shortest on. longestPause is how late a
// database that came back is found, give or take a fifth.
const (
	shortestPause = time.Second
	longestPause  = time.Minute
	longestRetry  = 10 * time.Minute
)

// rotationPauseOf is the pause after so many failures, plus or minus a fifth.
func rotationPauseOf(attempts int, longest time.Duration) time.Duration {
	pause := longest
	if attempts < 16 {
		pause = min(shortestPause<<max(attempts-1, 0), longest)
	}
	return pause*4/5 + rand.N(pause*2/5) //nolint:gosec // spreads attempts, protects nothing
}

// reached forgets the pause of a connection.
func (q *rotationQueue) reached(connection string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.pauses, connection)
}

// due takes what is due on connections that nobody works on, and tells when to
// look again.
func (q *rotationQueue) due() (map[string][]rotationKey, time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.b.now()
	found, wait := make(map[string][]rotationKey), queueLongest
	for key, item := range q.items {
		switch {
		case q.busy[item.connection] || now.Before(q.pauses[item.connection].until):
		case now.Before(item.due):
			wait = min(wait, item.due.Sub(now))
		default:
			found[item.connection] = append(found[item.connection], key)
		}
	}
	for connection := range found {
		q.busy[connection] = true
	}
	return found, max(wait, queueShortest)
}

func (q *rotationQueue) release(connection string) {
	q.mu.Lock()
	delete(q.busy, connection)
	q.mu.Unlock()
	q.poke()
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
		found, wait := q.due()
		for connection, keys := range found {
			q.b.work.run(func(ctx context.Context) {
				defer q.release(connection)
				q.rotate(ctx, s, connection, keys)
			})
		}
		timer := time.NewTimer(wait)
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
	return nil
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
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.items[key] == nil && !due.IsZero() {
		q.items[key] = &rotationItem{connection: connection, due: due}
	}
}

// rotate rotates what is due on one connection. The first shows whether its
// server answers: the others would only wait for the same timeout.
func (q *rotationQueue) rotate(ctx context.Context, s logical.Storage, connection string, keys []rotationKey) {
	var dead atomic.Bool
	one := func(key rotationKey) {
		if ctx.Err() != nil || dead.Load() {
			return
		}
		if unavailable(q.one(ctx, s, connection, key)) && !dead.Swap(true) {
			q.pause(connection)
		}
	}
	one(keys[0])
	if !dead.Load() {
		q.reached(connection)
	}
	slots := make(chan struct{}, rotationsAtOnce)
	var group sync.WaitGroup
	for _, key := range keys[1:] {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			one(key)
		})
	}
	group.Wait()
	if err := q.forgetWish(ctx, s, connection); err != nil {
		q.b.Logger().Warn("a completed rotate-all is left", "connection", connection, "error", err)
	}
}

// one rotates one credential. A failure is logged, and tried again later.
func (q *rotationQueue) one(ctx context.Context, s logical.Storage, connection string, key rotationKey) error {
	var err error
	if key.root {
		err = q.b.rotateRoot(ctx, s, key.name, true)
	} else {
		err = q.b.rotateStaticRole(ctx, s, key.name, nil, true)
	}
	if err == nil {
		return nil
	}
	q.retryFailed(key, connection)
	kind := "static role"
	if key.root {
		kind = "root"
	}
	q.b.Logger().Warn("a rotation did not succeed and is tried again", "kind", kind, "name", key.name, "connection", connection, "error", err)
	return err
}

// retryFailed is retry for what is still due: a rotation may have queued itself
// again already, or be gone.
func (q *rotationQueue) retryFailed(key rotationKey, connection string) {
	q.mu.Lock()
	item := q.items[key]
	due := item != nil && !q.b.now().Before(item.due)
	q.mu.Unlock()
	if due {
		q.retry(key, connection)
	}
}

// wish is the entry under rotation/all/.
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
		if r, err := q.b.staticRoles.get(ctx, s, name); err != nil || r != nil && r.LastRotation.Before(since) {
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
