package command

import (
	"context"
	"net"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/config"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/metrics"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/vault"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// An address that is taken or that nobody may use stops the agent at its start, with
// the field's name; without the block nothing is opened.
func TestServeMetrics(t *testing.T) {
	t.Parallel()
	m, log := metrics.New("v1"), hclog.NewNullLogger()
	stop, err := serveMetrics(t.Context(), nil, m, log)
	require.NoError(t, err)
	stop()

	var listening net.ListenConfig
	taken, err := listening.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	for _, listen := range []string{taken.Addr().String(), "0.0.0.0:9649"} {
		_, err = serveMetrics(t.Context(), &config.Telemetry{Listen: listen}, m, log)
		require.Equal(t, wire.CodeConfig, vault.CodeOf(err), listen)
		require.ErrorContains(t, err, "telemetry.listen", listen)
	}

	// It serves until it is stopped, not until the agent is told to end.
	require.NoError(t, taken.Close())
	ctx, cancel := context.WithCancel(t.Context())
	address := taken.Addr().String()
	stop, err = serveMetrics(ctx, &config.Telemetry{Listen: address}, m, log)
	require.NoError(t, err)
	cancel()
	var dialer net.Dialer
	connection, err := dialer.DialContext(t.Context(), "tcp", address)
	require.NoError(t, err)
	require.NoError(t, connection.Close())
	stop()
	_, err = dialer.DialContext(t.Context(), "tcp", address)
	require.Error(t, err)
}
