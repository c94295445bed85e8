package plugin

import (
	"context"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

func (b *backend) rotatePaths() []*framework.Path {
	named := func(what string) map[string]*framework.FieldSchema {
		return map[string]*framework.FieldSchema{"name": {Type: framework.TypeString, Description: "Name of the " + what + "."}}
	}
	on := func(f framework.OperationFunc) map[logical.Operation]framework.OperationFunc {
		return map[logical.Operation]framework.OperationFunc{logical.UpdateOperation: f}
	}
	return []*framework.Path{
		{
			Pattern: "rotate-role/" + framework.GenericNameRegex("name"), Fields: named("static role"),
			Callbacks:    on(b.pathRotateRole),
			HelpSynopsis: "Rotate the credential of a static role now.",
		},
		{
			Pattern: "rotate-root/" + framework.GenericNameRegex("name"), Fields: named("connection"),
			Callbacks:    on(b.pathRotateRoot),
			HelpSynopsis: "Rotate the password of a connection's own user now.",
			HelpDescription: `
Afterwards nobody but the engine knows it. A rotation that was interrupted is
completed: neither the old nor the new password is ever lost.`,
		},
		{
			Pattern: "rotate-all/" + framework.GenericNameRegex("name"), Fields: named("connection"),
			Callbacks:    on(b.pathRotateAll),
			HelpSynopsis: "Rotate all static roles of a connection.",
			HelpDescription: `
It answers at once which static roles are rotated now, in the background. The wish
is stored and survives a restart; last_vault_rotation of static-roles/:name tells
which are done.`,
		},
	}
}

func (b *backend) pathRotateRole(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	return nil, b.rotateStaticRole(ctx, req.Storage, field[string](data, "name"), nil, false)
}

func (b *backend) pathRotateRoot(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	return nil, b.rotateRoot(ctx, req.Storage, field[string](data, "name"), false)
}

func (b *backend) pathRotateAll(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	name := field[string](data, "name")
	if _, err := b.usableConnection(ctx, req.Storage, name); err != nil {
		return nil, err
	}
	names, err := b.staticRolesOf(ctx, req.Storage, name)
	if err != nil {
		return nil, err
	}
	since := b.now().Round(0) // which wish it is, too
	if len(names) > 0 {
		if err := putStored(ctx, req.Storage, prefixRotationAll+name, wish{Since: since}); err != nil {
			return nil, err
		}
		b.rotations.setWish(name, since)
	}
	for _, roleName := range names {
		b.rotations.put(staticRoleKey(roleName), name, 0, true)
	}
	return &logical.Response{Data: map[string]any{"roles": names, "count": len(names)}}, nil
}
