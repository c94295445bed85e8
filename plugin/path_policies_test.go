package plugin

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Approvals are three plain fields that keep their value, go away with a count of
// 0, and name the wrong one; as long as nothing can approve, they refuse.
func TestPolicies_Approvals(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	read := func() []any {
		data := m.must(m.read("", "policies/dev"))
		return []any{data["approvals_count"], data["approvals_groups"], data["approvals_ttl"]}
	}
	require.Equal(t, []any{0, []string{}, int64(0)}, read())
	m.must(m.write("", "policies/dev", "approvals_count", 2, "approvals_groups", "g-1,g-2", "approvals_ttl", "4h"))
	m.must(m.write("", "policies/dev", "require_tls", true))
	m.restart()
	require.Equal(t, []any{2, []string{"g-1", "g-2"}, int64(4 * wholeHour)}, read())

	resp, err := m.write(alice, "clone/prod/staging")
	e := m.refused(wire.CodeUnsupported, resp, err)
	require.Equal(t, "approvals", e.Rule)
	require.Equal(t, "dev", e.Policy)

	for field, fields := range map[string][]any{
		"approvals_groups": {"approvals_groups", ""},
		"approvals_ttl":    {"approvals_ttl", "-5s"},
		"approvals_count":  {"approvals_count", -1},
	} {
		resp, err := m.write("", "policies/dev", fields...)
		require.Equal(t, field, m.refused(wire.CodeInvalid, resp, err).Field)
	}
	m.must(m.write("", "policies/dev", "approvals_count", 0))
	require.Equal(t, []any{0, []string{}, int64(0)}, read())
	m.clone()
}
