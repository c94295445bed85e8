package sandbox

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// An id becomes a path and a label: only plain words pass.
func TestCheckOperationID(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"clone-01jd3k8m2q4r5s6t7v8w9x0y1z", "a", "CLONE-01JD"} {
		require.NoError(t, CheckOperationID(id), id)
	}
	for _, id := range hostileIDs {
		require.Error(t, CheckOperationID(id), id)
	}
}

var hostileIDs = []string{
	"", ".", "..", "../x", "/etc", "a/b", "a b", "a\x00", "a\n", "-rf", "a=b", "a,b", "é", "a.b",
	"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
}

func FuzzCheckOperationID(f *testing.F) {
	for _, id := range hostileIDs {
		f.Add(id)
	}
	f.Fuzz(func(t *testing.T, id string) {
		if CheckOperationID(id) != nil {
			return
		}
		for _, c := range id {
			if c != '-' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
				t.Fatalf("%q passed", id)
			}
		}
	})
}

// One address per name; literals need none; what could forge a hosts entry is
// refused.
func TestToolHosts(t *testing.T) {
	t.Parallel()
	two, three := netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.3")
	for _, c := range []struct {
		source, target string
		want           map[string]netip.Addr
	}{
		{"a.example", "b.example", map[string]netip.Addr{"a.example": two, "b.example": three}},
		{"a.example", "A.EXAMPLE", map[string]netip.Addr{"a.example": two}},
		{"10.0.0.1", "b", map[string]netip.Addr{"b": three}},
		{"localhost", "fd00::1", map[string]netip.Addr{}},
	} {
		got, err := ToolHosts(map[wire.Side]wire.Endpoint{wire.Source: {Host: c.source}, wire.Target: {Host: c.target}})
		require.NoError(t, err)
		require.Equal(t, c.want, got)
	}
	for _, host := range []string{"", "a b", "a\n127.0.0.1 b", "a:127.0.0.1", "-a", "/var/run", "a#b"} {
		_, err := ToolHosts(map[wire.Side]wire.Endpoint{wire.Source: {Host: host}})
		require.Error(t, err, host)
	}
}
