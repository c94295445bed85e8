package plugin

import (
	"context"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// settleRetired finds out whether a rotation that was begun on a connection which has
// been deleted or re-pointed since took effect: logins that were made on it are ended
// with the password that works. It is not rolled forward: whoever configured the
// server anew knows the password it has. While the server does not tell it is tried
// again, until the connection's last account is gone.
func (b *backend) settleRetired(ctx context.Context, s logical.Storage, id string) error {
	unlock, err := b.rotationLocks.lock(ctx, prefixRotationOwn+id)
	if err != nil {
		return err
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rotationLimit)
	defer cancel()

	begun, err := getStored[intention](ctx, s, prefixRotationOwn+id)
	if err != nil {
		return err
	}
	if begun == nil {
		b.rotations.remove(retiredKey(id))
		return nil
	}
	c, err := b.connectionOf(ctx, s, begun.Connection, id)
	if err != nil {
		return err
	}
	if c != nil && c.RetiredAt.IsZero() {
		// It could not be deleted or re-pointed after all.
		b.rotations.remove(retiredKey(id))
		b.rotations.put(rootKey(c.Name), c.Name, 0, true)
		return nil
	}
	if c != nil && c.detail(detailUsername) == begun.Username {
		if err := b.learnRetired(ctx, s, c, begun); err != nil {
			err = c.explain(err)
			b.rotations.retry(retiredKey(id), id, err)
			return err
		}
	}
	if err := deleteStored(ctx, s, prefixRotationOwn+id); err != nil {
		return err
	}
	b.rotations.remove(retiredKey(id))
	return nil
}

// learnRetired stores the new password with a retired connection if its server takes it.
// That it does not says little: products refuse a login that is locked or over, or that
// may not come from here, as they refuse a wrong password. The new one is given up when
// another password is let in, for then the new one is wrong; the retired connection's
// own, or one that somebody has written since for the same user of the server. Until
// then it is an error.
func (b *backend) learnRetired(ctx context.Context, s logical.Storage, c *connection, begun *intention) error {
	driver, err := c.open()
	if err != nil {
		return err
	}
	err = driver.Login(ctx, begun.Username, begun.Credential.password())
	switch {
	case err == nil:
		return b.storeRootPassword(ctx, s, c, begun)
	case !loginRefused(err):
		return err
	}
	others, listing := b.otherPasswords(ctx, s, c)
	if listing != nil {
		return listing
	}
	for _, password := range others {
		if driver.Login(ctx, begun.Username, password) == nil {
			return nil
		}
	}
	return err
}

// otherPasswords are those that the own user of a retired connection may have but for
// one that was begun: the connection's, and those of connections of today.
func (b *backend) otherPasswords(ctx context.Context, s logical.Storage, c *connection) ([]wire.Secret, error) {
	names, err := listStored(ctx, s, prefixConfig)
	if err != nil {
		return nil, err
	}
	connections := []*connection{c}
	for _, name := range names {
		other, err := b.connections.get(ctx, s, name)
		if err == nil && other != nil && c.sameServer(other) && other.detail(detailUsername) == c.detail(detailUsername) {
			connections = append(connections, other) // one that cannot be used is no help
		}
	}
	var passwords []wire.Secret
	for _, each := range connections {
		if password := each.secret(detailPassword); !password.Empty() {
			passwords = append(passwords, password)
		}
	}
	return passwords, nil
}

// settleSoon has what was begun on a connection settled, now that it is retired. Its
// rotation may be going on.
func (b *backend) settleSoon(id string) { b.rotations.put(retiredKey(id), id, 0, true) }

// adoptRoot moves what was begun by a version of before storage schema 3 to where it is
// looked for now: it stood under the connection's name, where it held up the next
// connection of that name. A crash on the way leaves it in both places, and it is moved
// again.
func (b *backend) adoptRoot(ctx context.Context, s logical.Storage, name string) error {
	unlock, err := b.rotationLocks.lock(ctx, prefixRotationRoot+name)
	if err != nil {
		return err
	}
	defer unlock()
	begun, err := getStored[intention](ctx, s, prefixRotationRoot+name)
	if err != nil || begun == nil {
		return err
	}
	begun.Connection = name
	if err := putStored(ctx, s, prefixRotationOwn+begun.ConnectionID, begun); err != nil {
		return err
	}
	return deleteStored(ctx, s, prefixRotationRoot+name)
}
