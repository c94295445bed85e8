package plugin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Times of the sweep. With these no account outlives its ttl by more than 60 s as
// long as its server and Vault can be reached.
const (
	sweepEvery    = 5 * time.Second
	orphansEvery  = 10 * time.Minute
	orphansAtOnce = 4 // connections asked at the same time
	endsAtOnce    = 4 // accounts of one server, as many as it has sessions by default
	// retiredKept is longer than a creation takes that had begun when its
	// connection was deleted.
	retiredKept = time.Minute
	loadRetry   = 5 * time.Second
)

// sweeper ends accounts whose time is over and those that nobody knows. One
// server that does not answer delays no other.
type sweeper struct {
	b       *backend
	storage logical.Storage

	mu sync.Mutex
	// busy are the servers at work on, by connection id.
	busy map[string]bool
	// pauses is until when servers that could not be reached are left alone.
	pauses map[string]time.Time
}

// sweep is the life of the sweeper. What it starts ends with ctx.
func (w *sweeper) sweep(ctx context.Context) {
	if !w.load(ctx) {
		return
	}
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	var nextOrphans time.Time
	for {
		w.endDue()
		if err := w.forgetRetired(ctx); err != nil && ctx.Err() == nil {
			w.b.Logger().Warn("retired connections were not looked through", "error", err)
		}
		if now := w.b.now(); !now.Before(nextOrphans) {
			nextOrphans = now.Add(orphansEvery)
			w.b.work.run(w.endOrphans)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-w.b.wake:
		}
	}
}

// load fills the index, trying until it can be read; it returns false when ctx
// ended first.
func (w *sweeper) load(ctx context.Context) bool {
	for {
		err := w.b.accounts.index.load(ctx, w.storage, endOf)
		if err == nil {
			return true
		}
		if ctx.Err() == nil {
			w.b.Logger().Error("account records cannot be read", "error", err)
		}
		timer := time.NewTimer(loadRetry)
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
		}
	}
}

// endDue starts ending what is due, one server beside the other.
func (w *sweeper) endDue() {
	for server, ids := range w.b.accounts.index.dueByServer(w.b.now()) {
		if !w.take(server) {
			continue
		}
		w.b.work.run(func(ctx context.Context) {
			defer w.release(server)
			w.endAll(ctx, server, ids)
		})
	}
}

func (w *sweeper) take(server string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.busy[server] || w.b.now().Before(w.pauses[server]) {
		return false
	}
	delete(w.pauses, server)
	w.busy[server] = true
	return true
}

func (w *sweeper) pause(server string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pauses[server] = w.b.now().Add(downKept)
}

func (w *sweeper) release(server string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.busy, server)
}

// endAll ends accounts of one server, a few at a time: after an outage there may
// be thousands. The first that finds the server unreachable ends the round: the
// others would only wait for the same timeout.
func (w *sweeper) endAll(ctx context.Context, server string, ids []string) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	next := make(chan string)
	var group sync.WaitGroup
	for range min(endsAtOnce, len(ids)) {
		group.Go(func() {
			for id := range next {
				err := w.b.endAccount(ctx, w.storage, id)
				if err == nil {
					continue
				}
				w.b.Logger().Warn("an account could not be ended and is tried again", "record_id", id, "error", err)
				if unavailable(err) {
					w.pause(server)
					stop()
				}
			}
		})
	}
	for _, id := range ids {
		if ctx.Err() != nil {
			break
		}
		select {
		case next <- id:
		case <-ctx.Done():
		}
	}
	close(next)
	group.Wait()
}

// forgetRetired removes deleted connections whose last account is gone.
func (w *sweeper) forgetRetired(ctx context.Context) error {
	ids, err := listStored(ctx, w.storage, prefixRetired)
	if err != nil {
		return err
	}
	inUse, loaded := w.b.accounts.index.servers()
	if !loaded {
		return nil
	}
	for _, id := range ids {
		if inUse[id] {
			continue
		}
		stored, err := getStored[storedConnection](ctx, w.storage, prefixRetired+id)
		if err != nil {
			return err
		}
		if stored != nil && w.b.now().Before(stored.RetiredAt.Add(retiredKept)) {
			continue
		}
		if err := deleteStored(ctx, w.storage, prefixRetired+id); err != nil {
			return err
		}
		w.b.retired.put(id, nil)
	}
	return nil
}

// endOrphans looks on every server for logins with this mount's id in their name
// that have no record, which a restored snapshot of Vault's storage leaves, and
// ends them.
func (w *sweeper) endOrphans(ctx context.Context) {
	names, err := listStored(ctx, w.storage, prefixConfig)
	if err != nil {
		if ctx.Err() == nil {
			w.b.Logger().Warn("connections cannot be listed", "error", err)
		}
		return
	}
	slots := make(chan struct{}, orphansAtOnce)
	var group sync.WaitGroup
	for _, name := range names {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			group.Wait()
			return
		}
		group.Go(func() {
			defer func() { <-slots }()
			if err := w.endOrphansOf(ctx, name); err != nil && ctx.Err() == nil {
				w.b.Logger().Warn("logins without a record were not looked for", "connection", name, "error", err)
			}
		})
	}
	group.Wait()
}

func (w *sweeper) endOrphansOf(ctx context.Context, name string) error {
	b := w.b
	c, err := b.connections.get(ctx, w.storage, name)
	if err != nil || c == nil {
		return err
	}
	mountID, err := b.mountID(ctx, w.storage)
	if err != nil {
		return err
	}
	driver, err := c.open()
	if err != nil {
		return err
	}
	// In this order: a login seen now had its record before. One whose record
	// goes meanwhile is ended twice, which does nothing.
	prefix := c.product.usernames.prefix(mountID)
	logins, err := driver.Logins(ctx, prefix)
	if err != nil {
		return err
	}
	known, complete := b.accounts.index.usernames()
	if !complete {
		return nil
	}
	for _, login := range logins {
		if known[login] || !strings.HasPrefix(login, prefix) {
			continue
		}
		now := b.now()
		record := &accountRecord{
			ID: newRecordID(""), Connection: c.Name, ConnectionID: c.ID, Username: login, CreatedAt: now, ExpiresAt: now,
		}
		if err := b.keepRecord(ctx, w.storage, record); err != nil {
			return err
		}
		b.Logger().Warn("a login of this mount has no record and is ended", "connection", c.Name, "username", login)
		if err := b.endAccount(ctx, w.storage, record.ID); err != nil {
			return fmt.Errorf("end %s: %w", login, err)
		}
	}
	return nil
}

// unavailable reports whether err says that a server cannot be reached, in the
// driver's words or in ours.
func unavailable(err error) bool {
	var refusal *wire.Error
	return account.Unreachable(err) || errors.As(err, &refusal) && refusal.Code == wire.CodeUnavailable
}
