package plugin

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// A rotation never loses the credential that works: the new one is stored in an
// intention before the server is told. Whatever happens then, the next attempt
// finds the intention and rolls forward: it makes the server take the same new
// credential, stores it where it belongs, and removes the intention.
//
//	store intention → change at the server → store credential → remove intention

// rotationKind and rotationPoint say where a rotation stands: a crash between any
// two points loses nothing.
type (
	rotationKind  string
	rotationPoint string
)

const (
	kindStaticRole rotationKind = "static"
	kindRoot       rotationKind = "root"

	pointBegun     rotationPoint = "begun"     // nothing is done yet
	pointIntention rotationPoint = "intention" // the intention is stored
	pointChanged   rotationPoint = "changed"   // the server has the new credential
	pointStored    rotationPoint = "stored"    // so has the role or the connection
	pointRemoved   rotationPoint = "removed"   // the intention is removed
)

// intention is the entry under rotation/role/ and rotation/own/.
type intention struct {
	// Connection is the name of the connection whose own user is rotated.
	Connection   string           `json:"connection,omitempty"`
	ConnectionID string           `json:"connection_id"`
	Username     string           `json:"username"`
	Credential   storedCredential `json:"credential"`
	StartedAt    time.Time        `json:"started_at"`
	// Role is the static role that was being made.
	Role *staticRole `json:"role,omitempty"`
}

// rotationLimit is the longest a rotation takes: the calls to the database have
// their own, shorter limits, and storage may be slow.
const rotationLimit = 45 * time.Second

// change asks a server to take a credential.
type change struct {
	connection *connection
	username   string
	statements []string
	iterations int // as in [account.RotateRequest]
	old, next  storedCredential
	// repeated says that an attempt with next may have taken effect.
	repeated bool
	// self says that the login changes its own credential, as the connection's
	// own user and self-managed logins do.
	self bool
}

// apply makes the server take the new credential. After an error, unchanged says
// that the old one surely still is the login's.
func (ch change) apply(ctx context.Context) (unchanged bool, err error) {
	request, err := ch.next.request(ch.username, ch.statements)
	if err != nil {
		return !ch.repeated, err
	}
	request.Iterations = ch.iterations
	if ch.self {
		return ch.applySelf(ctx, request)
	}
	driver, err := ch.connection.open()
	if err != nil {
		return !ch.repeated, err
	}
	err = driver.Rotate(ctx, request)
	switch {
	case err == nil:
		return false, nil
	case account.Ambiguous(err):
		return false, err
	case !ch.repeated:
		return true, err
	case !refused(err) || ch.next.Password == "":
		return false, err
	}
	// The server does not take it, now. It may have before.
	switch check := driver.Login(ctx, ch.username, ch.next.password()); {
	case check == nil:
		return false, nil
	case !loginRefused(check):
		return false, err
	}
	// A login may be refused for other reasons than its password, such as where it
	// comes from. That the old one is let in is proof.
	if ch.old.Password != "" && driver.Login(ctx, ch.username, ch.old.password()) != nil {
		return false, err
	}
	return true, err
}

// applySelf logs in with the credential that works, which after a crash may be
// either.
func (ch change) applySelf(ctx context.Context, request account.RotateRequest) (unchanged bool, err error) {
	candidates := []storedCredential{ch.old}
	if ch.repeated {
		candidates = []storedCredential{ch.next, ch.old}
	}
	for _, candidate := range candidates {
		var login error
		err = ch.connection.as(ch.username, candidate.password(), func(driver account.Driver) error {
			err := driver.Rotate(ctx, request)
			if ch.repeated && refused(err) && !account.Ambiguous(err) {
				// It may have been refused before anybody logged in, as statements are
				// that cannot be rendered.
				login = driver.Login(ctx, ch.username, candidate.password())
			}
			return err
		})
		switch {
		case err == nil:
			return false, nil
		case loginRefused(err):
			continue
		case !refused(err) || account.Ambiguous(err):
			return !ch.repeated && !account.Ambiguous(err), err
		case loginRefused(login) && candidate == ch.next:
			continue
		case login != nil:
			return false, err
		case ch.repeated && candidate == ch.next:
			return false, nil // it logs in
		default:
			return true, err
		}
	}
	return !ch.repeated, err
}

// as runs f with a driver that logs in as another user.
func (c *connection) as(username string, password wire.Secret, f func(account.Driver) error) error {
	driver, err := c.product.open(c.withLogin(username, password))
	if err != nil {
		return err
	}
	defer driver.Close()
	return f(account.Sanitize(driver, append(c.secrets(), password)...))
}

// refused reports whether the server was asked and said no.
func refused(err error) bool {
	var e *account.Error
	return errors.As(err, &e) && e.Code != wire.CodeUnavailable && e.Code != wire.CodeLoginRefused
}

func loginRefused(err error) bool {
	var e *account.Error
	return errors.As(err, &e) && e.Code == wire.CodeLoginRefused
}

// explainRotation is explain for a rotation of username.
func (c *connection) explainRotation(username string, self bool, err error) error {
	var e *account.Error
	if errors.As(err, &e) {
		switch {
		case e.Code == wire.CodeNotFound:
			return &wire.Error{Code: wire.CodeConflict, Reason: fmt.Sprintf("connection %q: %s", c.Name, e), Hint: "make the login, or name an existing one"}
		case self && e.Code == wire.CodeLoginRefused:
			return &wire.Error{
				Code: wire.CodeLoginRefused, Reason: fmt.Sprintf("connection %q: the password known for %q is refused", c.Name, username),
				Hint: "write the right one",
			}
		}
	}
	return c.explain(err)
}

// rotateStaticRole gives a static role a new credential, or completes a rotation
// that was begun. created is the role when it is being made, else nil. With
// onlyDue nothing is done unless the role is due or a rotation was begun.
func (b *backend) rotateStaticRole(ctx context.Context, s logical.Storage, name string, created *staticRole, onlyDue bool) error {
	unlock, err := b.rotationLocks.lock(ctx, prefixRotationRole+name)
	if err != nil {
		return err
	}
	defer unlock()
	// Once begun it is finished, whoever was waiting for it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rotationLimit)
	defer cancel()

	r, err := b.staticRoles.get(ctx, s, name)
	if err != nil {
		return err
	}
	begun, err := getStored[intention](ctx, s, prefixRotationRole+name)
	if err != nil {
		return err
	}
	switch {
	case r != nil && created != nil:
		return &wire.Error{Code: wire.CodeConflict, Reason: fmt.Sprintf("static role %q was made by another request at the same time", name)}
	case r == nil && created != nil:
		r = created
	case r == nil && begun != nil && begun.Role != nil:
		r, created = begun.Role, begun.Role
	case r == nil:
		b.rotations.remove(staticRoleKey(name))
		return notFound("no static role %q", name)
	}
	if begun != nil && (begun.Username != r.Username || begun.Credential == r.Credential) {
		// It was completed, or is another login's.
		if err := deleteStored(ctx, s, prefixRotationRole+name); err != nil {
			return err
		}
		begun = nil
	}
	if onlyDue && begun == nil {
		if left, ever := b.staticRoleLeft(r); !ever || left > 0 {
			b.queueStaticRole(r)
			return nil
		}
	}
	return b.rotateBegun(ctx, s, r, created != nil, begun)
}

// rotateBegun is rotateStaticRole with the lock held.
func (b *backend) rotateBegun(ctx context.Context, s logical.Storage, r *staticRole, creating bool, begun *intention) error {
	c, err := b.staticRoleConnection(ctx, s, r)
	if err != nil {
		return err
	}
	if err := r.refuseOwnUser(c); err != nil {
		return err
	}
	iterations, err := b.rotationIterations(ctx, c, r.passwordPolicy(c))
	if err != nil {
		return err
	}
	repeated := begun != nil
	if !repeated {
		begun = &intention{ConnectionID: c.ID, Username: r.Username, StartedAt: b.now()}
		if begun.Credential, err = b.newCredential(ctx, c, r); err != nil {
			return err
		}
		fault(kindStaticRole, pointBegun)
		if err := b.storeIntention(ctx, s, r, creating, begun); err != nil {
			return err
		}
	}
	fault(kindStaticRole, pointIntention)
	unchanged, err := change{
		connection: c, username: r.Username, statements: r.RotationStatements, iterations: iterations,
		old: r.Credential, next: begun.Credential, repeated: repeated, self: r.SelfManaged,
	}.apply(ctx)
	b.metrics.rotated(staticRoleKey(r.Name), err)
	if err != nil {
		err = c.explainRotation(r.Username, r.SelfManaged, err)
		if unchanged {
			return errors.Join(err, deleteStored(ctx, s, prefixRotationRole+r.Name))
		}
		b.rotations.retry(staticRoleKey(r.Name), c.Name, err)
		return err
	}
	fault(kindStaticRole, pointChanged)
	if err := b.storeRotated(ctx, s, r, creating, begun.Credential); err != nil {
		b.rotations.retry(staticRoleKey(r.Name), c.Name, err)
		return err
	}
	fault(kindStaticRole, pointStored)
	b.noteRotated(c.Name, r.Name, r.Username, nil)
	b.Logger().Info("static role rotated", "name", r.Name, "connection", c.Name, "username", r.Username)
	if err := deleteStored(ctx, s, prefixRotationRole+r.Name); err != nil {
		// The next rotation finds that it was completed.
		b.Logger().Warn("the intention of a completed rotation is left", "name", r.Name, "error", err)
	}
	fault(kindStaticRole, pointRemoved)
	return nil
}

// storeIntention stores what is about to be done. From here on no role can take
// the name of a static role that is being made.
func (b *backend) storeIntention(ctx context.Context, s logical.Storage, r *staticRole, creating bool, begun *intention) error {
	lock := b.roleLocks.lock(r.Name)
	defer lock.Unlock()
	if creating {
		if err := b.refuseRoleName(ctx, s, r.Name); err != nil {
			return err
		}
		begun.Role = r
	}
	return putStored(ctx, s, prefixRotationRole+r.Name, begun)
}

// storeRotated stores a role with its new credential. What a request has changed
// in the role meanwhile stays.
func (b *backend) storeRotated(ctx context.Context, s logical.Storage, rotated *staticRole, creating bool, credential storedCredential) error {
	lock := b.roleLocks.lock(rotated.Name)
	defer lock.Unlock()
	current, err := b.staticRoles.get(ctx, s, rotated.Name)
	if err != nil {
		return err
	}
	switch {
	case current == nil && !creating, current != nil && current.Username != rotated.Username:
		return nil // it is not managed any more
	case current == nil:
		current = rotated
	}
	stored := *current
	if stored.Fulfilled, err = b.demandsNow(ctx, s, stored.DBName); err != nil {
		return err
	}
	b.planStaticRole(&stored)
	stored.Credential, stored.LastRotation = credential, stored.Planned.Wall
	if err := b.storeStaticRole(ctx, s, &stored); err != nil {
		return err
	}
	b.queueStaticRole(&stored)
	return nil
}

// storeStaticRole stores a role and queues its next rotation, or leaves the one that
// was begun to be finished.
func (b *backend) storeStaticRole(ctx context.Context, s logical.Storage, r *staticRole) error {
	if err := putStored(ctx, s, prefixStaticRole+r.Name, r); err != nil {
		b.staticRoles.put(r.Name, nil) // whether it was stored is not known
		return err
	}
	b.staticRoles.put(r.Name, r)
	b.requeueStaticRole(r)
	return nil
}

// staticRoleConnection returns the connection of a role that may use it.
func (b *backend) staticRoleConnection(ctx context.Context, s logical.Storage, r *staticRole) (*connection, error) {
	c, err := b.connections.get(ctx, s, r.DBName)
	if err != nil {
		return nil, err
	}
	if c == nil {
		return nil, &wire.Error{Code: wire.CodeConflict, Reason: fmt.Sprintf("connection %q of static role %q is not configured", r.DBName, r.Name)}
	}
	if !c.allows(r.Name) {
		return nil, &wire.Error{
			Code: wire.CodeDenied, Reason: fmt.Sprintf("static role %q is not in allowed_roles of connection %q", r.Name, c.Name),
			Hint: "add the role, or a glob that matches it, to allowed_roles in config/" + c.Name,
		}
	}
	return c, nil
}
