package plugin

import (
	"container/heap"
	"time"
)

// No two connections share anything, so one that does not answer delays no other.
// On each of them rotations follow one another, for a session that is open is used
// again, and opening one costs the server ten times what a rotation does. Only what
// waits longer than patience gets another session, and so on.
const (
	rotationsAtOnce = 4 // on one connection
	patience        = time.Second
)

// Pauses after failures double from the shortest on. longestPause is how late a
// database that came back is found, give or take a fifth.
const (
	shortestPause = time.Second
	longestPause  = time.Minute
	longestRetry  = 10 * time.Minute
)

// rotationKey names what is rotated: a static role, or a connection's own user. For that
// of a connection which is retired it is what was begun that is settled; its name is the
// connection's id then, and so is the name of its lane.
type rotationKey struct {
	root    bool
	retired bool
	name    string
}

func staticRoleKey(name string) rotationKey { return rotationKey{name: name} }

func rootKey(connection string) rotationKey { return rotationKey{root: true, name: connection} }

func retiredKey(connectionID string) rotationKey {
	return rotationKey{retired: true, name: connectionID}
}

// rotationItem is one credential that is rotated by itself.
type rotationItem struct {
	key        rotationKey
	connection string
	due        time.Time
	attempts   int // failures in a row, but for those of the whole connection
	// unfinished says that it was begun: the server may have the new credential, which
	// nobody is told before it is due again.
	unfinished bool

	working bool
	// at is its connection when it was taken, begun what due was then.
	at    string
	begun time.Time
	place int // in its lane
}

// lane is what is rotated on one connection.
type lane struct {
	// waiting are the items that nobody works on, the one longest due first.
	waiting dueOrder
	working int
	// width is how many rotations may be done at a time, at least one. It grows with
	// each answer of the server. One that does not answer, or is overloaded, is tried
	// by one: others would only wait for the same timeout.
	width    int
	failures int // in a row
	// until is when a server that did not answer is asked again.
	until time.Time
}

// timetable knows what is to be rotated next. It only decides; the time, by a clock
// that is never set, is told to it. The zero value is not usable.
type timetable struct {
	items map[rotationKey]*rotationItem
	lanes map[string]*lane // by connection
}

func newTimetable() *timetable {
	return &timetable{items: make(map[rotationKey]*rotationItem), lanes: make(map[string]*lane)}
}

func (t *timetable) lane(connection string) *lane {
	l := t.lanes[connection]
	if l == nil {
		l = &lane{}
		t.lanes[connection] = l
	}
	return l
}

// put sets when key is due; a zero time is never. Nothing of it was begun.
func (t *timetable) put(key rotationKey, connection string, due time.Time) {
	item := t.items[key]
	if due.IsZero() {
		t.leave(item)
		delete(t.items, key)
		return
	}
	if item == nil {
		item = &rotationItem{key: key}
		t.items[key] = item
	} else {
		t.leave(item)
	}
	item.connection, item.due, item.attempts, item.unfinished = connection, due, 0, false
	t.wait(item)
}

// plan is put for what may have been begun: that stays due when it is.
func (t *timetable) plan(key rotationKey, connection string, due time.Time) {
	item := t.items[key]
	if item == nil || !item.unfinished {
		t.put(key, connection, due)
		return
	}
	attempts := item.attempts
	t.put(key, connection, item.due)
	item.attempts, item.unfinished = attempts, true
}

// finish makes what was begun due.
func (t *timetable) finish(key rotationKey, connection string, due time.Time) {
	t.put(key, connection, due)
	t.items[key].unfinished = true
}

// retry makes what was begun due after a pause that grows with each failure.
func (t *timetable) retry(key rotationKey, connection string, now time.Time) {
	attempts := 1
	if item := t.items[key]; item != nil {
		attempts = item.attempts + 1
	}
	t.finish(key, connection, now.Add(backOff(attempts, shortestPause, longestRetry)))
	t.items[key].attempts = attempts
}

// retryNow forgets the failures on a connection, which has been changed.
func (t *timetable) retryNow(connection string, now time.Time) {
	if l := t.lanes[connection]; l != nil {
		l.failures, l.until = 0, time.Time{}
	}
	for key, item := range t.items {
		if item.connection == connection && item.attempts > 0 {
			unfinished := item.unfinished
			t.put(key, connection, now)
			item.unfinished = unfinished
		}
	}
}

// leave takes an item out of its lane, if it waits there.
func (t *timetable) leave(item *rotationItem) {
	if item == nil || item.working {
		return
	}
	l := t.lanes[item.connection]
	heap.Remove(&l.waiting, item.place)
	t.tidy(item.connection, l)
}

// wait puts an item into its lane, unless it is being worked on.
func (t *timetable) wait(item *rotationItem) {
	if !item.working {
		heap.Push(&t.lane(item.connection).waiting, item)
	}
}

// tidy forgets a lane that has nothing to remember.
func (t *timetable) tidy(connection string, l *lane) {
	if len(l.waiting) == 0 && l.working == 0 {
		delete(t.lanes, connection)
	}
}

// take hands out what is to be rotated now, and says when there will be more; a
// zero time says that this depends on what is handed out or put.
func (t *timetable) take(now time.Time) (taken []*rotationItem, next time.Time) {
	sooner := func(at time.Time) {
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	for connection, l := range t.lanes {
		for l.working < max(l.width, 1) && len(l.waiting) > 0 {
			first := l.waiting[0]
			at := first.due.Add(time.Duration(l.working) * patience)
			if at.Before(l.until) {
				at = l.until
			}
			if now.Before(at) {
				sooner(at)
				break
			}
			heap.Pop(&l.waiting)
			l.working++
			first.working, first.at, first.begun = true, connection, first.due
			taken = append(taken, first)
		}
	}
	return taken, next
}

// outcome is what an attempt says of the server.
type outcome int

const (
	unknownOutcome outcome = iota // it was not asked
	answered
	unreachable
)

// done takes an item back. It reports whether nothing else is at work or due on
// the item's connection.
func (t *timetable) done(item *rotationItem, result outcome, now time.Time) (idle bool) {
	l := t.lane(item.at)
	l.working--
	switch result {
	case answered:
		l.width, l.failures, l.until = min(max(l.width, 1)+1, rotationsAtOnce), 0, time.Time{}
	case unreachable:
		l.width = 1
		if !now.Before(l.until) { // else another has said so already
			l.failures++
			l.until = now.Add(backOff(l.failures, shortestPause, longestPause))
		}
	}
	item.working = false
	if t.items[item.key] == item {
		// One that neither was rotated nor has another time is tried again. That the
		// server could not be reached counts against its connection, not against it.
		if item.due.Equal(item.begun) && result != unreachable {
			item.attempts++
			item.due = now.Add(backOff(item.attempts, shortestPause, longestRetry))
		}
		t.wait(item)
	}
	idle = l.working == 0 && (len(l.waiting) == 0 || now.Before(l.waiting[0].due))
	t.tidy(item.at, l)
	return idle
}

// dueOrder is a heap of items, the first due on top.
type dueOrder []*rotationItem

var _ heap.Interface = (*dueOrder)(nil)

// Len, Less, Swap, Push and Pop are those of [heap.Interface].
func (o dueOrder) Len() int           { return len(o) }
func (o dueOrder) Less(i, j int) bool { return o[i].due.Before(o[j].due) }

// Swap is of [heap.Interface].
func (o dueOrder) Swap(i, j int) {
	o[i], o[j] = o[j], o[i]
	o[i].place, o[j].place = i, j
}

// Push is of [heap.Interface].
func (o *dueOrder) Push(x any) {
	item, ok := x.(*rotationItem)
	if !ok {
		return
	}
	item.place = len(*o)
	*o = append(*o, item)
}

// Pop is of [heap.Interface].
func (o *dueOrder) Pop() any {
	last := len(*o) - 1
	item := (*o)[last]
	(*o)[last] = nil
	*o = (*o)[:last]
	return item
}
