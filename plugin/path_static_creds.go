package plugin

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

func (b *backend) staticCredsPaths() []*framework.Path {
	return []*framework.Path{{
		Pattern: "static-creds/" + framework.GenericNameRegex("name"),
		Fields: map[string]*framework.FieldSchema{
			"name": {Type: framework.TypeString, Description: "Name of the static role."},
		},
		// Callbacks, not Operations: the latter cost a call to Vault each time.
		Callbacks:    map[logical.Operation]framework.OperationFunc{logical.ReadOperation: b.pathStaticCredsRead},
		HelpSynopsis: "Get the present credential of a static role.",
		HelpDescription: `
ttl is how many seconds are left until it is rotated. rotation_period stands beside
it for scheduled roles too, so that Vault Agent reads again in time.`,
	}}
}

func (b *backend) pathStaticCredsRead(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	name := field[string](data, "name")
	r, err := b.staticRoles.get(ctx, req.Storage, name)
	if err != nil {
		return nil, err
	}
	if r == nil {
		// Not 404, which clients take on a read for an empty answer.
		return nil, invalidField("name", "no static role %q; write static-roles/%s first", name, name)
	}
	if err := b.refuseOperationsOnly(ctx, req.Storage, r.DBName); err != nil {
		return nil, err
	}
	if _, err := b.staticRoleConnection(ctx, req.Storage, r); err != nil {
		return nil, err
	}
	if r.Credential.empty() {
		return nil, &wire.Error{
			Code: wire.CodeConflict, Reason: fmt.Sprintf("the credential of static role %q is not known before its first rotation", name),
			Hint: "write rotate-role/" + name + ", or password to static-roles/" + name,
		}
	}
	answer := map[string]any{
		"username":            r.Username,
		"ttl":                 int64(0),
		"last_vault_rotation": r.LastRotation.UTC().Format(time.RFC3339Nano),
	}
	if r.CredentialType == credentialRSA {
		answer[credentialRSA] = r.Credential.PrivateKey
	} else {
		answer["password"] = r.Credential.Password
	}
	if left, ever := b.staticRoleLeft(r); !r.NextRotation.IsZero() && ever {
		answer["ttl"] = max(int64(left.Round(time.Second)/time.Second), 0)
		answer["rotation_period"] = int64(r.Rotation.interval(r.NextRotation) / time.Second)
	}
	r.Rotation.showSchedule(answer)
	return &logical.Response{Data: answer}, nil
}
