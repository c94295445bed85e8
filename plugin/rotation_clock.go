package plugin

import (
	"context"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/oklog/ulid/v2"
)

// Two clocks say when a rotation is due. Schedules are written for the wall clock,
// and it is the only one that nodes have in common; but it is set, by NTP and by
// people, forward and back. The other is how long the machine has been up, which
// nobody sets, and which tells how long ago a rotation was planned even after the
// plugin's process has ended. A rotation is due when either says so: by a clock that
// was set back it would be late, by a machine that slept unnoticed too.
//
// Another machine, and this one started again, only know what the wall clock says.
// There nothing can be due later than if it were planned when the engine starts: what
// is stored for later is from before the clock was set back.

// uptime is a point in the life of a machine.
type uptime struct {
	Boot string        `json:"boot"` // which start of which machine
	At   time.Duration `json:"at"`   // since then; nanoseconds
}

// since is how long after from this is; false when only the wall clock knows.
func (u uptime) since(from uptime) (time.Duration, bool) {
	return u.At - from.At, from.Boot != "" && u.Boot == from.Boot && u.At >= from.At
}

// clockPoint is one moment by both clocks.
type clockPoint struct {
	Wall time.Time `json:"wall"`
	Up   uptime    `json:"up"`
}

// clockPoint is now. Its wall time is what would be stored: a reading of Go's own
// monotonic clock would hide that the wall clock was set.
func (b *backend) clockPoint() clockPoint {
	return clockPoint{Wall: b.now().Round(0), Up: b.uptime()}
}

// grace is how much longer than planned a rotation may take by the uptime: a period
// is kept by it, while the hour of a schedule is the wall clock's, and a clock that
// is set right by seconds must not have it rotated twice.
func (p *rotationPlan) grace() time.Duration {
	if p.Schedule == "" {
		return 0
	}
	return max(p.Window, shortestWindow)
}

// leftUntil is how long it is until a rotation at next, planned at planned, is due;
// 0 or less when it is, false when never. What was missed longer ago than its window
// is left to the next time.
func (b *backend) leftUntil(p *rotationPlan, next time.Time, planned clockPoint) (time.Duration, bool) {
	if next.IsZero() {
		return 0, false
	}
	now := b.clockPoint()
	if p.missed(next, now.Wall) {
		next = p.next(now.Wall)
		return next.Sub(now.Wall), !next.IsZero()
	}
	passed, known := now.Up.since(planned.Up)
	if !known {
		planned = b.began
		passed, _ = now.Up.since(planned.Up)
	}
	return min(next.Sub(now.Wall), next.Sub(planned.Wall)+p.grace()-passed), true
}

// fromLaterClock reports whether next was planned by a clock that has been set back
// since, as far as that is to be known of it only now. Such a plan is made anew and
// stored: an engine that is often started would put it off each time.
func (b *backend) fromLaterClock(p *rotationPlan, next time.Time, planned clockPoint) bool {
	if _, known := b.uptime().since(planned.Up); known || next.IsZero() {
		return false
	}
	return next.After(p.next(b.now().Round(0).Add(p.grace())))
}

// demands are the requests to rotate everything that a credential has been rotated
// for. They are told apart by when they were made and not compared with when it was
// rotated: a clock set back between the two would have it rotated again and again, or
// not at all.
type demands struct {
	All      time.Time `json:"rotate_all,omitzero"` // of the connection
	Lockdown time.Time `json:"lockdown,omitzero"`
}

// demandsNow are those that a rotation on a connection fulfils.
func (b *backend) demandsNow(ctx context.Context, s logical.Storage, connection string) (demands, error) {
	state, err := b.lockdownRecord(ctx, s)
	if err != nil {
		return demands{}, err
	}
	return demands{All: b.rotations.wish(connection), Lockdown: state.RotateSince}, nil
}

// staticRoleLeft is leftUntil of a static role.
func (b *backend) staticRoleLeft(r *staticRole) (time.Duration, bool) {
	if wish := b.rotations.wish(r.DBName); !wish.IsZero() && !r.Fulfilled.All.Equal(wish) {
		return 0, true
	}
	return b.leftUntil(&r.Rotation, r.NextRotation, r.Planned)
}

// rootLeft is leftUntil of a connection's own user.
func (b *backend) rootLeft(s *storedConnection) (time.Duration, bool) {
	return b.leftUntil(&s.Rotation, s.NextRootRotation, s.RootPlanned)
}

// plan sets when a static role is rotated next, from now on.
func (b *backend) planStaticRole(r *staticRole) {
	r.Planned = b.clockPoint()
	r.NextRotation = r.Rotation.next(r.Planned.Wall)
}

// planRoot sets when the own user's password is rotated next, from now on.
func (b *backend) planRoot(s *storedConnection) {
	s.RootPlanned, s.NextRootRotation = b.clockPoint(), time.Time{}
	if !s.DisableRotation {
		s.NextRootRotation = s.Rotation.next(s.RootPlanned.Wall)
	}
}

// replanStaticRole stores a new plan for a role whose plan is a later clock's.
func (b *backend) replanStaticRole(ctx context.Context, s logical.Storage, name string) error {
	lock := b.roleLocks.lock(name)
	defer lock.Unlock()
	r, err := b.staticRoles.get(ctx, s, name)
	if err != nil || r == nil || !b.fromLaterClock(&r.Rotation, r.NextRotation, r.Planned) {
		return err
	}
	b.Logger().Warn("the clock was set back; a static role is rotated as if it had been now", "name", name, "was_due", r.NextRotation)
	next := *r
	b.planStaticRole(&next)
	return b.storeStaticRole(ctx, s, &next)
}

// replanRoot is the same for the own user of a connection.
func (b *backend) replanRoot(ctx context.Context, s logical.Storage, name string) error {
	lock := b.configLocks.lock(name)
	defer lock.Unlock()
	c, err := b.connections.get(ctx, s, name)
	if err != nil || c == nil || !b.fromLaterClock(&c.Rotation, c.NextRootRotation, c.RootPlanned) {
		return err
	}
	b.Logger().Warn("the clock was set back; a connection's own user is rotated as if it had been now", "name", name, "was_due", c.NextRootRotation)
	stored := c.storedConnection
	b.planRoot(&stored)
	return b.storeRootPlan(ctx, s, stored)
}

// processUptime counts from now on, for want of a machine that tells its own.
func processUptime() func() uptime {
	boot, began := ulid.Make().String(), time.Now()
	return func() uptime { return uptime{Boot: boot, At: time.Since(began)} }
}
