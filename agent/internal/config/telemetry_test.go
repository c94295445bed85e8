package config

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Metrics are served on this host or not at all: whatever else an address may be,
// the refusal names the field and the way out.
func TestParse_TelemetryListen(t *testing.T) {
	t.Parallel()
	text := func(block string) []byte {
		return []byte(`name = "a"
vault {
  address = "http://127.0.0.1:8200"
  approle {
    role_id_file   = "r"
    secret_id_file = "s"
  }
}
sandbox {
  tools_image = "x"
}
` + block)
	}
	c, err := Parse("agent.hcl", text(""))
	require.NoError(t, err)
	require.Nil(t, c.Telemetry, "off when absent")

	for listen, want := range map[string][2]string{
		"127.0.0.1:9649":          {"tcp", "127.0.0.1:9649"},
		"127.8.9.1:1":             {"tcp", "127.8.9.1:1"},
		"[::1]:9649":              {"tcp", "[::1]:9649"},
		"[::ffff:127.0.0.1]:9649": {"tcp", "[::ffff:127.0.0.1]:9649"},
		"unix:///run/m.sock":      {"unix", "/run/m.sock"},
	} {
		c, err := Parse("agent.hcl", text(`telemetry { listen = "`+listen+`" }`))
		require.NoError(t, err, listen)
		network, address, err := c.Telemetry.Address()
		require.NoError(t, err)
		require.Equal(t, want, [2]string{network, address})
	}
	for _, listen := range []string{
		"", "0.0.0.0:9649", ":9649", "[::]:9649", "10.0.0.7:9649", "localhost:9649", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:http",
		"128.0.0.1:9649", "[::ffff:10.0.0.7]:9649", "[fe80::1%lo]:9649", "unix://", "unix://m.sock", "unix:///" + strings.Repeat("x", 107),
		"http://127.0.0.1:9649",
	} {
		_, err := Parse("agent.hcl", text(`telemetry { listen = "`+listen+`" }`))
		require.ErrorContains(t, err, "agent.hcl:12,22: telemetry.listen: must be ", listen)
	}
	_, err = Parse("agent.hcl", text("telemetry {\n}"))
	require.ErrorContains(t, err, "listen")
	_, err = Parse("agent.hcl", text("telemetry { listen = \"[::1]:1\" }\ntelemetry { listen = \"[::1]:2\" }"))
	require.ErrorContains(t, err, "agent.hcl:13,1")
}
