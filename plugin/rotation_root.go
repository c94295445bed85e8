package plugin

import (
	"context"
	"errors"
	"maps"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// detailPassword and detailUsername are what a connection logs in with.
const (
	detailUsername = "username"
	detailPassword = "password"
)

// withLogin is s with another user and password.
func (s storedConnection) withLogin(username string, password wire.Secret) storedConnection {
	s.Details, s.Secrets = maps.Clone(s.Details), maps.Clone(s.Secrets)
	s.Details[detailUsername], s.Secrets[detailPassword] = username, password.Reveal()
	return s
}

// rotateRoot gives a connection's own user a new password, or completes a
// rotation that was begun. With onlyDue nothing is done unless it is due or was
// begun. What was begun on a former connection of the name is no concern of it: see
// [backend.settleRetired].
func (b *backend) rotateRoot(ctx context.Context, s logical.Storage, name string, onlyDue bool) error {
	c, unlock, err := b.lockRoot(ctx, s, name)
	if err != nil {
		return err
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rotationLimit)
	defer cancel()

	begun, err := getStored[intention](ctx, s, prefixRotationOwn+c.ID)
	if err != nil {
		return err
	}
	if begun != nil {
		if err := b.completeRoot(ctx, s, c, begun); err != nil || onlyDue {
			return err
		}
		id := c.ID
		if c, err = b.usableConnection(ctx, s, name); err != nil {
			return err
		}
		if c.ID != id {
			return configChanged(name)
		}
	}
	if onlyDue {
		if left, ever := b.rootLeft(&c.storedConnection); !ever || left > 0 {
			b.queueRoot(&c.storedConnection)
			return nil
		}
	}
	if err := c.rotatableRoot(); err != nil {
		return err
	}
	password, err := b.newPassword(ctx, c.PasswordPolicy)
	if err != nil {
		return err
	}
	begun = &intention{
		Connection: c.Name, ConnectionID: c.ID, Username: c.detail(detailUsername),
		Credential: storedCredential{Password: password.Reveal()}, StartedAt: b.now(),
	}
	fault(kindRoot, pointBegun)
	if err := putStored(ctx, s, prefixRotationOwn+c.ID, begun); err != nil {
		return err
	}
	return b.applyRoot(ctx, s, c, begun, false)
}

// lockRoot returns the connection that has the name, its own user locked. The lock is
// that of the connection and not of its name, as the intention is: a former connection
// of the name, whose server may not answer, holds up no other.
func (b *backend) lockRoot(ctx context.Context, s logical.Storage, name string) (*connection, func(), error) {
	if err := b.adoptRoot(ctx, s, name); err != nil {
		return nil, nil, err
	}
	for {
		c, err := b.usableConnection(ctx, s, name)
		if err != nil {
			var e *wire.Error
			if errors.As(err, &e) && e.Code == wire.CodeNotFound {
				b.rotations.remove(rootKey(name))
			}
			return nil, nil, err
		}
		unlock, err := b.rotationLocks.lock(ctx, prefixRotationOwn+c.ID)
		if err != nil {
			return nil, nil, err
		}
		// It may have been deleted or re-pointed while the lock was waited for.
		current, err := b.connections.get(ctx, s, name)
		if err == nil && current != nil && current.ID == c.ID {
			return current, unlock, nil
		}
		unlock()
		if err != nil {
			return nil, nil, err
		}
	}
}

// rotatableRoot refuses a connection without a user and password of its own.
func (c *connection) rotatableRoot() error {
	switch {
	case c.flag(detailSelfManaged), c.detail(detailUsername) == "", c.secret(detailPassword).Empty():
		return invalidField("name", "connection %q has no username and password to rotate", c.Name)
	case c.location.HasPassword:
		return invalidField("name", "connection_url of connection %q holds a password of its own; use {{username}} and {{password}} in it", c.Name)
	}
	return nil
}

// completeRoot rolls forward a rotation that was begun on c.
func (b *backend) completeRoot(ctx context.Context, s logical.Storage, c *connection, begun *intention) error {
	if c.detail(detailUsername) == begun.Username && c.Secrets[detailPassword] != begun.Credential.Password {
		return b.applyRoot(ctx, s, c, begun, true)
	}
	// The connection has another user now, or the password.
	if err := deleteStored(ctx, s, prefixRotationOwn+c.ID); err != nil {
		return err
	}
	b.queueRoot(&c.storedConnection)
	return nil
}

// applyRoot makes the server take the new password and stores it.
func (b *backend) applyRoot(ctx context.Context, s logical.Storage, c *connection, begun *intention, repeated bool) error {
	iterations, err := b.rotationIterations(ctx, c, c.PasswordPolicy)
	if err != nil {
		b.rotations.retry(rootKey(c.Name), c.Name, err)
		return err
	}
	fault(kindRoot, pointIntention)
	unchanged, err := change{
		connection: c, username: begun.Username, statements: c.RootRotationStatements, iterations: iterations,
		old: storedCredential{Password: c.Secrets[detailPassword]}, next: begun.Credential, repeated: repeated, self: true,
	}.apply(ctx)
	b.metrics.rotated(rootKey(c.Name), err)
	if err != nil {
		err = c.explain(err)
		if unchanged {
			return errors.Join(err, deleteStored(ctx, s, prefixRotationOwn+c.ID))
		}
		b.rotations.retry(rootKey(c.Name), c.Name, err)
		return err
	}
	fault(kindRoot, pointChanged)
	if err := b.storeRootPassword(ctx, s, c, begun); err != nil {
		b.rotations.retry(rootKey(c.Name), c.Name, err)
		return err
	}
	fault(kindRoot, pointStored)
	b.noteRotated(c.Name, "", begun.Username, nil)
	b.Logger().Info("root credential rotated", "connection", c.Name, "username", begun.Username)
	if err := deleteStored(ctx, s, prefixRotationOwn+c.ID); err != nil {
		// The next rotation finds that it was completed.
		b.Logger().Warn("the intention of a completed rotation is left", "connection", c.Name, "error", err)
	}
	fault(kindRoot, pointRemoved)
	return nil
}

// storeRootPassword stores the new password with the connection and, where the
// connection was deleted or re-pointed meanwhile, with what is kept of it.
func (b *backend) storeRootPassword(ctx context.Context, s logical.Storage, c *connection, begun *intention) error {
	lock := b.configLocks.lock(c.Name)
	defer lock.Unlock()
	kept, err := getStored[storedConnection](ctx, s, prefixRetired+c.ID)
	if err != nil {
		return err
	}
	if kept != nil && kept.Secrets[detailPassword] != begun.Credential.Password {
		next := kept.withLogin(begun.Username, begun.Credential.password())
		if err := putStored(ctx, s, prefixRetired+c.ID, next); err != nil {
			return err
		}
		b.retired.put(c.ID, nil)
	}
	current, err := b.connections.get(ctx, s, c.Name)
	if err != nil || current == nil || current.ID != c.ID || current.detail(detailUsername) != begun.Username {
		return err
	}
	stored := current.withLogin(begun.Username, begun.Credential.password())
	if stored.RootFulfilled, err = b.demandsNow(ctx, s, c.Name); err != nil {
		return err
	}
	b.planRoot(&stored)
	stored.LastRootRotation = stored.RootPlanned.Wall
	if err := b.storeRootPlan(ctx, s, stored); err != nil {
		return err
	}
	b.queueRoot(&stored)
	return nil
}

// storeRootPlan stores a connection and queues the next rotation of its own user, or
// leaves the one that was begun to be finished. The caller holds its lock.
func (b *backend) storeRootPlan(ctx context.Context, s logical.Storage, stored storedConnection) error {
	next, err := newConnection(stored)
	if err != nil {
		return err
	}
	if err := putStored(ctx, s, prefixConfig+stored.Name, stored); err != nil {
		b.connections.put(stored.Name, nil) // whether it was stored is not known
		return err
	}
	b.connections.put(stored.Name, next)
	b.requeueRoot(&stored)
	return nil
}
