package plugin

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

func TestConnections_FieldsAndErrors(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.must(m.write("", "connections/prod", "address", "10.1.2.3:6432", "database", "shop2", "operations_only", true, "zone", "eu"))
	read := m.must(m.read("", "connections/prod"))
	require.Equal(t, "eu", read["zone"])
	require.Equal(t, map[string]any{"inspect": "i", "read": "r"}, read["purposes"])
	ep, _, _, err := m.b.operationEndpoint(context.Background(), m.storage, "prod")
	require.NoError(t, err)
	require.Equal(t, "10.1.2.3", ep.Host)
	require.Equal(t, 6432, ep.Port)
	require.Equal(t, "shop2", ep.Database)
	require.Error(t, m.b.refuseOperationsOnly(context.Background(), m.storage, "prod"))
	require.NoError(t, m.b.refuseOperationsOnly(context.Background(), m.storage, "staging"))
	for field, value := range map[string]any{"address": "nope", "purposes": "dance=x"} {
		resp, err := m.write("", "connections/prod", field, value)
		require.Equal(t, field, m.refused(wire.CodeInvalid, resp, err).Field)
	}
}
