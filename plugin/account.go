package plugin

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/ryanuber/go-glob"
	"golang.org/x/sync/singleflight"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Times around an account's life.
const (
	// expirySlack is how much longer than the lease the server itself lets the
	// login in, as in Vault's own engine: both clocks need not agree.
	expirySlack = 5 * time.Second
	// endGrace is how long after its time an account is left to its lease's own
	// revocation before the sweep ends it.
	endGrace = 20 * time.Second
	// ambiguousWait is longer than a server works on a creation whose answer was
	// lost, so that ending it does not come first.
	ambiguousWait = 15 * time.Second
	ttlKept       = 10 * time.Second
)

// accountState is what the backend holds for accounts.
type accountState struct {
	mountMu sync.Mutex
	mountID atomic.Pointer[string]

	index     *accountIndex
	strangers strangers
	// ends makes a lease's revocation, the sweep and an operation that end one
	// account at the same time wait for one attempt.
	ends singleflight.Group
	// preparations makes logins of one preset wait for one preparation.
	preparations singleflight.Group
	// loads makes requests that need all records wait for one reading of them.
	loads singleflight.Group

	strength passwordStrength

	ttlMu    sync.Mutex
	ttl      mountTTL
	ttlUntil time.Time
}

// mountTTL are the mount's limits.
type mountTTL struct{ preset, longest time.Duration }

// accountRequest asks for a login.
type accountRequest struct {
	Connection string
	Role       string
	Purpose    wire.Purpose
	Side       wire.Side
	// OperationID is empty for creds/.
	OperationID string
	Fence       string // of the operation's claim
	// Config is the digest of the configuration that the login is for: of another
	// one none is made. Empty: of any.
	Config string
	// Login is the digest of what it is to be granted: nothing else is. Empty:
	// whatever the role says.
	Login string
	// TTL is cut to what the role and the mount allow; 0 takes their default.
	TTL         time.Duration
	DisplayName string
	EntityID    string
	// ConnectionLimit caps the login's sessions; 0 leaves it to the role.
	ConnectionLimit int
}

// issuedAccount is a login that was made.
type issuedAccount struct {
	RecordID     string
	ConnectionID string
	// AtServer says that the server keeps the record.
	AtServer bool
	Username string
	leasedCredential
	TTL time.Duration
	// MaxTTL is the longest the role and the mount let it be renewed to.
	MaxTTL   time.Duration
	Warnings []string
}

// issueAccount makes a login. Its record is stored before; after an error either
// nothing is left, or the record is and the sweep ends what it stands for.
func (b *backend) issueAccount(ctx context.Context, s logical.Storage, r accountRequest) (issuedAccount, error) {
	if err := b.refuseLocked(ctx, s); err != nil {
		return issuedAccount{}, err
	}
	c, err := b.connections.get(ctx, s, r.Connection)
	if err != nil {
		return issuedAccount{}, err
	}
	if c == nil {
		return issuedAccount{}, &wire.Error{Code: wire.CodeConflict, Reason: fmt.Sprintf("connection %q of role %q is not configured", r.Connection, r.Role)}
	}
	if r.Config != "" && c.digest != r.Config {
		return issuedAccount{}, planChanged("config/" + r.Connection)
	}
	role, err := b.usableRole(ctx, s, r.Role, c)
	if err != nil {
		return issuedAccount{}, err
	}
	if r.Login != "" {
		if login, err := c.login(role); err != nil {
			return issuedAccount{}, err
		} else if login.Digest != r.Login {
			return issuedAccount{}, planChanged("roles/" + role.Name)
		}
	}
	statements, err := c.creationStatements(role)
	if err != nil {
		return issuedAccount{}, err
	}
	driver, err := c.open()
	if err != nil {
		return issuedAccount{}, c.explain(err)
	}
	if b.readOnly.Load() {
		return issuedAccount{}, logical.ErrReadOnly
	}
	limits := b.mountLimits()
	issued := issuedAccount{}
	issued.TTL, issued.MaxTTL, issued.Warnings = accountTTL(r.TTL, role, limits)
	if issued.Username, err = b.username(ctx, s, c, r.DisplayName, r.Role, r.EntityID); err != nil {
		return issuedAccount{}, err
	}
	var iterations int
	if issued.leasedCredential, iterations, err = b.newLeasedCredential(ctx, c, role, r, issued); err != nil {
		return issuedAccount{}, err
	}

	now := b.now()
	record := &accountRecord{
		ID: newRecordID(r.OperationID), Connection: c.Name, ConnectionID: c.ID, Role: role.Name, Username: issued.Username,
		Purpose: r.Purpose, Side: r.Side, OperationID: r.OperationID, EntityID: r.EntityID, Fence: r.Fence,
		CreatedAt: now, ExpiresAt: now.Add(issued.TTL), Revocation: role.RevocationStatements,
	}
	if r.OperationID != "" {
		record.Renewal = role.RenewStatements
	}
	request := account.CreateRequest{
		Username: issued.Username, Password: issued.Password, PublicKey: issued.PublicKey, CommonName: issued.CommonName,
		Expiration: now.Add(issued.TTL + expirySlack),
		Statements: statements, ConnectionLimit: r.ConnectionLimit, Iterations: iterations,
	}
	if record.atServer, err = b.serverKeeps(ctx, s, c, driver, role, statements, record); err != nil {
		return issuedAccount{}, err
	}
	if record.atServer {
		if request.Note, err = noteOf(record, now.Add(issued.MaxTTL)); err != nil {
			return issuedAccount{}, err
		}
	}
	if err := b.admitAccount(ctx, s, c, role, record); err != nil {
		return issuedAccount{}, err
	}
	if err := b.keepRecord(ctx, s, record); err != nil {
		return issuedAccount{}, err
	}
	// A caller that goes away must not leave open whether the login was made.
	began := time.Now()
	err = b.createLogin(context.WithoutCancel(ctx), c, role, driver, request)
	b.metrics.accountIssued(c.product.engine, r.OperationID, time.Since(began), err)
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = b.refuseLocked(ctx, s) // a lockdown may have begun meanwhile
	}
	if err != nil {
		return issuedAccount{}, errors.Join(c.explain(err), b.giveUp(context.WithoutCancel(ctx), s, record, err))
	}
	issued.RecordID, issued.ConnectionID, issued.AtServer = record.ID, c.ID, record.atServer
	return issued, nil
}

// usableRole returns the named role if it may be used with c.
func (b *backend) usableRole(ctx context.Context, s logical.Storage, name string, c *connection) (*role, error) {
	r, err := b.roles.get(ctx, s, name)
	if err != nil {
		return nil, err
	}
	if r == nil {
		return nil, &wire.Error{Code: wire.CodeConflict, Reason: fmt.Sprintf("role %q of connection %q does not exist", name, c.Name)}
	}
	if r.DBName != c.Name {
		return nil, &wire.Error{Code: wire.CodeConflict, Reason: fmt.Sprintf("role %q belongs to connection %q, not to %q", name, r.DBName, c.Name)}
	}
	if !c.allows(name) {
		return nil, &wire.Error{
			Code: wire.CodeDenied, Reason: fmt.Sprintf("role %q is not in allowed_roles of connection %q", name, c.Name),
			Hint: "add the role, or a glob that matches it, to allowed_roles in config/" + c.Name,
		}
	}
	return r, nil
}

// creationStatements are those of the role or of its preset, or the product's when
// it has neither.
func (c *connection) creationStatements(r *role) ([]string, error) {
	switch {
	case r.Preset != "":
		e, err := c.expand(r)
		return e.Creation, err
	case len(r.CreationStatements) > 0:
		return r.CreationStatements, nil
	case len(c.product.creation) == 0:
		return nil, invalidField("creation_statements", "role %q has none, and no preset", r.Name)
	}
	return c.product.creation, nil
}

// allows reports whether allowed_roles names the role.
func (c *connection) allows(roleName string) bool {
	for _, pattern := range c.AllowedRoles {
		if glob.Glob(pattern, roleName) {
			return true
		}
	}
	return false
}

// accountTTL cuts the wanted life to what role and mount allow.
func accountTTL(wanted time.Duration, r *role, limits mountTTL) (ttl, longest time.Duration, warnings []string) {
	longest = limits.longest
	if r.MaxTTL > 0 {
		longest = min(longest, r.MaxTTL)
	}
	ttl = limits.preset
	if r.DefaultTTL > 0 {
		ttl = r.DefaultTTL
	}
	if wanted > 0 {
		ttl = wanted
	}
	if ttl > longest {
		warnings = append(warnings, fmt.Sprintf("ttl of %s is cut to the maximum of %s", ttl, longest))
		ttl = longest
	}
	return ttl, longest, warnings
}

// mountLimits returns the mount's TTLs, which cost a call to Vault each and hardly
// ever change. Vault itself cuts every lease to the current ones.
func (b *backend) mountLimits() mountTTL {
	b.accounts.ttlMu.Lock()
	defer b.accounts.ttlMu.Unlock()
	now := b.now()
	if now.After(b.accounts.ttlUntil) {
		b.accounts.ttl = mountTTL{preset: b.System().DefaultLeaseTTL(), longest: b.System().MaxLeaseTTL()}
		b.accounts.ttlUntil = now.Add(ttlKept)
	}
	return b.accounts.ttl
}

// keepRecord stores a record, unless the server keeps it, and notes when it is due.
func (b *backend) keepRecord(ctx context.Context, s logical.Storage, record *accountRecord) error {
	b.accounts.index.put(record, endOf(record), 0)
	if record.atServer {
		return nil
	}
	if err := putStored(ctx, s, prefixAccount+record.ID, record); err != nil {
		// It may have been stored all the same; then the sweep finds it later.
		return err
	}
	return nil
}

// giveUp clears up after a creation that failed with cause: the record of what
// was surely not made goes, any other becomes due soon.
func (b *backend) giveUp(ctx context.Context, s logical.Storage, record *accountRecord, cause error) error {
	var e *account.Error
	if errors.As(cause, &e) && !e.Ambiguous {
		if !record.atServer {
			if err := deleteStored(ctx, s, prefixAccount+record.ID); err != nil {
				return err
			}
		}
		b.accounts.index.remove(record.ID)
		return nil
	}
	due := b.now()
	if e != nil {
		due = due.Add(ambiguousWait)
	}
	// Stored in any case: the server would keep the login until its full time.
	record.ExpiresAt, record.Unconfirmed, record.atServer = due, true, false
	b.accounts.index.put(record, due, 0)
	return putStored(ctx, s, prefixAccount+record.ID, record)
}

// errEnded says that a login cannot be renewed because it has been or is being
// ended.
func errEnded() *wire.Error {
	return &wire.Error{Code: wire.CodeLeaseLost, Reason: "the login has been ended"}
}

// renewAccount moves the account's end to ttl from now, at the server and in its
// record. The record is moved first: should the server refuse, the lease's end
// still ends the login.
func (b *backend) renewAccount(ctx context.Context, s logical.Storage, recordID string, ttl time.Duration) error {
	record, err := b.record(ctx, s, recordID)
	if err != nil {
		return err
	}
	if record == nil || b.accounts.index.attempts(recordID) > 0 {
		return errEnded()
	}
	c, err := b.connectionOf(ctx, s, record.Connection, record.ConnectionID)
	if err != nil {
		return err
	}
	if c == nil || !c.RetiredAt.IsZero() {
		return &wire.Error{Code: wire.CodeLeaseLost, Reason: fmt.Sprintf("connection %q was deleted or leads elsewhere now", record.Connection)}
	}
	driver, err := c.open()
	if err != nil {
		return c.explain(err)
	}
	statements := record.Renewal
	if record.OperationID == "" {
		if role, err := b.roles.get(ctx, s, record.Role); err != nil {
			return err
		} else if role != nil {
			statements = role.RenewStatements
		}
	}
	// Statements of one's own need not move what the server knows.
	record.atServer = record.atServer && len(statements) == 0
	record.ExpiresAt = b.now().Add(ttl)
	if err := b.keepRecord(ctx, s, record); err != nil {
		return err
	}
	err = driver.Renew(ctx, account.RenewRequest{
		Username: record.Username, Expiration: record.ExpiresAt.Add(expirySlack), Statements: statements,
	})
	var e *account.Error
	if errors.As(err, &e) && e.Code == wire.CodeNotFound {
		return errEnded()
	}
	return c.explain(err)
}

// endAccount ends the login of a record and removes the record. A record or login
// that is gone is success. A failure is stored and tried again for ever.
func (b *backend) endAccount(ctx context.Context, s logical.Storage, recordID string) error {
	// Once begun it is finished, whoever was waiting for it.
	ctx = context.WithoutCancel(ctx)
	_, err, _ := b.accounts.ends.Do(recordID, func() (any, error) { return nil, b.endRecord(ctx, s, recordID) })
	return err
}

func (b *backend) endRecord(ctx context.Context, s logical.Storage, recordID string) error {
	record, err := b.record(ctx, s, recordID)
	if err != nil {
		return err
	}
	if record == nil {
		b.accounts.index.remove(recordID)
		return nil
	}
	err = b.endLogin(ctx, s, record)
	b.metrics.accountEnded(err)
	if err != nil {
		return errors.Join(err, b.retryLater(ctx, s, record, err))
	}
	if err := b.noteAccountEnded(ctx, s, record); err != nil {
		return err
	}
	if !record.atServer {
		if err := deleteStored(ctx, s, prefixAccount+recordID); err != nil {
			return err
		}
	}
	attempts := b.accounts.index.attempts(recordID)
	if attempts > 0 {
		if err := deleteStored(ctx, s, prefixRevocation+revocationID(recordID)); err != nil {
			return err
		}
	}
	b.accounts.index.remove(recordID)
	b.noteEnded(record, attempts)
	return nil
}

// endLogin asks the server to end the login.
func (b *backend) endLogin(ctx context.Context, s logical.Storage, record *accountRecord) error {
	c, err := b.connectionOf(ctx, s, record.Connection, record.ConnectionID)
	if err != nil {
		return err
	}
	if c == nil {
		return notFound("connection %q, where the login was made, is not configured any more", record.Connection)
	}
	now := b.now()
	if c.down(now) {
		return c.explain(&account.Error{Op: "end", Code: wire.CodeUnavailable, Reason: "the server could not be reached a moment ago"})
	}
	driver, err := c.open()
	if err != nil {
		return c.explain(err)
	}
	statements := record.Revocation
	if record.OperationID == "" {
		if role, err := b.roles.get(ctx, s, record.Role); err != nil {
			return err
		} else if role != nil && role.DBName == record.Connection {
			statements = role.RevocationStatements
		}
	}
	err = driver.End(ctx, account.EndRequest{Username: record.Username, Statements: statements})
	if record.OperationID != "" && len(statements) > 0 && err != nil && !account.Unreachable(err) && !loginRefused(err) {
		// Nobody can correct them for a login that was approved with them, so the
		// driver's own way is the way out.
		b.Logger().Warn("revocation_statements did not end a login of an operation; it is ended without them", "operation_id", record.OperationID, "role", record.Role, "error", err)
		err = driver.End(ctx, account.EndRequest{Username: record.Username})
	}
	if account.Unreachable(err) {
		c.setDown(b.now().Add(downKept))
	}
	if loginRefused(err) && !c.RetiredAt.IsZero() {
		return b.endThroughOther(ctx, s, c, record, statements, err)
	}
	return c.explain(err)
}

// endThroughOther ends a login that was made on a connection which is deleted or leads
// elsewhere now, and whose password the server does not take any more: nobody can
// correct that. A connection of today to the same server can. Its user runs statements
// of the roles that it allows, and ends logins of others as the product does.
func (b *backend) endThroughOther(ctx context.Context, s logical.Storage, c *connection, record *accountRecord, statements []string, cause error) error {
	names, err := listStored(ctx, s, prefixConfig)
	if err != nil {
		return err
	}
	asked := c
	for _, name := range names {
		other, err := b.connections.get(ctx, s, name)
		if err != nil || other == nil || !c.sameServer(other) {
			continue // one that cannot be used is no help
		}
		request := account.EndRequest{Username: record.Username}
		if other.allows(record.Role) {
			request.Statements = statements
		}
		driver, err := other.open()
		if err == nil {
			err = driver.End(ctx, request)
		}
		if err == nil {
			return nil
		}
		if !loginRefused(err) {
			asked, cause = other, err // another may do better
		}
	}
	return asked.explain(cause)
}

// Pauses between attempts to end an account.
const (
	firstRetry = 10 * time.Second
	lastRetry  = 10 * time.Minute
	// unavailableRetry is the longest pause while the server cannot be reached,
	// so that however long it was gone, what waited for it is ended within a
	// minute of its return. It costs one attempt for all its accounts: the sweep
	// tries no other after the first that finds it unreachable.
	unavailableRetry = 20 * time.Second
)

// retryPause is the pause after so many attempts.
func retryPause(attempts int, unreachable bool) time.Duration {
	longest := lastRetry
	if unreachable {
		longest = unavailableRetry
	}
	return backOff(attempts, firstRetry, longest)
}

// retryLater stores that an account could not be ended and when to try again.
func (b *backend) retryLater(ctx context.Context, s logical.Storage, record *accountRecord, cause error) error {
	now := b.now()
	if record.atServer {
		// Its time at the server may be over soon, and with it what the server
		// knows of it would not be looked for any more.
		record.atServer, record.ExpiresAt = false, now
		if err := putStored(ctx, s, prefixAccount+record.ID, record); err != nil {
			return err
		}
	}
	key := prefixRevocation + revocationID(record.ID)
	failed, err := getStored[revocation](ctx, s, key)
	if err != nil {
		return err
	}
	if failed == nil {
		failed = &revocation{RecordID: record.ID, Connection: record.Connection, Username: record.Username, Since: now}
	}
	failed.Attempts++
	failed.NextTry = now.Add(retryPause(failed.Attempts, unavailable(cause)))
	failed.Code, failed.Reason = wire.CodeInternal, "internal error; the plugin's log says more"
	var e *wire.Error
	if errors.As(cause, &e) {
		failed.Code, failed.Reason = e.Code, e.Reason
	}
	b.accounts.index.put(record, failed.NextTry, failed.Attempts)
	b.noteNotEnded(record, failed)
	return putStored(ctx, s, key, failed)
}

// endOperationAccounts ends the accounts of an operation on one side, or on all
// when side is empty. It tries each and reports all failures, which are stored
// and tried again like any.
func (b *backend) endOperationAccounts(ctx context.Context, s logical.Storage, operationID string, side wire.Side) error {
	if operationID == "" || operationID == groupCreds {
		return fmt.Errorf("end accounts: %q is no operation", operationID)
	}
	ids, err := listStored(ctx, s, prefixAccount+operationID+"/")
	if err != nil {
		return err
	}
	errs := make([]error, len(ids))
	var group sync.WaitGroup
	for i, id := range ids {
		group.Go(func() {
			recordID := operationID + "/" + id
			record, err := getRecord(ctx, s, recordID)
			if err != nil || record == nil || side != "" && record.Side != side {
				errs[i] = err
				return
			}
			errs[i] = b.endAccount(ctx, s, recordID)
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

// wayBackIn is what to do when the server refuses the connection's own login. A
// password that the engine has made is known to nobody else, and no former one is
// kept: each would open every copy of the server made of a backup of its time.
func (c *connection) wayBackIn() string {
	if c.LastRootRotation.IsZero() {
		return "the connection's own login is refused; write the right one to config/" + c.Name
	}
	return fmt.Sprintf("the engine gave %q its password at %s; a server restored from a backup of before has another one: "+
		"as an administrator of the server give it a new password, write that to config/%s, then rotate-root/%s and rotate-all/%s (README, after a restore)",
		c.detail(detailUsername), c.LastRootRotation.UTC().Format(time.RFC3339), c.Name, c.Name, c.Name)
}

// explain turns a driver's error into one for the caller. Nil stays nil.
func (c *connection) explain(err error) error {
	var e *account.Error
	var wrong *account.FieldError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &wrong):
		return invalidField(wrong.Field, "connection %q: %s", c.Name, wrong.Reason)
	case !errors.As(err, &e):
		return err
	}
	refusal := &wire.Error{Code: e.Code, Reason: fmt.Sprintf("connection %q: %s", c.Name, e)}
	switch e.Code {
	case wire.CodeNotFound:
		// Something the statements name is missing, not what was asked for.
		refusal.Code = wire.CodeEngine
	case wire.CodeLoginRefused:
		refusal.Hint = c.wayBackIn()
	}
	return refusal
}
