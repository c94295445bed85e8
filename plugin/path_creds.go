package plugin

import (
	"context"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

func (b *backend) credsPaths() []*framework.Path {
	return []*framework.Path{{
		Pattern: "creds/" + framework.GenericNameRegex("name"),
		Fields: map[string]*framework.FieldSchema{
			"name": {Type: framework.TypeString, Description: "Name of the role."},
			"ttl":  {Type: framework.TypeDurationSecond, Description: "Life of the login, at most what the role allows; by default the role's."},
		},
		// Callbacks, not Operations: the latter cost a call to Vault each time.
		Callbacks:    map[logical.Operation]framework.OperationFunc{logical.ReadOperation: b.pathCredsRead},
		HelpSynopsis: "Get a login for a role.",
		HelpDescription: `
Makes a login by the role's statements and leases it. When the lease ends, the
login's sessions are ended and the login is dropped.`,
	}}
}

func (b *backend) pathCredsRead(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	name := field[string](data, "name")
	r, err := b.roles.get(ctx, req.Storage, name)
	if err != nil {
		return nil, err
	}
	if r == nil {
		// Not 404, which clients take on a read for an empty answer.
		return nil, invalidField("name", "no role %q; write roles/%s first", name, name)
	}
	if err := b.refuseOperationsOnly(ctx, req.Storage, r.DBName); err != nil {
		return nil, err
	}
	wanted, given, err := durationGiven(data, "ttl")
	if err != nil {
		return nil, err
	}
	if given && wanted == 0 {
		return nil, invalidField("ttl", "is not above zero")
	}
	issued, err := b.issueAccount(ctx, req.Storage, accountRequest{
		Connection: r.DBName, Role: name, TTL: wanted, DisplayName: req.DisplayName, EntityID: req.EntityID,
	})
	if err != nil {
		return nil, err
	}
	response := b.Secret(secretCredsType).Response(issued.answer(issued.Username), map[string]any{
		"record_id":             issued.RecordID,
		"connection_id":         issued.ConnectionID,
		"at_server":             issued.AtServer,
		"username":              issued.Username,
		"role":                  name,
		"db_name":               r.DBName,
		"revocation_statements": r.RevocationStatements,
		"ttl":                   int64(wanted / time.Second),
	})
	response.Secret.TTL, response.Secret.MaxTTL = issued.TTL, issued.MaxTTL
	// A certificate ends when it says so: clients that find they cannot renew it
	// ask for the next one in time.
	response.Secret.Renewable = issued.Certificate == ""
	response.Warnings = issued.Warnings
	return response, nil
}
