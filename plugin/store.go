package plugin

import (
	"context"
	"fmt"
	"strings"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// Storage keys. doc.go has the table of what stands under each.
const (
	keySchema        = "schema"
	keyMount         = "mount"
	prefixConfig     = "config/"
	prefixRetired    = "retired/"
	prefixRole       = "role/"
	prefixAccount    = "account/"
	prefixRevocation = "revocation/"
)

// getStored reads and decodes the entry at key. It returns nil without an error
// when there is none.
func getStored[T any](ctx context.Context, s logical.Storage, key string) (*T, error) {
	entry, err := s.Get(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	if entry == nil {
		return nil, nil
	}
	value := new(T)
	if err := entry.DecodeJSON(value); err != nil {
		return nil, fmt.Errorf("decode %s: %w", key, err)
	}
	return value, nil
}

// putStored encodes value and stores it at key. Vault refuses entries above 1 MiB.
func putStored(ctx context.Context, s logical.Storage, key string, value any) error {
	entry, err := logical.StorageEntryJSON(key, value)
	if err != nil {
		return fmt.Errorf("encode %s: %w", key, err)
	}
	if err := s.Put(ctx, entry); err != nil {
		return fmt.Errorf("store %s: %w", key, err)
	}
	return nil
}

// deleteStored removes the entry at key; a missing one is no error.
func deleteStored(ctx context.Context, s logical.Storage, key string) error {
	if err := s.Delete(ctx, key); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return nil
}

// listStored lists the names directly below prefix, which ends with a slash.
// Names of folders end with a slash themselves.
func listStored(ctx context.Context, s logical.Storage, prefix string) ([]string, error) {
	names, err := s.List(ctx, prefix)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", strings.TrimSuffix(prefix, "/"), err)
	}
	return names, nil
}

// listNames answers the names stored directly below prefix.
func listNames(prefix string) framework.OperationFunc {
	return func(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
		names, err := listStored(ctx, req.Storage, prefix)
		if err != nil {
			return nil, err
		}
		return logical.ListResponse(names), nil
	}
}
