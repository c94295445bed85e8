package plugin

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// staticRole is the entry under static-role/: a login that exists and whose
// credential the engine keeps and rotates. It is never changed once it is in the
// cache.
type staticRole struct {
	Name               string            `json:"name"`
	DBName             string            `json:"db_name"`
	Username           string            `json:"username"`
	CredentialType     string            `json:"credential_type"`
	CredentialConfig   map[string]string `json:"credential_config,omitempty"`
	RotationStatements []string          `json:"rotation_statements"`
	Rotation           rotationPlan      `json:"rotation"`
	// Manual says that it is rotated on request only.
	Manual bool `json:"manual,omitempty"`
	// SkipImportRotation says that it was not rotated when it was made.
	SkipImportRotation bool `json:"skip_import_rotation,omitempty"`
	// SelfManaged says that the login changes its own password.
	SelfManaged bool `json:"self_managed,omitempty"`

	Credential   storedCredential `json:"credential"`
	LastRotation time.Time        `json:"last_rotation,omitzero"`
	// NextRotation is when it is due by the wall clock; zero is never.
	NextRotation time.Time `json:"next_rotation,omitzero"`
	// Planned is when that was planned.
	Planned   clockPoint `json:"planned,omitzero"`
	Fulfilled demands    `json:"fulfilled,omitzero"`
}

// detailSelfManaged marks a connection without a user of its own: each static
// role logs in as itself.
const detailSelfManaged = "self_managed"

func loadStaticRole(ctx context.Context, s logical.Storage, name string) (*staticRole, error) {
	return getStored[staticRole](ctx, s, prefixStaticRole+name)
}

func (b *backend) staticRolePaths() []*framework.Path {
	return []*framework.Path{
		{
			Pattern:      "static-roles/?$",
			Callbacks:    map[logical.Operation]framework.OperationFunc{logical.ListOperation: listNames(prefixStaticRole)},
			HelpSynopsis: "List the static roles.",
		},
		{
			Pattern: "static-roles/" + framework.GenericNameRegex("name"),
			Fields:  staticRoleFields(),
			Callbacks: map[logical.Operation]framework.OperationFunc{
				logical.CreateOperation: b.pathStaticRoleWrite,
				logical.UpdateOperation: b.pathStaticRoleWrite,
				logical.ReadOperation:   b.pathStaticRoleRead,
				logical.DeleteOperation: b.pathStaticRoleDelete,
			},
			ExistenceCheck: b.staticRoles.exists,
			HelpSynopsis:   "Manage the static roles: logins that exist and whose credentials are rotated.",
			HelpDescription: `
The same fields as in Vault's database secrets engine, and those of its enterprise
edition. The credential is rotated when the role is made, unless
skip_import_rotation says otherwise, and then every rotation_period, by
rotation_schedule, or with manual=true on request only. Deleting a static role
leaves the login as it is.`,
		},
	}
}

func staticRoleFields() map[string]*framework.FieldSchema {
	return map[string]*framework.FieldSchema{
		"name":                  {Type: framework.TypeString, Description: "Name of the static role."},
		"db_name":               {Type: framework.TypeString, Description: "Name of the connection."},
		"username":              {Type: framework.TypeString, Description: "The login; it exists and cannot be changed later."},
		"rotation_statements":   {Type: framework.TypeStringSlice, Description: "Statements that change the credential; {{name}}, {{password}} and {{public_key}} are put in, quoted for where they stand."},
		"rotation_period":       {Type: framework.TypeDurationSecond, Description: "Time between rotations, 5 s or more."},
		"rotation_schedule":     {Type: framework.TypeString, Description: "When to rotate: the five fields of cron, in UTC."},
		"rotation_window":       {Type: framework.TypeDurationSecond, Description: "How long after its time a scheduled rotation may be done, one hour or more; 0 is without limit."},
		"manual":                {Type: framework.TypeBool, Description: "Rotate on request only."},
		"credential_type":       {Type: framework.TypeString, Description: "password, the default, or rsa_private_key."},
		"credential_config":     {Type: framework.TypeKVPairs, Description: "password_policy, or key_bits and format."},
		"skip_import_rotation":  {Type: framework.TypeBool, Description: "Do not rotate when the role is made; by default as the connection's skip_static_role_import_rotation says."},
		"password":              {Type: framework.TypeString, DisplayAttrs: &framework.DisplayAttributes{Sensitive: true}, Description: "The login's present password."},
		"self_managed_password": {Type: framework.TypeString, DisplayAttrs: &framework.DisplayAttributes{Sensitive: true}, Description: "The login's present password, with which it changes it itself."},
	}
}

func (b *backend) pathStaticRoleRead(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	r, err := b.staticRoles.get(ctx, req.Storage, field[string](data, "name"))
	if err != nil || r == nil {
		return nil, err
	}
	answer := map[string]any{
		"db_name":              r.DBName,
		"username":             r.Username,
		"rotation_statements":  array(r.RotationStatements),
		"credential_type":      r.CredentialType,
		"skip_import_rotation": r.SkipImportRotation,
	}
	if !r.LastRotation.IsZero() {
		answer["last_vault_rotation"] = r.LastRotation.UTC().Format(time.RFC3339Nano)
	}
	if r.Rotation.Period > 0 {
		answer["rotation_period"] = int64(r.Rotation.Period / time.Second)
	}
	r.Rotation.showSchedule(answer)
	if r.Manual {
		answer["manual"] = true
	}
	if r.SelfManaged {
		answer["self_managed"] = true
	}
	if len(r.CredentialConfig) > 0 {
		answer["credential_config"] = r.CredentialConfig
	}
	return &logical.Response{Data: answer}, nil
}

// showSchedule puts a schedule into an answer, if there is one.
func (p *rotationPlan) showSchedule(answer map[string]any) {
	if p.Schedule == "" {
		return
	}
	answer["rotation_schedule"] = p.Schedule
	if p.Window > 0 {
		answer["rotation_window"] = int64(p.Window / time.Second)
	}
}

func (b *backend) pathStaticRoleWrite(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	name := field[string](data, "name")
	before, err := b.staticRoles.get(ctx, req.Storage, name)
	if err != nil {
		return nil, err
	}
	if before != nil {
		return nil, b.updateStaticRole(ctx, req.Storage, name, data)
	}
	return nil, b.createStaticRole(ctx, req.Storage, name, data)
}

// createStaticRole makes a role. After an error there is none, except that one
// whose rotation may have taken effect is completed later: its credential would
// be lost otherwise.
func (b *backend) createStaticRole(ctx context.Context, s logical.Storage, name string, data *framework.FieldData) error {
	r := &staticRole{Name: name, CredentialType: credentialPassword}
	if err := r.merge(data); err != nil {
		return err
	}
	c, err := b.connections.get(ctx, s, r.DBName)
	if err != nil {
		return err
	}
	if c == nil {
		return invalidField("db_name", "no connection %q; write config/%s first", r.DBName, r.DBName)
	}
	if c, err = b.staticRoleConnection(ctx, s, r); err != nil {
		return err
	}
	if err := r.checkConnection(c, data); err != nil {
		return err
	}
	if err := b.refuseRoleName(ctx, s, name); err != nil {
		return err
	}
	if !r.SkipImportRotation {
		return b.rotateStaticRole(ctx, s, name, r, false)
	}
	lock := b.roleLocks.lock(name)
	defer lock.Unlock()
	if err := b.refuseRoleName(ctx, s, name); err != nil {
		return err
	}
	b.planStaticRole(r)
	return b.storeStaticRole(ctx, s, r)
}

// checkConnection completes a new role by its connection and refuses what does
// not fit.
func (r *staticRole) checkConnection(c *connection, data *framework.FieldData) error {
	if _, given := givenField[bool](data, "skip_import_rotation"); !given {
		r.SkipImportRotation = c.SkipImportRotation
	}
	if c.flag(detailSelfManaged) {
		r.SelfManaged = true
	}
	switch {
	case r.SelfManaged && r.CredentialType != credentialPassword:
		return invalidField("credential_type", "is %s for a login that changes its own password", credentialPassword)
	case r.SelfManaged && r.Credential.Password == "":
		return invalidField("password", "is required: the login changes its own password")
	}
	return r.refuseOwnUser(c)
}

// refuseOwnUser refuses the user that the connection itself logs in as: it would not
// know the new password.
func (r *staticRole) refuseOwnUser(c *connection) error {
	if r.Username != c.detail(detailUsername) {
		return nil
	}
	return &wire.Error{
		Code: wire.CodeInvalid, Field: "username", Reason: fmt.Sprintf("is the own user of connection %q", c.Name),
		Hint: "its password is rotated by rotate-root/" + c.Name,
	}
}

// updateStaticRole changes what is stored; the credential stays.
func (b *backend) updateStaticRole(ctx context.Context, s logical.Storage, name string, data *framework.FieldData) error {
	lock := b.roleLocks.lock(name)
	defer lock.Unlock()
	before, err := b.staticRoles.get(ctx, s, name)
	if err != nil {
		return err
	}
	if before == nil {
		return &wire.Error{Code: wire.CodeConflict, Reason: fmt.Sprintf("static role %q was deleted by another request at the same time", name)}
	}
	r := *before
	if err := r.merge(data); err != nil {
		return err
	}
	if r.DBName != before.DBName {
		c, err := b.connections.get(ctx, s, r.DBName)
		if err != nil {
			return err
		}
		if c == nil {
			return invalidField("db_name", "no connection %q; write config/%s first", r.DBName, r.DBName)
		}
		if err := r.refuseOwnUser(c); err != nil {
			return err
		}
	}
	if r.Rotation != before.Rotation {
		b.planStaticRole(&r)
	}
	if r.Credential != before.Credential {
		// The caller says what the password is; what was begun counts no more.
		if err := deleteStored(ctx, s, prefixRotationRole+name); err != nil {
			return err
		}
		b.queueStaticRole(before)
	}
	return b.storeStaticRole(ctx, s, &r)
}

// merge applies a request.
func (r *staticRole) merge(data *framework.FieldData) error {
	if value, ok := givenField[string](data, "db_name"); ok {
		r.DBName = value
	}
	if r.DBName == "" {
		return invalidField("db_name", "is required")
	}
	if value, ok := givenField[string](data, "username"); ok {
		if r.Username != "" && value != r.Username {
			return invalidField("username", "of a static role cannot be changed")
		}
		r.Username = value
	}
	if r.Username == "" {
		return invalidField("username", "is required")
	}
	if value, ok := givenField[[]string](data, "rotation_statements"); ok {
		r.RotationStatements = slices.Clone(value)
	}
	if value, ok := givenField[bool](data, "skip_import_rotation"); ok {
		r.SkipImportRotation = value
	}
	if err := r.mergeRotation(data); err != nil {
		return err
	}
	return r.mergeCredential(data)
}

func (r *staticRole) mergeRotation(data *framework.FieldData) error {
	if err := r.Rotation.merge(data); err != nil {
		return err
	}
	manual, given := givenField[bool](data, "manual")
	_, hasPeriod := data.GetOk("rotation_period")
	_, hasSchedule := data.GetOk("rotation_schedule")
	switch {
	case given && manual && (hasPeriod || hasSchedule) && !r.Rotation.empty():
		return invalidField("manual", "excludes rotation_period and rotation_schedule")
	case given && manual:
		r.Rotation = rotationPlan{}
	}
	r.Manual = r.Rotation.empty() && (given && manual || !given && r.Manual)
	if r.Rotation.empty() && !r.Manual {
		return invalidField("rotation_period", "one of rotation_period and rotation_schedule is required, or manual=true")
	}
	return nil
}

func (r *staticRole) mergeCredential(data *framework.FieldData) error {
	if value, ok := givenField[string](data, "credential_type"); ok && value != "" {
		if value != r.CredentialType && !r.Credential.empty() {
			return invalidField("credential_type", "of a static role cannot be changed")
		}
		r.CredentialType = value
	}
	if value, ok := givenField[map[string]string](data, "credential_config"); ok {
		r.CredentialConfig = maps.Clone(value)
	}
	if err := checkStaticCredential(r.CredentialType, r.CredentialConfig); err != nil {
		return err
	}
	for _, name := range []string{"password", "self_managed_password"} {
		value, ok := givenField[string](data, name)
		if !ok || value == "" {
			continue
		}
		if r.CredentialType != credentialPassword {
			return invalidField(name, "is not the credential of a login with a %s", r.CredentialType)
		}
		r.Credential = storedCredential{Password: value}
		r.SelfManaged = r.SelfManaged || name == "self_managed_password"
	}
	return nil
}

// refuseRoleName refuses the name of a role for a static role: creds and ACL
// policies would mix them up.
func (b *backend) refuseRoleName(ctx context.Context, s logical.Storage, name string) error {
	r, err := b.roles.get(ctx, s, name)
	if err != nil {
		return err
	}
	if r != nil {
		return invalidField("name", "there is a role %q; names are unique across roles and static-roles", name)
	}
	return nil
}

// refuseStaticRoleName is the same the other way round.
func (b *backend) refuseStaticRoleName(ctx context.Context, s logical.Storage, name string) error {
	r, err := b.staticRoles.get(ctx, s, name)
	if err != nil {
		return err
	}
	begun, err := getStored[intention](ctx, s, prefixRotationRole+name)
	if err != nil {
		return err
	}
	if r != nil || begun != nil {
		return invalidField("name", "there is a static role %q; names are unique across roles and static-roles", name)
	}
	return nil
}

// pathStaticRoleDelete ends the management of a login and leaves it as it is.
func (b *backend) pathStaticRoleDelete(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	name := field[string](data, "name")
	lock := b.roleLocks.lock(name)
	defer lock.Unlock()
	for _, key := range []string{prefixStaticRole + name, prefixRotationRole + name} {
		if err := deleteStored(ctx, req.Storage, key); err != nil {
			b.staticRoles.put(name, nil)
			return nil, err
		}
	}
	b.staticRoles.put(name, nil)
	b.rotations.remove(staticRoleKey(name))
	return nil, nil
}
