package plugin

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	semver "github.com/hashicorp/go-version"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/oklog/ulid/v2"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

func (b *backend) configPaths() []*framework.Path {
	return []*framework.Path{
		{
			Pattern:      "config/?$",
			Callbacks:    map[logical.Operation]framework.OperationFunc{logical.ListOperation: listNames(prefixConfig)},
			HelpSynopsis: "List the database connections.",
		},
		{
			Pattern: "config/" + framework.GenericNameRegex("name"),
			Fields:  configFields(),
			Callbacks: map[logical.Operation]framework.OperationFunc{
				logical.CreateOperation: b.pathConfigWrite,
				logical.UpdateOperation: b.pathConfigWrite,
				logical.ReadOperation:   b.pathConfigRead,
				logical.DeleteOperation: b.pathConfigDelete,
			},
			ExistenceCheck:      b.connections.exists,
			TakesArbitraryInput: true,
			HelpSynopsis:        "Configure how to reach a database server.",
			HelpDescription:     configHelp(),
		},
	}
}

// configHelp names the keys of every product.
func configHelp() string {
	var b strings.Builder
	b.WriteString(`
The same fields as in Vault's database secrets engine. Besides those named here,
every other key belongs to the database product and is merged into what is stored,
key by key:

`)
	for _, p := range products() {
		fmt.Fprintf(&b, "%s: %s\n", p.pluginName, strings.Join(slices.Sorted(maps.Keys(p.details)), ", "))
	}
	b.WriteString(`
connection_url holds {{username}} and {{password}}, which are filled in.
password_authentication of PostgreSQL is scram-sha-256, the default, or password.
user_host of MySQL is the host part of its users, by default %.

A key that is nearly one of these is refused. Passwords and keys are never
returned.`)
	return b.String()
}

func configFields() map[string]*framework.FieldSchema {
	return withFields(capFields(), map[string]*framework.FieldSchema{
		"name":                     {Type: framework.TypeString, Description: "Name of the connection."},
		"plugin_name":              {Type: framework.TypeString, Description: "Kind of database: " + strings.Join(pluginNames(), ", ") + "."},
		"plugin_version":           {Type: framework.TypeString, Description: "Semantic version; kept and shown for tools that set it."},
		"verify_connection":        {Type: framework.TypeBool, Default: true, Description: "Log in to the database before storing the configuration."},
		"allowed_roles":            {Type: framework.TypeCommaStringSlice, Description: "Roles, or globs of roles, that may use the connection; * allows all, empty none."},
		"root_rotation_statements": {Type: framework.TypeStringSlice, Description: "Statements that change the password of the connection's own user."},
		"password_policy":          {Type: framework.TypeString, Description: "Password policy for generated passwords."},
		"rotation_schedule":        {Type: framework.TypeString, Description: "When to rotate the password of the connection's own user: the five fields of cron, in UTC."},
		"rotation_window":          {Type: framework.TypeDurationSecond, Description: "How long after its time a scheduled rotation may be done, one hour or more; 0 is without limit."},
		"rotation_period":          {Type: framework.TypeDurationSecond, Description: "Time between rotations of the password of the connection's own user, 5 s or more."},
		"disable_automated_rotation": {
			Type: framework.TypeBool, Description: "Keep the schedule or period, but do not rotate by it.",
		},
		"skip_static_role_import_rotation": {Type: framework.TypeBool, Description: "Do not rotate when a static role is made, unless the role says otherwise."},
	})
}

func (b *backend) pathConfigRead(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	c, err := b.connections.get(ctx, req.Storage, field[string](data, "name"))
	if err != nil || c == nil {
		return nil, err
	}
	response := &logical.Response{Data: map[string]any{
		"plugin_name":                        c.PluginName,
		"plugin_version":                     c.PluginVersion,
		"running_plugin_version":             b.version,
		"connection_details":                 c.shownDetails(),
		"allowed_roles":                      array(c.AllowedRoles),
		"root_credentials_rotate_statements": array(c.RootRotationStatements),
		"password_policy":                    c.PasswordPolicy,
		"verify_connection":                  c.VerifyConnection,
		"skip_static_role_import_rotation":   c.SkipImportRotation,
		"rotation_schedule":                  c.Rotation.Schedule,
		"rotation_window":                    int64(c.Rotation.Window / time.Second),
		"rotation_period":                    int64(c.Rotation.Period / time.Second),
		"disable_automated_rotation":         c.DisableRotation,
	}}
	c.show(response.Data)
	return response, nil
}

// array makes an empty list out of none: Terraform's provider crashes on null.
func array(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

func (c *connection) warnOfPassword(response *logical.Response) {
	if c.location.HasPassword {
		response.AddWarning("connection_url holds a password of its own; use {{username}} and {{password}} in it and the fields of these names, so that it is never shown and can be rotated")
	}
}

// pathConfigWrite checks the new configuration, logs in with it unless told not
// to, and stores it. No lock is held while the database is asked: should the
// configuration change meanwhile, the write is refused.
func (b *backend) pathConfigWrite(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	name := field[string](data, "name")
	before, err := b.connections.get(ctx, req.Storage, name)
	if err != nil {
		return nil, err
	}
	stored, err := mergeConfig(before, name, data)
	if err != nil {
		return nil, err
	}
	if before != nil && (before.Secrets[detailPassword] != stored.Secrets[detailPassword] || before.detail(detailUsername) != stored.detail(detailUsername)) {
		stored.LastRootRotation = time.Time{} // a person knows it now
	}
	if before == nil || before.Rotation != stored.Rotation || before.DisableRotation != stored.DisableRotation {
		b.planRoot(&stored)
	}
	c, err := newConnection(stored)
	if err != nil {
		return nil, err
	}
	if !c.NextRootRotation.IsZero() {
		if err := c.rotatableRoot(); err != nil {
			return nil, err
		}
	}
	if before != nil && !before.sameServer(c) {
		// Accounts made so far must be ended at the old address.
		stored.ID = ulid.Make().String()
		if c, err = newConnection(stored); err != nil {
			return nil, err
		}
	}
	if err := b.checkConnection(ctx, c); err != nil {
		c.close()
		return nil, err
	}
	if err := b.replaceConnection(ctx, req.Storage, before, c); err != nil {
		c.close()
		return nil, err
	}
	response := &logical.Response{}
	c.warnOfPassword(response)
	if c.PluginVersion != "" && c.PluginVersion != b.version {
		response.AddWarning(fmt.Sprintf("plugin_version %s is kept, but the connection is served by this plugin, version %s", c.PluginVersion, b.version))
	}
	if len(response.Warnings) == 0 {
		return nil, nil
	}
	return response, nil
}

// mergeConfig applies a request to what is stored.
func mergeConfig(before *connection, name string, data *framework.FieldData) (storedConnection, error) {
	stored := storedConnection{
		ID: ulid.Make().String(), Name: name, VerifyConnection: true,
		Details: map[string]any{}, Secrets: map[string]string{},
	}
	if before != nil {
		stored = before.storedConnection
		stored.Details, stored.Secrets = maps.Clone(stored.Details), maps.Clone(stored.Secrets)
	}
	if err := mergeCommonFields(&stored, data); err != nil {
		return stored, err
	}
	p, err := productOf(stored.PluginName)
	if err != nil {
		return stored, err
	}
	for key, value := range data.Raw {
		if _, common := data.Schema[key]; common {
			continue
		}
		if err := p.refuseNearMiss(key, data.Schema); err != nil {
			return stored, err
		}
		if p.secret(key) {
			text, err := detailText(key, value)
			if err != nil {
				return stored, err
			}
			stored.Secrets[key] = text
			continue
		}
		normal, err := p.normalize(key, value)
		if err != nil {
			return stored, err
		}
		if normal == nil {
			delete(stored.Details, key)
			continue
		}
		stored.Details[key] = normal
	}
	return stored, p.checkDetails(stored)
}

func mergeCommonFields(stored *storedConnection, data *framework.FieldData) error {
	if value, ok := givenField[string](data, "plugin_name"); ok {
		stored.PluginName = value
	}
	if value, ok := givenField[string](data, "plugin_version"); ok {
		stored.PluginVersion = value
		if stored.PluginVersion != "" {
			parsed, err := semver.NewSemver(stored.PluginVersion)
			if err != nil {
				return invalidField("plugin_version", "is not a semantic version")
			}
			stored.PluginVersion = "v" + parsed.String()
		}
	}
	if value, ok := givenField[bool](data, "verify_connection"); ok {
		stored.VerifyConnection = value
	}
	if value, ok := givenField[[]string](data, "allowed_roles"); ok {
		stored.AllowedRoles = value
	}
	if value, ok := givenField[[]string](data, "root_rotation_statements"); ok {
		stored.RootRotationStatements = value
	}
	if value, ok := givenField[string](data, "password_policy"); ok {
		stored.PasswordPolicy = value
	}
	if err := stored.merge(data); err != nil {
		return err
	}
	if value, ok := givenField[bool](data, "skip_static_role_import_rotation"); ok {
		stored.SkipImportRotation = value
	}
	if value, ok := givenField[bool](data, "disable_automated_rotation"); ok {
		stored.DisableRotation = value
	}
	return stored.Rotation.merge(data)
}

// checkDetails refuses what a driver would misunderstand or we cannot do yet.
func (p *product) checkDetails(stored storedConnection) error {
	if err := p.check(stored); err != nil {
		return err
	}
	if text := stored.detail("username_template"); text != "" {
		if _, err := parseUsernameTemplate(text); err != nil {
			return err
		}
	}
	return nil
}

// sameServer reports whether both lead to one server, so that what was made
// through c can be ended through next.
func (c *connection) sameServer(next *connection) bool {
	return c.product.engine == next.product.engine && c.location.Host == next.location.Host && c.location.Port == next.location.Port
}

// checkConnection makes the driver, and logs in when the configuration says so.
func (b *backend) checkConnection(ctx context.Context, c *connection) error {
	driver, err := c.open()
	if err != nil {
		return fieldFault(err)
	}
	if err := b.checkIterations(ctx, c); err != nil {
		return err
	}
	if !c.VerifyConnection || c.flag(detailSelfManaged) {
		return nil
	}
	err = driver.Verify(ctx)
	if err == nil {
		return nil
	}
	// What the caller wrote does not work: a 503 would make clients repeat it.
	field := "host"
	if c.product.redactURL != nil {
		field = "connection_url"
	}
	refusal := invalidField(field, "the connection does not work: %s", err)
	var e *account.Error
	if errors.As(err, &e) && e.Code == wire.CodeLoginRefused {
		refusal.Field = "password"
	}
	refusal.Hint = "verify_connection=false stores it without trying"
	return refusal
}

// fieldFault turns a driver's finding about its configuration into a refusal.
func fieldFault(err error) error {
	var wrong *account.FieldError
	if errors.As(err, &wrong) {
		return invalidField(wrong.Field, "%s", wrong.Reason)
	}
	return err
}

// replaceConnection stores next in place of before, unless something else has
// been stored since before was read. When next leads to another server, before is
// kept for the accounts it still has.
func (b *backend) replaceConnection(ctx context.Context, s logical.Storage, before, next *connection) error {
	lock := b.configLocks.lock(next.Name)
	defer lock.Unlock()
	current, err := b.connections.get(ctx, s, next.Name)
	if err != nil {
		return err
	}
	if changed(before, current) {
		return configChanged(next.Name)
	}
	if before != nil && before.Rotation == next.Rotation && before.DisableRotation == next.DisableRotation {
		// The engine may have planned anew since, after the clock was set back.
		next.RootPlanned, next.NextRootRotation = current.RootPlanned, current.NextRootRotation
	}
	if before != nil && before.ID != next.ID {
		if err := b.retire(ctx, s, before); err != nil {
			return err
		}
		defer b.settleSoon(before.ID)
	}
	if err := putStored(ctx, s, prefixConfig+next.Name, next.storedConnection); err != nil {
		// Whether it was stored is not known: read it again next time.
		b.connections.put(next.Name, nil)
		return err
	}
	b.connections.put(next.Name, next)
	b.requeueRoot(&next.storedConnection)
	b.rotations.retryNow(next.Name)
	return nil
}

func configChanged(name string) *wire.Error {
	return &wire.Error{Code: wire.CodeConflict, Reason: fmt.Sprintf("config/%s was changed by another request at the same time", name)}
}

// changed compares what is stored, not the pointers: an entry may have left the
// cache and come back. When its own user is rotated next is no concern of it, since
// nobody writes that.
func changed(before, current *connection) bool {
	if before == nil || current == nil {
		return before != current
	}
	return before.digest != current.digest || !maps.Equal(before.Secrets, current.Secrets) ||
		!slices.Equal(before.RootRotationStatements, current.RootRotationStatements) ||
		before.caps != current.caps || before.VerifyConnection != current.VerifyConnection || before.PluginVersion != current.PluginVersion ||
		before.Rotation != current.Rotation || before.DisableRotation != current.DisableRotation ||
		before.SkipImportRotation != current.SkipImportRotation
}

// retire keeps a connection, with its secret, until its last account is gone.
func (b *backend) retire(ctx context.Context, s logical.Storage, c *connection) error {
	stored := c.storedConnection
	stored.RetiredAt = b.now()
	if err := putStored(ctx, s, prefixRetired+c.ID, stored); err != nil {
		return err
	}
	b.retired.put(c.ID, nil)
	return nil
}

// pathConfigDelete forgets the connection for new accounts. Those it has are
// still ended in time, with the secret that is kept for them.
func (b *backend) pathConfigDelete(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	name := field[string](data, "name")
	lock := b.configLocks.lock(name)
	defer lock.Unlock()
	c, err := b.connections.get(ctx, req.Storage, name)
	if err != nil {
		return nil, err
	}
	if c == nil {
		return nil, nil
	}
	if err := b.retire(ctx, req.Storage, c); err != nil {
		return nil, err
	}
	defer b.settleSoon(c.ID)
	if err := deleteStored(ctx, req.Storage, prefixConfig+name); err != nil {
		b.connections.put(name, nil)
		return nil, err
	}
	b.connections.put(name, nil)
	return nil, nil
}
