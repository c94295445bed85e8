package plugin

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// storedConnection is the entry under config/ and retired/.
type storedConnection struct {
	// ID names this server as the accounts' records know it. It changes when
	// the connection is pointed at another address, so that accounts are ended
	// where they were made.
	ID                     string            `json:"id"`
	Name                   string            `json:"name"`
	PluginName             string            `json:"plugin_name"`
	PluginVersion          string            `json:"plugin_version"`
	Details                map[string]any    `json:"connection_details"`
	Secrets                map[string]string `json:"secrets"` // by detail, kept apart
	AllowedRoles           []string          `json:"allowed_roles"`
	RootRotationStatements []string          `json:"root_rotation_statements"`
	PasswordPolicy         string            `json:"password_policy"`
	VerifyConnection       bool              `json:"verify_connection"`
	// Rotation is that of the connection's own user.
	Rotation           rotationPlan `json:"rotation"`
	DisableRotation    bool         `json:"disable_automated_rotation,omitempty"`
	LastRootRotation   time.Time    `json:"last_root_rotation,omitzero"`
	NextRootRotation   time.Time    `json:"next_root_rotation,omitzero"` // zero: never
	RootPlanned        clockPoint   `json:"root_planned,omitzero"`       // when that was planned
	RootFulfilled      demands      `json:"root_fulfilled,omitzero"`
	SkipImportRotation bool         `json:"skip_static_role_import_rotation,omitempty"`
	caps
	RetiredAt time.Time `json:"retired_at,omitzero"`
}

// connection is a configured database server as it is used: decoded, checked and
// with its driver. It is never changed; a new configuration makes a new one.
type connection struct {
	storedConnection
	product  *product
	location location
	digest   string

	mu sync.Mutex
	// driver is made when it is first needed.
	driver account.Driver
	closed bool
	// identities are what the server told of itself, by database.
	identities map[string]knownIdentity
	// downUntil is set after the server could not be reached while ending an
	// account: until then further ends do not try.
	downUntil time.Time
}

type knownIdentity struct {
	identity wire.ServerIdentity
	until    time.Time
}

// How long things stay known.
const (
	identityKept = 10 * time.Second
	downKept     = 10 * time.Second
	// retireAfter is longer than any call to a database, so a driver that was
	// replaced is not closed under a call that just began.
	retireAfter = 30 * time.Second
)

// newConnection checks stored and makes it usable. What is wrong in it is a
// [wire.Error] naming the field.
func newConnection(stored storedConnection) (*connection, error) {
	c := &connection{storedConnection: stored, identities: make(map[string]knownIdentity)}
	var err error
	if c.product, err = productOf(stored.PluginName); err != nil {
		return nil, err
	}
	// The details may be those of a connection in use.
	c.Details = make(map[string]any, len(stored.Details))
	for key, value := range stored.Details {
		if c.Details[key], err = c.product.normalize(key, value); err != nil {
			return nil, err
		}
	}
	if c.location, err = c.product.locate(c.storedConnection); err != nil {
		return nil, err
	}
	if c.digest, err = c.computeDigest(); err != nil {
		return nil, err
	}
	return c, nil
}

// computeDigest covers all that decides where the connection leads and what may
// be done with it, but no secret: rotating a password changes no plan.
func (c *connection) computeDigest() (string, error) {
	shown := c.shownDetails()
	content, err := json.Marshal(map[string]any{
		"id": c.ID, "plugin_name": c.PluginName, "connection_details": shown,
		"allowed_roles": c.AllowedRoles, "password_policy": c.PasswordPolicy,
	})
	if err != nil {
		return "", fmt.Errorf("digest configuration: %w", err)
	}
	return wire.Digest(content), nil
}

// shownDetails are the details as they may be read.
func (c *connection) shownDetails() map[string]any {
	shown := make(map[string]any, len(c.Details))
	for key, value := range c.Details {
		shown[key] = value
	}
	if url, ok := shown["connection_url"].(string); ok && c.product.redactURL != nil {
		shown["connection_url"] = c.product.redactURL(url)
	}
	return shown
}

// open returns the driver. A connection that was closed meanwhile is unavailable.
func (c *connection) open() (account.Driver, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, &account.Error{Op: "connect", Code: wire.CodeUnavailable, Reason: "the connection's configuration has just changed"}
	}
	if c.driver != nil {
		return c.driver, nil
	}
	driver, err := c.product.open(c.storedConnection)
	if err != nil {
		return nil, err
	}
	c.driver = account.Sanitize(driver, c.secrets()...)
	return c.driver, nil
}

// close ends the driver's sessions; it may wait for calls in flight.
func (c *connection) close() {
	c.mu.Lock()
	driver := c.driver
	c.driver, c.closed = nil, true
	c.mu.Unlock()
	if driver != nil {
		driver.Close()
	}
}

// leave ends the sessions that are kept for later.
func (c *connection) leave() {
	c.mu.Lock()
	driver := c.driver
	c.mu.Unlock()
	if driver != nil {
		account.Leave(driver)
	}
}

func (c *connection) down(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return now.Before(c.downUntil)
}

func (c *connection) setDown(until time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.downUntil = until
}

// loadConnection reads config/<name>.
func loadConnection(ctx context.Context, s logical.Storage, name string) (*connection, error) {
	return loadStoredConnection(ctx, s, prefixConfig+name)
}

// loadRetired reads retired/<connection id>.
func loadRetired(ctx context.Context, s logical.Storage, id string) (*connection, error) {
	return loadStoredConnection(ctx, s, prefixRetired+id)
}

func loadStoredConnection(ctx context.Context, s logical.Storage, key string) (*connection, error) {
	stored, err := getStored[storedConnection](ctx, s, key)
	if err != nil || stored == nil {
		return nil, err
	}
	c, err := newConnection(*stored)
	if err != nil {
		return nil, fmt.Errorf("use %s: %w", key, err)
	}
	return c, nil
}

// dropConnection closes what left a cache, but not under a call in flight.
func (b *backend) dropConnection(c *connection) {
	b.work.later(retireAfter, c.close)
}

// connectionOf returns the connection an account was made on: the current one of
// that name if it still leads to the same server, else the retired one. It is nil
// when neither is left.
func (b *backend) connectionOf(ctx context.Context, s logical.Storage, name, id string) (*connection, error) {
	current, err := b.connections.get(ctx, s, name)
	if err != nil {
		return nil, err
	}
	if current != nil && current.ID == id {
		return current, nil
	}
	return b.retired.get(ctx, s, id)
}

// usableConnection returns the named connection or a not_found error.
func (b *backend) usableConnection(ctx context.Context, s logical.Storage, name string) (*connection, error) {
	c, err := b.connections.get(ctx, s, name)
	if err != nil {
		return nil, err
	}
	if c == nil {
		return nil, notFound("no connection %q; write config/%s first", name, name)
	}
	return c, nil
}

// endpoint tells how to reach a connection's database according to its
// connection_url, and the digest of its configuration. It holds no secret. A
// connection to a product that operations cannot work on is refused.
func (b *backend) endpoint(ctx context.Context, s logical.Storage, name string) (wire.Endpoint, string, error) {
	c, err := b.usableConnection(ctx, s, name)
	if err != nil {
		return wire.Endpoint{}, "", err
	}
	if !c.product.operations {
		return wire.Endpoint{}, "", &wire.Error{
			Code: wire.CodeUnsupported, Reason: fmt.Sprintf("connection %q leads to %s, which operations cannot work on", name, c.product.title),
		}
	}
	return wire.Endpoint{
		Connection: name, Engine: c.product.engine, Host: c.location.Host, Port: c.location.Port,
		Database: c.location.Database, SSLMode: c.location.SSLMode, RootCA: c.detail("tls_ca"),
	}, c.digest, nil
}

// serverIdentity asks the server which it is, and for the database named in
// connection_url. See [backend.databaseIdentity].
func (b *backend) serverIdentity(ctx context.Context, s logical.Storage, name string) (wire.ServerIdentity, error) {
	return b.databaseIdentity(ctx, s, name, "")
}

// databaseIdentity asks the server which it is and which of its databases is
// called database (DatabaseID is empty when none is). It answers or fails within
// 2 s; answers are kept for 10 s and forgotten with the configuration.
func (b *backend) databaseIdentity(ctx context.Context, s logical.Storage, name, database string) (wire.ServerIdentity, error) {
	c, err := b.usableConnection(ctx, s, name)
	if err != nil {
		return wire.ServerIdentity{}, err
	}
	now := b.now()
	c.mu.Lock()
	known := c.identities[database]
	c.mu.Unlock()
	if now.Before(known.until) {
		return known.identity, nil
	}
	driver, err := c.open()
	if err != nil {
		return wire.ServerIdentity{}, c.explain(err)
	}
	identity, err := driver.Identity(ctx, database)
	if err != nil {
		return wire.ServerIdentity{}, c.explain(err)
	}
	c.mu.Lock()
	c.identities[database] = knownIdentity{identity: identity, until: now.Add(identityKept)}
	c.mu.Unlock()
	return identity, nil
}
