package plugin

import (
	"context"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

func (b *backend) infoPaths() []*framework.Path {
	return []*framework.Path{{
		Pattern:         "info/?$",
		Callbacks:       map[logical.Operation]framework.OperationFunc{logical.ReadOperation: b.pathInfoRead},
		HelpSynopsis:    "Versions of the plugin and what it can work with.",
		HelpDescription: "Answers the plugin's version, the version of the agents' protocol, the storage schema and the database plugin names that config/ accepts.",
	}}
}

func (b *backend) pathInfoRead(context.Context, *logical.Request, *framework.FieldData) (*logical.Response, error) {
	return &logical.Response{Data: map[string]any{
		"version":        b.version,
		"wire_version":   wire.Version,
		"schema_version": schemaVersion,
	}}, nil
}
