package plugin

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

const (
	// lockdownRound is between two looks at what is left.
	lockdownRound = time.Second
	// lockdownRetry is between two tries on one server.
	lockdownRetry = 5 * time.Second
	// searchLimit bounds one search: calls to a database have their own limits.
	searchLimit = time.Minute
)

// lockdownSearch is what is known of one server during a lockdown.
type lockdownSearch struct {
	busy  bool
	clean bool // searched after the last request from before had ended; nothing was there
	next  time.Time
	err   *wire.Error // why not
}

// enforceLockdown does what a lockdown says until the instance is cleaned up. All
// of it can be repeated: it is done again after a restart.
func (b *backend) enforceLockdown(ctx context.Context, s logical.Storage) {
	for range rounds(ctx, lockdownRound, b.lockdown.wake) {
		state, err := b.lockdownRecord(ctx, s)
		if err != nil {
			if ctx.Err() == nil {
				b.Logger().Error("whether the mount is locked down cannot be read", "error", err)
			}
			continue
		}
		if !state.Locked {
			continue
		}
		if err := b.lockdownOnce(ctx, s, state); err != nil && ctx.Err() == nil {
			b.Logger().Error("a lockdown goes on with an error", "error", err)
		}
	}
}

// lockdownOnce is one round. It waits for no server.
func (b *backend) lockdownOnce(ctx context.Context, s logical.Storage, state *lockdownRecord) error {
	stopErr := b.stopOperations(ctx, s, state)
	// The sweep ends every account it knows of while the mount is locked.
	select {
	case b.wake <- struct{}{}:
	default:
	}
	servers, err := b.lockdownServers(ctx, s)
	if err != nil {
		return errors.Join(stopErr, err)
	}
	for _, c := range servers {
		if !b.lockdown.take(state.At, c.ID, b.now()) {
			continue
		}
		b.work.run(func(ctx context.Context) {
			ctx, cancel := context.WithTimeout(ctx, searchLimit)
			defer cancel()
			clean, err := b.searchServer(ctx, s, c)
			if err == nil {
				b.rotateForLockdown(ctx, s, state, c)
			}
			b.lockdown.release(state.At, c, clean, b.now(), err)
		})
	}
	return stopErr
}

// stopOperations ends every operation and takes every claim. Its agent hears of it
// with its next poll, or when it next says something, and touches nothing of the
// target any more; what it had begun there is removed after the lockdown.
func (b *backend) stopOperations(ctx context.Context, s logical.Storage, state *lockdownRecord) error {
	if err := b.loadOperations(ctx, s); err != nil {
		return err
	}
	why := state.refusal()
	result := wire.Result{Code: why.Code, Reason: why.Reason}
	var errs []error
	for _, r := range b.ops.busyOperations() {
		if r.State.Final() && r.Claim == nil {
			continue
		}
		_, err := b.updateOperation(ctx, s, r.ID, func(r *operationRecord) error {
			return r.stopForLockdown(result, b.now().UTC())
		})
		switch {
		case err == nil:
			b.Logger().Warn("operation stopped by a lockdown", "operation_id", r.ID, "state", r.State)
		case !errors.Is(err, errUnchanged):
			errs = append(errs, err)
		}
		if stopped := b.ops.operation(r.ID); stopped != nil {
			b.afterEnd(s, stopped)
		}
	}
	return errors.Join(errs...)
}

// stopForLockdown ends the operation, unless it has ended: then it only loses the
// claim that was to clean up, which is made again later.
func (r *operationRecord) stopForLockdown(result wire.Result, now time.Time) error {
	switch {
	case !r.State.Final():
		return r.endByPlugin(wire.StateCancelled, result, now)
	case r.Claim != nil:
		r.cleanupLost(now)
		return nil
	default:
		return errUnchanged
	}
}

// lockdownServers are all servers where logins of this mount may be: of the
// connections there are, and of former ones.
func (b *backend) lockdownServers(ctx context.Context, s logical.Storage) ([]*connection, error) {
	var servers []*connection
	for _, kind := range []struct {
		prefix string
		cache  *cache[connection]
	}{{prefixConfig, b.connections}, {prefixRetired, b.retired}} {
		names, err := listStored(ctx, s, kind.prefix)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			c, err := kind.cache.get(ctx, s, name)
			if err != nil {
				return nil, err
			}
			if c != nil {
				servers = append(servers, c)
			}
		}
	}
	return servers, nil
}

// take lets one search of a server run at a time, with pauses between.
func (l *lockdown) take(since time.Time, server string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.about(since)
	search := l.searches[server]
	if search == nil {
		search = &lockdownSearch{}
		l.searches[server] = search
	}
	if search.busy || now.Before(search.next) {
		return false
	}
	search.busy = true
	return true
}

// about forgets what was known of a former lockdown. The caller holds mu.
func (l *lockdown) about(since time.Time) {
	if l.searches == nil || !l.since.Equal(since) {
		l.since = since
		l.searches, l.failed = make(map[string]*lockdownSearch), make(map[rotationKey]*wire.Error)
	}
}

func (l *lockdown) release(since time.Time, c *connection, clean bool, now time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.about(since)
	search := &lockdownSearch{clean: clean, next: now}
	if err != nil || clean {
		search.next = now.Add(lockdownRetry)
	}
	if err != nil {
		search.err = told(c.explain(err))
	}
	l.searches[c.ID] = search
}

// told is an error as it may be shown: one without a code is for the log.
func told(err error) *wire.Error {
	var known *wire.Error
	if errors.As(err, &known) {
		return known
	}
	return &wire.Error{Code: wire.CodeInternal, Reason: "internal error; the plugin's log says more"}
}

// searchServer asks a server which logins of this mount it has. Those whose record
// it keeps become known, so that the sweep ends them; the others are ended here. It
// reports whether none was there.
func (b *backend) searchServer(ctx context.Context, s logical.Storage, c *connection) (clean bool, err error) {
	if b.accountsAt()[c.ID] > 0 || !b.accounts.index.complete() {
		return false, nil // the sweep ends those first
	}
	// A request that was let in before may be making a login right now.
	settled := b.lockdown.inFlight.Load() == 0
	found, err := b.askServer(ctx, s, c)
	if err != nil {
		return false, err
	}
	if err := b.endOrphans(ctx, s, c, found.orphans); err != nil {
		return false, err
	}
	// Another connection's logins may be copies on a server of their own, which are
	// ended once it has ended its own.
	return settled && len(found.orphans)+len(found.learned)+found.others == 0 && b.accountsAt()[c.ID] == 0, nil
}

// accountsAt counts the accounts that are known, by connection id.
func (b *backend) accountsAt() map[string]int { return b.accounts.index.count() }

// lockdownLeft is what has still to be ended, from what is stored and what the
// searches of servers have found.
func (b *backend) lockdownLeft(ctx context.Context, s logical.Storage, state *lockdownRecord) (wire.LockdownLeft, error) {
	left := wire.LockdownLeft{
		Requests: int(b.lockdown.inFlight.Load()), Servers: []wire.LockdownServer{}, Rotations: []wire.LockdownRotation{},
	}
	if !state.Locked {
		return left, nil
	}
	if err := b.loadOperations(ctx, s); err != nil {
		return left, err
	}
	for _, r := range b.ops.busyOperations() {
		if !r.State.Final() || r.Claim != nil || r.EndAccounts {
			left.Operations++
		}
	}
	accounts := b.accountsAt()
	for _, n := range accounts {
		left.Accounts += n
	}
	servers, err := b.lockdownServers(ctx, s)
	if err != nil {
		return left, err
	}
	known := make(map[string]bool, len(servers))
	for _, c := range servers {
		known[c.ID] = true
		if server := b.lockdown.leftAt(state.At, c, accounts[c.ID]); server != nil {
			left.Servers = append(left.Servers, *server)
		}
	}
	for id, name := range b.accounts.index.connections() {
		if !known[id] {
			left.Servers = append(left.Servers, wire.LockdownServer{
				Connection: name, Code: wire.CodeNotFound, Reason: "its configuration is gone, so its accounts cannot be ended",
			})
		}
	}
	slices.SortFunc(left.Servers, func(x, y wire.LockdownServer) int { return strings.Compare(x.Connection, y.Connection) })
	if left.Rotations, err = b.rotationsLeft(ctx, s, state, servers); err != nil {
		return left, err
	}
	return left, nil
}

// leftAt tells of a server that is not found clean; nil when it is.
func (l *lockdown) leftAt(since time.Time, c *connection, accounts int) *wire.LockdownServer {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.about(since)
	search := l.searches[c.ID]
	if search != nil && search.clean && accounts == 0 {
		return nil
	}
	server := &wire.LockdownServer{Connection: c.Name}
	if search != nil && search.err != nil {
		server.Code, server.Reason = search.err.Code, search.err.Reason
	}
	return server
}

// rotateForLockdown rotates what the lockdown asks for on one connection.
func (b *backend) rotateForLockdown(ctx context.Context, s logical.Storage, state *lockdownRecord, c *connection) {
	wanted, err := b.rotationsOf(ctx, s, state, c)
	if err != nil {
		b.Logger().Error("what a lockdown rotates cannot be read", "connection", c.Name, "error", err)
		return
	}
	for _, key := range wanted {
		if ctx.Err() != nil || !b.lockdown.holds() {
			return // the next round goes on
		}
		var err error
		if key.root {
			err = b.rotateRoot(ctx, s, key.name, false)
		} else {
			err = b.rotateStaticRole(ctx, s, key.name, nil, false)
		}
		if err != nil {
			b.Logger().Warn("a rotation of a lockdown did not succeed and is tried again", "root", key.root, "name", key.name, "error", err)
		}
		b.lockdown.noteRotation(state.At, key, err)
		if unavailable(err) {
			return
		}
	}
}

func (l *lockdown) noteRotation(since time.Time, key rotationKey, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.about(since)
	if err == nil {
		delete(l.failed, key)
		return
	}
	l.failed[key] = told(err)
}

// rotationsOf lists what the lockdown rotates on a connection and has not yet:
// the static roles first, since they need the own user.
func (b *backend) rotationsOf(ctx context.Context, s logical.Storage, state *lockdownRecord, c *connection) ([]rotationKey, error) {
	if state.RotateSince.IsZero() || !c.RetiredAt.IsZero() {
		return nil, nil
	}
	names, err := b.staticRolesOf(ctx, s, c.Name)
	if err != nil {
		return nil, err
	}
	var wanted []rotationKey
	for _, name := range names {
		r, err := b.staticRoles.get(ctx, s, name)
		if err != nil {
			return nil, err
		}
		if r != nil && !r.Fulfilled.Lockdown.Equal(state.RotateSince) {
			wanted = append(wanted, staticRoleKey(name))
		}
	}
	current, err := b.connections.get(ctx, s, c.Name)
	if err != nil {
		return nil, err
	}
	if current != nil && !current.RootFulfilled.Lockdown.Equal(state.RotateSince) && current.rotatableRoot() == nil {
		wanted = append(wanted, rootKey(c.Name))
	}
	return wanted, nil
}

func (b *backend) rotationsLeft(ctx context.Context, s logical.Storage, state *lockdownRecord, servers []*connection) ([]wire.LockdownRotation, error) {
	left := []wire.LockdownRotation{}
	for _, c := range servers {
		wanted, err := b.rotationsOf(ctx, s, state, c)
		if err != nil {
			return nil, err
		}
		b.lockdown.mu.Lock()
		failed := maps.Clone(b.lockdown.failed)
		b.lockdown.mu.Unlock()
		for _, key := range wanted {
			rotation := wire.LockdownRotation{Root: key.root, Name: key.name}
			if why := failed[key]; why != nil {
				rotation.Code, rotation.Reason = why.Code, why.Reason
			}
			left = append(left, rotation)
		}
	}
	return left, nil
}
