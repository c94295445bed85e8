package plugin

import (
	"context"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// role is the entry under role/: which statements make a login and for how long.
// It is never changed once it is in the cache.
type role struct {
	Name                 string            `json:"name"`
	DBName               string            `json:"db_name"`
	CreationStatements   []string          `json:"creation_statements"`
	RevocationStatements []string          `json:"revocation_statements"`
	RollbackStatements   []string          `json:"rollback_statements"`
	RenewStatements      []string          `json:"renew_statements"`
	DefaultTTL           time.Duration     `json:"default_ttl"` // nanoseconds; 0: the mount's
	MaxTTL               time.Duration     `json:"max_ttl"`     // nanoseconds; 0: the mount's
	CredentialType       string            `json:"credential_type"`
	CredentialConfig     map[string]string `json:"credential_config"`
	// CAPrivateKey is the authority's key of a client_certificate, PEM. It is never
	// shown, so it does not stand in CredentialConfig.
	CAPrivateKey string `json:"ca_private_key,omitempty"`
	// Preset stands for the four lists of statements, which are empty with it.
	Preset preset `json:"preset,omitempty"`
	caps
}

func loadRole(ctx context.Context, s logical.Storage, name string) (*role, error) {
	return getStored[role](ctx, s, prefixRole+name)
}

func (b *backend) rolePaths() []*framework.Path {
	return []*framework.Path{
		{
			Pattern:      "roles/?$",
			Callbacks:    map[logical.Operation]framework.OperationFunc{logical.ListOperation: listNames(prefixRole)},
			HelpSynopsis: "List the roles.",
		},
		{
			Pattern: "roles/" + framework.GenericNameRegex("name"),
			Fields: withFields(capFields(), map[string]*framework.FieldSchema{
				"name":                  {Type: framework.TypeString, Description: "Name of the role."},
				"db_name":               {Type: framework.TypeString, Description: "Name of the connection."},
				"creation_statements":   {Type: framework.TypeStringSlice, Description: "Statements that make a login; {{name}}, {{password}}, {{public_key}}, {{common_name}} and {{expiration}} are put in, quoted for where they stand."},
				"revocation_statements": {Type: framework.TypeStringSlice, Description: "Statements that remove a login; by default what it owns goes to the role it belongs to and it is dropped."},
				"rollback_statements":   {Type: framework.TypeStringSlice, Description: "Kept and shown; a failed creation is undone by its transaction."},
				"renew_statements":      {Type: framework.TypeStringSlice, Description: "Statements that renew a login; by default ALTER ROLE … VALID UNTIL."},
				"preset":                {Type: framework.TypeString, Description: "readonly, readwrite or owner, in place of statements of one's own. Reading the role shows what it comes to, and preparation_statements, which are run on the server when the role is written; on PostgreSQL they take the rights of PUBLIC on schema public away. Empty leaves it."},
				"default_ttl":           {Type: framework.TypeDurationSecond, Description: "Life of a login; 0 is the mount's default."},
				"max_ttl":               {Type: framework.TypeDurationSecond, Description: "Longest life of a login; 0 is the mount's maximum."},
				"credential_type":       {Type: framework.TypeString, Description: "password, the default, rsa_private_key or client_certificate."},
				"credential_config":     {Type: framework.TypeKVPairs, Description: "password_policy of a password; format and key_bits of an rsa_private_key; ca_cert, ca_private_key, key_type, key_bits, signature_bits and common_name_template of a client_certificate. What an update does not name stays; ca_private_key is never returned."},
			}),
			Callbacks: map[logical.Operation]framework.OperationFunc{
				logical.CreateOperation: b.pathRoleWrite,
				logical.UpdateOperation: b.pathRoleWrite,
				logical.ReadOperation:   b.pathRoleRead,
				logical.DeleteOperation: b.pathRoleDelete,
			},
			ExistenceCheck: b.roles.exists,
			HelpSynopsis:   "Manage the roles that creds/ and operations make logins by.",
			HelpDescription: `
The same fields as in Vault's database secrets engine. Logins stay revocable after
their role is gone.`,
		},
	}
}

func (b *backend) pathRoleRead(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	r, err := b.roles.get(ctx, req.Storage, field[string](data, "name"))
	if err != nil || r == nil {
		return nil, err
	}
	answer := map[string]any{
		"db_name":               r.DBName,
		"creation_statements":   array(r.CreationStatements),
		"revocation_statements": array(r.RevocationStatements),
		"rollback_statements":   array(r.RollbackStatements),
		"renew_statements":      array(r.RenewStatements),
		"default_ttl":           int64(r.DefaultTTL / time.Second),
		"max_ttl":               int64(r.MaxTTL / time.Second),
		"credential_type":       r.CredentialType,
	}
	if len(r.CredentialConfig) > 0 {
		answer["credential_config"] = shownCredentialConfig(r.CredentialConfig)
	}
	r.show(answer)
	response := &logical.Response{Data: answer}
	return response, b.showPreset(ctx, req.Storage, r, response)
}

func (b *backend) pathRoleWrite(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	name := field[string](data, "name")
	lock := b.roleLocks.lock(name)
	defer lock.Unlock()
	before, err := b.roles.get(ctx, req.Storage, name)
	if err != nil {
		return nil, err
	}
	if before == nil {
		if err := b.refuseStaticRoleName(ctx, req.Storage, name); err != nil {
			return nil, err
		}
	}
	r, err := mergeRole(before, name, data)
	if err != nil {
		return nil, err
	}
	if err := putStored(ctx, req.Storage, prefixRole+name, r); err != nil {
		b.roles.put(name, nil)
		return nil, err
	}
	b.roles.put(name, r)
	response := &logical.Response{}
	if r.MaxTTL > 0 && r.DefaultTTL > r.MaxTTL {
		// Vault's engine takes it without a word, and so configurations have it.
		response.AddWarning("default_ttl is greater than max_ttl; logins live as long as max_ttl")
	}
	warning, err := b.preparePreset(ctx, req.Storage, r)
	if err != nil {
		return nil, err
	}
	if warning != "" {
		response.AddWarning(warning)
	}
	if len(response.Warnings) == 0 {
		return nil, nil
	}
	return response, nil
}

// mergeRole applies a request to what is stored.
func mergeRole(before *role, name string, data *framework.FieldData) (*role, error) {
	r := &role{Name: name, CredentialType: credentialPassword}
	if before != nil {
		copied := *before
		r = &copied
	}
	if value, ok := givenField[string](data, "db_name"); ok {
		r.DBName = value
	}
	if r.DBName == "" {
		return nil, invalidField("db_name", "is required")
	}
	if err := r.mergePreset(data); err != nil {
		return nil, err
	}
	for name, statements := range map[string]*[]string{
		"creation_statements": &r.CreationStatements, "revocation_statements": &r.RevocationStatements,
		"rollback_statements": &r.RollbackStatements, "renew_statements": &r.RenewStatements,
	} {
		if value, ok := givenField[[]string](data, name); ok {
			*statements = slices.Clone(value)
		}
	}
	for name, ttl := range map[string]*time.Duration{"default_ttl": &r.DefaultTTL, "max_ttl": &r.MaxTTL} {
		if err := setDuration(data, name, ttl); err != nil {
			return nil, err
		}
	}
	if err := r.merge(data); err != nil {
		return nil, err
	}
	return r, r.mergeCredential(data)
}

func (b *backend) pathRoleDelete(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	name := field[string](data, "name")
	lock := b.roleLocks.lock(name)
	defer lock.Unlock()
	err := deleteStored(ctx, req.Storage, prefixRole+name)
	b.roles.put(name, nil)
	return nil, err
}
