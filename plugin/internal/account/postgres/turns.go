package postgres

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// crowdedFor is how long scripts of a kind go one by one after two of them met.
const crowdedFor = 10 * time.Second

// turns are for scripts that change rows of catalogs which others change too, as grants
// on one table do, and their end. Of those that run at once PostgreSQL lets all wait for
// one and has them fail then, with all their work, or finds them in a deadlock after a
// second: trying again until each was the first takes more tries the more there are.
// So, where two have met, scripts of their kinds go one by one.
type turns struct {
	one chan struct{} // holds something while a script has its turn
	mu  sync.Mutex
	// crowded are the kinds that take turns, and until when.
	crowded map[string]time.Time
}

func newTurns() *turns {
	return &turns{one: make(chan struct{}, 1), crowded: make(map[string]time.Time)}
}

// met notes that two of a kind were there at once.
func (t *turns) met(kind string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.crowded[kind] = time.Now().Add(crowdedFor)
}

func (t *turns) isCrowded(kind string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	until, ok := t.crowded[kind]
	if ok && time.Now().After(until) {
		delete(t.crowded, kind)
		return false
	}
	return ok
}

// turn is a script's; whoever takes one ends it.
type turn struct {
	turns *turns
	kind  string
	has   bool
}

// take waits until a script of this kind may run, which is at once unless such scripts
// take turns. Whoever waits has a session, as whoever runs has: none waits for a session.
func (t *turns) take(ctx context.Context, op, kind string) (*turn, error) {
	n := &turn{turns: t, kind: kind}
	if !t.isCrowded(kind) {
		return n, nil
	}
	ctx, cancel := context.WithTimeout(ctx, account.ConnectTimeout)
	defer cancel()
	if n.wait(ctx) != nil {
		return nil, &account.Error{
			Op: op, Code: wire.CodeUnavailable, Reason: "too many wait to change the same rows of the server's catalogs, as grants on one table do",
		}
	}
	return n, nil
}

func (n *turn) wait(ctx context.Context) error {
	select {
	case n.turns.one <- struct{}{}:
	default:
		n.turns.met(n.kind)
		select {
		case n.turns.one <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	n.has = true
	return nil
}

// inTurn runs a script that may change what those of other logins change.
func (d *Driver) inTurn(ctx context.Context, conn *pgx.Conn, op, kind, text string) error {
	turn, err := d.turns.take(ctx, op, kind)
	if err != nil {
		return err
	}
	defer turn.end()
	return turn.run(ctx, func() error { return execOnce(ctx, conn, text) })
}

// run runs the script, again if it has met another one: of a kind that takes turns that
// is one of another kind, or of somebody else.
func (n *turn) run(ctx context.Context, script func() error) error {
	again := func(err error) bool {
		if !retryable(err) {
			return false
		}
		n.turns.met(n.kind)
		return true
	}
	if !n.has {
		if err := script(); !again(err) || n.wait(ctx) != nil {
			return err
		}
	}
	return account.Retry(ctx, tries, again, script)
}

func (n *turn) end() {
	if n.has {
		<-n.turns.one
	}
}
