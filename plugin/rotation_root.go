package plugin

import (
	"context"
	"errors"
	"maps"
	"time"

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
// begun.
func (b *backend) rotateRoot(ctx context.Context, s logical.Storage, name string, onlyDue bool) error {
	unlock, err := b.rotationLocks.lock(ctx, prefixRotationRoot+name)
	if err != nil {
		return err
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rotationLimit)
	defer cancel()

	c, err := b.connections.get(ctx, s, name)
	if err != nil {
		return err
	}
	begun, err := getStored[intention](ctx, s, prefixRotationRoot+name)
	if err != nil {
		return err
	}
	if begun != nil {
		if err := b.completeRoot(ctx, s, name, c, begun); err != nil {
			return err
		}
		if onlyDue {
			return nil
		}
		if c, err = b.connections.get(ctx, s, name); err != nil {
			return err
		}
	}
	if c == nil {
		b.rotations.remove(rootKey(name))
		return notFound("no connection %q; write config/%s first", name, name)
	}
	if onlyDue && (c.NextRootRotation.IsZero() || b.now().Before(c.rootDue(b.now()))) {
		b.rotations.put(rootKey(name), name, c.rootDue(b.now()))
		return nil
	}
	if err := c.rotatableRoot(); err != nil {
		return err
	}
	password, err := b.newPassword(ctx, c.PasswordPolicy)
	if err != nil {
		return err
	}
	begun = &intention{
		ConnectionID: c.ID, Username: c.detail(detailUsername),
		Credential: storedCredential{Password: password.Reveal()}, StartedAt: b.now(),
	}
	fault(kindRoot, pointBegun)
	if err := putStored(ctx, s, prefixRotationRoot+name, begun); err != nil {
		return err
	}
	return b.applyRoot(ctx, s, c, begun, false)
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

// rootDue is when the own user's password is rotated next; zero is never.
func (s storedConnection) rootDue(now time.Time) time.Time {
	if !s.NextRootRotation.IsZero() && s.Rotation.missed(s.NextRootRotation, now) {
		return s.Rotation.next(now)
	}
	return s.NextRootRotation
}

// completeRoot rolls a rotation forward, on the connection it was begun on.
func (b *backend) completeRoot(ctx context.Context, s logical.Storage, name string, c *connection, begun *intention) error {
	if c == nil || c.ID != begun.ConnectionID {
		var err error
		if c, err = b.retired.get(ctx, s, begun.ConnectionID); err != nil {
			return err
		}
	}
	key := prefixRotationRoot + name
	if c == nil || c.detail(detailUsername) != begun.Username {
		// The connection is gone, or has another user now.
		return deleteStored(ctx, s, key)
	}
	if !c.RetiredAt.IsZero() {
		return b.settleRetired(ctx, s, c, begun)
	}
	if c.Secrets[detailPassword] == begun.Credential.Password {
		if err := deleteStored(ctx, s, key); err != nil {
			return err
		}
		b.rotations.put(rootKey(name), name, c.rootDue(b.now()))
		return nil
	}
	return b.applyRoot(ctx, s, c, begun, true)
}

// settleRetired finds out whether a rotation that was begun on a connection which has
// been deleted or re-pointed since took effect. It is not rolled forward: whoever
// configured the server anew knows the password it has.
func (b *backend) settleRetired(ctx context.Context, s logical.Storage, c *connection, begun *intention) error {
	driver, err := c.open()
	if err == nil {
		err = driver.Login(ctx, begun.Username, begun.Credential.password())
	}
	switch {
	case err == nil:
		err = b.storeRootPassword(ctx, s, c, begun)
	case loginRefused(err):
		err = nil
	}
	if err != nil {
		err = c.explain(err)
		b.rotations.retry(rootKey(c.Name), c.Name, err)
		return err
	}
	return deleteStored(ctx, s, prefixRotationRoot+c.Name)
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
			return errors.Join(err, deleteStored(ctx, s, prefixRotationRoot+c.Name))
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
	if err := deleteStored(ctx, s, prefixRotationRoot+c.Name); err != nil {
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
	stored.LastRootRotation = b.now()
	stored.planRoot(stored.LastRootRotation)
	next, err := newConnection(stored)
	if err != nil {
		return err
	}
	if err := putStored(ctx, s, prefixConfig+c.Name, stored); err != nil {
		b.connections.put(c.Name, nil) // whether it was stored is not known
		return err
	}
	b.connections.put(c.Name, next)
	b.rotations.put(rootKey(c.Name), c.Name, stored.NextRootRotation)
	return nil
}

// planRoot sets when the own user's password is rotated after a time.
func (s *storedConnection) planRoot(after time.Time) {
	s.NextRootRotation = time.Time{}
	if !s.DisableRotation {
		s.NextRootRotation = s.Rotation.next(after)
	}
}
