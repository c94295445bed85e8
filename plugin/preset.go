package plugin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// preset says what a role's logins may do, in place of statements of one's own.
// What it comes to depends on the product, the database of the connection and the
// credential type; it is worked out at each use, so that it follows the
// connection, and shown by reading the role.
type preset string

// The presets.
const (
	presetReadonly  preset = "readonly"  // reads every table, those made later too
	presetReadwrite preset = "readwrite" // reads and changes rows, makes nothing
	presetOwner     preset = "owner"     // makes, changes and drops what is its own
)

func presets() []preset { return []preset{presetReadonly, presetReadwrite, presetOwner} }

// presetConnections is how many sessions a login of a preset may have at a time,
// where the product can tell.
const presetConnections = 20

// expansion is what a preset comes to.
type expansion struct {
	Creation   []string
	Revocation []string
	Renew      []string
	// Preparation is what the server needs once before logins can be made; it can
	// be repeated.
	Preparation account.Preparation
}

// presetFields are the fields of a role that a preset stands for.
func presetFields() []string {
	return []string{"creation_statements", "revocation_statements", "rollback_statements", "renew_statements"}
}

// ownStatements names the first field by which a request gives statements.
func ownStatements(data *framework.FieldData) string {
	for _, name := range presetFields() {
		if value, ok := givenField[[]string](data, name); ok && !blankStatements(value) {
			return name
		}
	}
	return ""
}

func blankStatements(statements []string) bool {
	return !slices.ContainsFunc(statements, func(s string) bool { return strings.TrimSpace(s) != "" })
}

// mergePreset applies a request's preset. Statements of one's own and a preset
// replace each other; both in one request are refused.
func (r *role) mergePreset(data *framework.FieldData) error {
	value, given := givenField[string](data, "preset")
	own := ownStatements(data)
	switch {
	case given && value != "":
		if !slices.Contains(presets(), preset(value)) {
			return invalidField("preset", "%q is unknown; there are %v", value, presets())
		}
		if own != "" {
			return invalidField(own, "cannot be given together with preset=%s, which has statements of its own", value)
		}
		r.Preset = preset(value)
		r.CreationStatements, r.RevocationStatements, r.RollbackStatements, r.RenewStatements = nil, nil, nil, nil
	case given, own == "creation_statements":
		r.Preset = ""
	case r.Preset != "" && own != "":
		return invalidField(own, "cannot be given: the role has preset=%s; give creation_statements too, which replace it", r.Preset)
	}
	return nil
}

// expand works out a role's preset for its connection.
func (c *connection) expand(r *role) (expansion, error) {
	if c.product.preset == nil {
		return expansion{}, invalidField("preset", "connection %q leads to %s, which has none", c.Name, c.product.title)
	}
	return c.product.preset(c, r)
}

// presetError refuses a preset that the connection cannot have.
func presetError(c *connection, format string, args ...any) error {
	return invalidField("preset", "cannot be used with connection %q: %s", c.Name, fmt.Sprintf(format, args...))
}

// showPreset puts what a preset comes to into the answer to reading a role. A role
// without one has no such keys: tools for Vault's engine know none.
func (b *backend) showPreset(ctx context.Context, s logical.Storage, r *role, response *logical.Response) error {
	if r.Preset == "" {
		return nil
	}
	response.Data["preset"] = string(r.Preset)
	response.Data["preparation_statements"] = []string{}
	c, err := b.connections.get(ctx, s, r.DBName)
	if err != nil {
		return err
	}
	if c == nil {
		response.AddWarning(fmt.Sprintf("what the preset comes to is known once connection %q is configured", r.DBName))
		return nil
	}
	e, err := c.expand(r)
	if err != nil {
		response.AddWarning(err.Error())
		return nil // told as a warning: the role can be read all the same
	}
	response.Data["creation_statements"] = array(e.Creation)
	response.Data["revocation_statements"] = array(e.Revocation)
	response.Data["renew_statements"] = array(e.Renew)
	response.Data["preparation_statements"] = array(e.Preparation.Statements)
	return nil
}

// preparePreset prepares the server for a role that was just written, and returns
// a warning if it could not. The role is stored all the same: what is missing can
// be done by whoever may, or by writing the role again.
func (b *backend) preparePreset(ctx context.Context, s logical.Storage, r *role) (warning string, err error) {
	if r.Preset == "" {
		return "", nil
	}
	c, err := b.connections.get(ctx, s, r.DBName)
	if err != nil {
		return "", err
	}
	if c == nil {
		return fmt.Sprintf("the server is not prepared yet, because connection %q is not configured; write the role again when it is", r.DBName), nil
	}
	var refusal *wire.Error
	err = c.explain(b.prepare(ctx, c, r))
	if errors.As(err, &refusal) {
		return "the server is not prepared: " + refusal.Reason, nil
	}
	return "", err
}

// prepare runs the preparation of a role's preset. Those that come at the same
// time wait for one attempt. Its errors are a driver's, with the way out.
func (b *backend) prepare(ctx context.Context, c *connection, r *role) error {
	e, err := c.expand(r)
	if err != nil || len(e.Preparation.Statements) == 0 {
		return err
	}
	driver, err := c.open()
	if err != nil {
		return err
	}
	key := c.ID + "/" + strings.Join(e.Preparation.Statements, "\n")
	_, err, _ = b.accounts.preparations.Do(key, func() (any, error) {
		return nil, account.Prepare(context.WithoutCancel(ctx), driver, e.Preparation)
	})
	var failed *account.Error
	if !errors.As(err, &failed) {
		return err
	}
	told := *failed
	told.Reason += fmt.Sprintf("; write roles/%s again, or have a superuser run the preparation_statements it shows, once", r.Name)
	return &told
}

// createLogin makes a login. Should the server not have what the role's preset
// needs, because it could not be prepared when the role was written or is another
// one now, it is prepared first.
func (b *backend) createLogin(ctx context.Context, c *connection, r *role, driver account.Driver, req account.CreateRequest) error {
	err := driver.Create(ctx, req)
	var e *account.Error
	if r.Preset == "" || !errors.As(err, &e) || e.Code != wire.CodeNotFound || e.Ambiguous {
		return err
	}
	if err := b.prepare(ctx, c, r); err != nil {
		return account.Unsent(err) // no login was made, whatever else was
	}
	return driver.Create(ctx, req)
}
