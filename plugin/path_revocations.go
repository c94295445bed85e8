package plugin

import (
	"context"
	"strconv"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

func (b *backend) revocationPaths() []*framework.Path {
	return []*framework.Path{
		{
			Pattern:      "revocations/?$",
			Callbacks:    map[logical.Operation]framework.OperationFunc{logical.ListOperation: listNames(prefixRevocation)},
			HelpSynopsis: "List the logins that could not be ended yet.",
		},
		{
			Pattern: "revocations/" + framework.GenericNameRegex("id"),
			Fields: map[string]*framework.FieldSchema{
				"id": {Type: framework.TypeString, Description: "Id of the entry."},
			},
			Callbacks:       map[logical.Operation]framework.OperationFunc{logical.ReadOperation: b.pathRevocationRead},
			HelpSynopsis:    "Why a login could not be ended, and when it is tried again.",
			HelpDescription: "Entries are tried for ever, with growing pauses of at most 10 minutes, 24 seconds while the server cannot be reached, and vanish when the login is gone.",
		},
	}
}

func (b *backend) pathRevocationRead(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	failed, err := getStored[revocation](ctx, req.Storage, prefixRevocation+field[string](data, "id"))
	if err != nil || failed == nil {
		return nil, err
	}
	return &logical.Response{Data: map[string]any{
		"connection": failed.Connection,
		"username":   failed.Username,
		"since":      failed.Since.UTC().Format(time.RFC3339),
		"attempts":   strconv.Itoa(failed.Attempts),
		"next_try":   failed.NextTry.UTC().Format(time.RFC3339),
		"code":       string(failed.Code),
		"reason":     failed.Reason,
	}}, nil
}
