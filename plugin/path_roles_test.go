package plugin

import (
	"encoding/json"
	"testing"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

func TestRoles_ReadHasVaultsTypes(t *testing.T) {
	t.Parallel()
	m := newMount(t, &logical.InmemStorage{})
	m.must(logical.CreateOperation, "roles/app", map[string]any{"db_name": "prod"})
	m.must(logical.CreateOperation, "roles/full", map[string]any{
		"db_name": "prod", "creation_statements": "CREATE ROLE x; -- one element", "revocation_statements": []string{"a", "b"},
		"default_ttl": "1h", "max_ttl": 7200, "credential_config": map[string]any{"password_policy": "strong"},
	})
	read := func(name string) (decoded map[string]any) {
		content, err := json.Marshal(m.must(logical.ReadOperation, "roles/"+name, nil).Data)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(content, &decoded))
		return decoded
	}
	require.Equal(t, map[string]any{
		"db_name": "prod", "creation_statements": []any{}, "revocation_statements": []any{}, "rollback_statements": []any{},
		"renew_statements": []any{}, "default_ttl": 0.0, "max_ttl": 0.0, "credential_type": "password",
	}, read("app"))
	full := read("full")
	require.Equal(t, []any{"CREATE ROLE x; -- one element"}, full["creation_statements"])
	require.Equal(t, []any{"a", "b"}, full["revocation_statements"])
	require.Equal(t, 3600.0, full["default_ttl"])
	require.Equal(t, 7200.0, full["max_ttl"])
	require.Equal(t, map[string]any{"password_policy": "strong"}, full["credential_config"])

	m.must(logical.UpdateOperation, "roles/full", map[string]any{"max_ttl": "3h"})
	require.Equal(t, []any{"a", "b"}, read("full")["revocation_statements"], "an update keeps what it does not name")
	require.Equal(t, []string{"app", "full"}, m.must(logical.ListOperation, "roles", nil).Data["keys"])
	m.must(logical.DeleteOperation, "roles/app", nil)
	require.Nil(t, m.must(logical.ReadOperation, "roles/app", nil))
}

func TestRoles_RefusalsNameTheField(t *testing.T) {
	t.Parallel()
	m := newMount(t, &logical.InmemStorage{})
	for field, data := range map[string]map[string]any{
		"db_name":           {},
		"default_ttl":       {"db_name": "prod", "default_ttl": "soon"},
		"max_ttl":           {"db_name": "prod", "max_ttl": -5},
		"credential_type":   {"db_name": "prod", "credential_type": "guess"},
		"credential_config": {"db_name": "prod", "credential_config": map[string]any{"password_polizy": "x"}},
	} {
		refusal, status := m.refused(logical.CreateOperation, "roles/app", data)
		require.Equal(t, 400, status, field)
		require.Equal(t, wire.CodeInvalid, refusal.Code)
		require.Equal(t, field, refusal.Field)
	}
}

// Vault's engine stores a default_ttl above max_ttl; we do too, and say what it
// comes to.
func TestRoles_DefaultAboveMaxIsAWarning(t *testing.T) {
	t.Parallel()
	m := newMount(t, &logical.InmemStorage{})
	response := m.must(logical.CreateOperation, "roles/app", map[string]any{"db_name": "prod", "default_ttl": "2h", "max_ttl": "1h"})
	require.Len(t, response.Warnings, 1)
	response = m.must(logical.UpdateOperation, "roles/app", map[string]any{"max_ttl": "3h"})
	require.Nil(t, response)
}
