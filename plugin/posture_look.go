package plugin

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/posture"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// postureInspector is what posture needs of a driver.
type postureInspector interface {
	Inspect(ctx context.Context) (posture.Facts, error)
}

// Times of looking at servers.
const (
	// lookLimit is how long one server is waited for; drivers have the same limit.
	lookLimit = 4 * time.Second
	// lookWait is how long a request waits for all of them together. What is not
	// there by then is said, and is there the next time.
	lookWait = 4500 * time.Millisecond
	// looksAtOnce bounds how many servers are asked at the same time.
	looksAtOnce = 32
	// lookKept is how old a look may be unless the request says less.
	lookKept = 30 * time.Second
)

// look is what was seen on a connection's server, or why nothing was.
type look struct {
	connection *connection
	at         time.Time
	facts      posture.Facts
	err        error
}

// looks keeps the last look at each connection's server. A server is asked once at
// a time, however many ask for it, and one that is dead delays no other.
type looks struct {
	b     *backend
	slots chan struct{}

	mu      sync.Mutex
	last    map[string]*look         // by connection name
	running map[string]chan struct{} // closed when the look is over
}

func newLooks(b *backend) *looks {
	return &looks{b: b, slots: make(chan struct{}, looksAtOnce), last: make(map[string]*look), running: make(map[string]chan struct{})}
}

// start begins a look at c unless there is one that is no older than maxAge, and
// returns what is closed when it is over; nil when there is nothing to wait for.
func (l *looks) start(c *connection, maxAge time.Duration) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if running := l.running[c.Name]; running != nil {
		return running
	}
	if last := l.last[c.Name]; last != nil && last.connection == c && l.b.now().Sub(last.at) < maxAge {
		return nil
	}
	done := make(chan struct{})
	l.running[c.Name] = done
	l.b.work.run(func(ctx context.Context) {
		defer l.finish(c.Name, done)
		select {
		case l.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		defer func() { <-l.slots }()
		found := l.take(ctx, c)
		l.mu.Lock()
		l.last[c.Name] = found
		l.mu.Unlock()
	})
	return done
}

func (l *looks) finish(name string, done chan struct{}) {
	l.mu.Lock()
	delete(l.running, name)
	l.mu.Unlock()
	close(done)
}

// take looks at a server now.
func (l *looks) take(ctx context.Context, c *connection) *look {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	found := &look{connection: c}
	driver, err := c.open()
	if err == nil {
		if inspector, ok := driver.(postureInspector); ok {
			found.facts, err = inspector.Inspect(ctx)
		} else {
			err = &account.Error{Op: "inspect", Code: wire.CodeUnsupported, Reason: "servers of this product cannot be looked at"}
		}
	}
	found.err, found.at = err, l.b.now()
	return found
}

// of returns the last look at c; nil when there is none under its configuration.
func (l *looks) of(c *connection) *look {
	l.mu.Lock()
	defer l.mu.Unlock()
	if last := l.last[c.Name]; last != nil && last.connection == c {
		return last
	}
	return nil
}

// keep forgets looks at connections that are not among names.
func (l *looks) keep(names map[string]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name := range l.last {
		if !names[name] {
			delete(l.last, name)
		}
	}
}

// lookAt asks the servers of the connections side by side and waits for them, but
// not longer than lookWait and not longer than the request lives.
func (b *backend) lookAt(ctx context.Context, connections []*connection, maxAge time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, lookWait)
	defer cancel()
	var waits []<-chan struct{}
	for _, c := range connections {
		if done := b.looks.start(c, maxAge); done != nil {
			waits = append(waits, done)
		}
	}
	for _, done := range waits {
		select {
		case <-done:
		case <-ctx.Done():
			return
		}
	}
}

// serverFindings judges the last look at a connection's server.
func (b *backend) serverFindings(ctx context.Context, s logical.Storage, c *connection) ([]wire.Finding, *wire.Look, error) {
	mount, err := b.mountID(ctx, s)
	if err != nil {
		return nil, nil, err
	}
	seen := b.looks.of(c)
	if seen == nil {
		return []wire.Finding{posture.NotChecked(c.Name, "the server", "it has not answered yet; ask again")}, nil, nil
	}
	age := &wire.Look{Connection: c.Name, AgeSeconds: int(b.now().Sub(seen.at) / time.Second)}
	if seen.err == nil {
		return posture.Server(c.Name, seen.facts, c.product.usernames.prefix(mount)), age, nil
	}
	var known *account.Error
	var field *account.FieldError
	switch {
	case errors.As(seen.err, &known) && known.Code == wire.CodeUnsupported:
		return []wire.Finding{posture.NotChecked(c.Name, "the server", known.Reason)}, age, nil
	case errors.As(seen.err, &known):
		return []wire.Finding{posture.Unreachable(c.Name, known.Reason)}, age, nil
	case errors.As(seen.err, &field):
		return []wire.Finding{posture.Unreachable(c.Name, "the configuration cannot be used: "+field.Error())}, age, nil
	default:
		b.Logger().Error("a server could not be looked at", "connection", c.Name, "error", seen.err)
		return []wire.Finding{posture.Unreachable(c.Name, "it could not be asked; the plugin's log says more")}, age, nil
	}
}
