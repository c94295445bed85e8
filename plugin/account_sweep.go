package plugin

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Times of the sweep. With these no account outlives its ttl by more than 60 s as
// long as its server and Vault can be reached.
const (
	sweepEvery   = 5 * time.Second
	orphansEvery = 10 * time.Minute
	asksAtOnce   = 32 // servers asked at the same time; some may not answer
	// askAgain is when a server that did not answer is asked again: what it keeps
	// is ended within a minute of its return.
	askAgain   = 20 * time.Second
	endsAtOnce = 4 // accounts of one server, as many as it has sessions by default
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
	// asks is when each server is asked next which logins it has, by connection id.
	asks  map[string]time.Time
	slots chan struct{}
}

func newSweeper(b *backend, s logical.Storage) *sweeper {
	return &sweeper{
		b: b, storage: s, busy: make(map[string]bool), pauses: make(map[string]time.Time),
		asks: make(map[string]time.Time), slots: make(chan struct{}, asksAtOnce),
	}
}

// sweep is the life of the sweeper. What it starts ends with ctx.
func (w *sweeper) sweep(ctx context.Context) {
	if !w.load(ctx) {
		return
	}
	w.round(ctx)
	for range rounds(ctx, sweepEvery, w.b.wake) {
		w.round(ctx)
	}
}

func (w *sweeper) round(ctx context.Context) {
	w.endDue()
	if err := w.forgetRetired(ctx); err != nil && ctx.Err() == nil {
		w.b.Logger().Warn("retired connections were not looked through", "error", err)
	}
	if err := w.askServers(ctx); err != nil && ctx.Err() == nil {
		w.b.Logger().Warn("connections cannot be listed", "error", err)
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
		if !pauseFor(ctx, loadRetry) {
			return false
		}
	}
}

// endDue starts ending what is due, one server beside the other.
func (w *sweeper) endDue() {
	due := w.b.accounts.index.dueByServer
	if w.b.locked() {
		due = w.b.accounts.index.endableByServer
	}
	for server, ids := range due(w.b.now()) {
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
				err := w.end(ctx, id)
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

// end ends an account that is due, unless its server says that it is not.
func (w *sweeper) end(ctx context.Context, id string) error {
	if w.b.renewedElsewhere(ctx, w.storage, id) {
		return nil
	}
	return w.b.endAccount(ctx, w.storage, id)
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
		if stored != nil && w.mayHaveAccounts(stored) {
			continue
		}
		if err := deleteStored(ctx, w.storage, prefixRetired+id); err != nil {
			return err
		}
		w.b.retired.put(id, nil)
	}
	return nil
}

// mayHaveAccounts reports whether a deleted connection may still have accounts
// that are not known: those that were being made when it was deleted, and those
// whose record is kept by its server, which was not heard since the start. The
// latter are over when no lease can last any longer.
func (w *sweeper) mayHaveAccounts(c *storedConnection) bool {
	wait := retiredKept
	if product, err := productOf(c.PluginName); err == nil && product.keepsRecords && !w.b.accounts.index.wasAsked(c.ID) {
		wait += w.b.mountLimits().longest
	}
	return w.b.now().Before(c.RetiredAt.Add(wait))
}

// askServers asks each server that it is time for which of our logins it has, and
// forgets those of connections that are gone for ever.
func (w *sweeper) askServers(ctx context.Context) error {
	// Before the connections are listed: one that is made meanwhile is none of these.
	gone := w.noted()
	for _, place := range []struct {
		prefix string
		get    func(context.Context, logical.Storage, string) (*connection, error)
	}{{prefixConfig, w.b.connections.get}, {prefixRetired, w.b.retired.get}} {
		names, err := listStored(ctx, w.storage, place.prefix)
		if err != nil {
			return err
		}
		for _, name := range names {
			c, err := place.get(ctx, w.storage, name)
			if err != nil {
				gone = nil // its id is not known
				w.b.Logger().Warn("a connection cannot be used", "connection", name, "error", err)
				continue
			}
			if c != nil {
				delete(gone, c.ID)
			}
			if c == nil || place.prefix == prefixRetired && !c.product.keepsRecords || !w.takeAsk(c.ID) {
				continue
			}
			w.b.work.run(func(ctx context.Context) {
				select {
				case w.slots <- struct{}{}:
					unsure, err := w.ask(ctx, c)
					<-w.slots
					w.asked(ctx, c, unsure, err)
				case <-ctx.Done():
				}
			})
		}
	}
	w.forget(gone)
	return nil
}

// noted are the ids of the connections whose servers something is remembered of.
func (w *sweeper) noted() map[string]bool {
	ids := make(map[string]bool)
	w.mu.Lock()
	for id := range w.asks {
		ids[id] = true
	}
	for id := range w.pauses {
		ids[id] = true
	}
	w.mu.Unlock()
	w.b.accounts.strangers.noted(ids)
	w.b.accounts.index.noteAsked(ids)
	return ids
}

// forget forgets all that is remembered of servers but their accounts. What is being
// asked while it is forgotten is forgotten the next time.
func (w *sweeper) forget(ids map[string]bool) {
	w.mu.Lock()
	for id := range ids {
		delete(w.asks, id)
		delete(w.pauses, id)
	}
	w.mu.Unlock()
	w.b.accounts.strangers.forget(ids)
	w.b.accounts.index.forgetAsked(ids)
}

// ask ends what a server has that nobody knows; unsure as in [serverLogins].
func (w *sweeper) ask(ctx context.Context, c *connection) (unsure bool, err error) {
	found, err := w.b.askServer(ctx, w.storage, c)
	if err != nil {
		return false, err
	}
	if names := slices.Concat(found.orphans, found.learned); len(names) > 0 && w.b.accounts.strangers.settled(c.ID) {
		w.b.Logger().Warn("logins appear with this mount's id that it has not made: another Vault runs on a copy of its storage, or the server was restored from a backup",
			"connection", c.Name, "usernames", names)
		w.b.accounts.strangers.note(c.ID, names, w.b.now())
	}
	return found.unsure, w.b.endOrphans(ctx, w.storage, c, found.orphans)
}

// takeAsk reports whether it is time to ask a server, and notes that it is asked.
func (w *sweeper) takeAsk(server string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if next, known := w.asks[server]; known && w.b.now().Before(next) {
		return false
	}
	w.asks[server] = w.b.now().Add(orphansEvery)
	return true
}

// asked notes when to ask next. After the first answer it is asked once more soon:
// what another process of this mount had begun when it ended may come late. And it is
// asked soon while what it has cannot be judged.
func (w *sweeper) asked(ctx context.Context, c *connection, unsure bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err != nil:
		w.asks[c.ID] = w.b.now().Add(askAgain)
		if ctx.Err() == nil {
			w.b.Logger().Warn("logins without a record were not looked for", "connection", c.Name, "error", err)
		}
	case w.b.accounts.strangers.answered(c.ID):
		w.asks[c.ID] = w.b.now().Add(ambiguousWait)
	case unsure:
		w.asks[c.ID] = w.b.now().Add(askAgain)
	}
}

// unavailable reports whether err says that a server cannot be reached, in the
// driver's words or in ours.
func unavailable(err error) bool {
	var refusal *wire.Error
	return account.Unreachable(err) || errors.As(err, &refusal) && refusal.Code == wire.CodeUnavailable
}
