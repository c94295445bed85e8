package plugin

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

func (m *desk) postureIDs() map[string]string {
	m.t.Helper()
	found := map[string]string{}
	for _, f := range into[wire.Posture](m, m.must(m.read("", "posture"))).Findings {
		found[f.ID+" "+f.Subject.String()] = f.Seen
	}
	return found
}

// What the engine knows by itself and what agents report comes out of posture:
// audit devices, tuning, silent agents, policies.
func TestPosture_OfMount(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	found := m.postureIDs()
	require.Contains(t, found["not_checked mount"], "only agents see them")
	require.NotContains(t, found, "policy_minimum policy dev")
	m.must(m.write("", "policies/loose", "entities", alice, "sources", "x", "targets", "y", "allowed_operations", "*",
		"preset", "minimum"))
	require.Contains(t, m.postureIDs(), "policy_minimum policy loose")
	require.Contains(t, found["not_checked agent a1"], "just started")

	m.clock.pass(2 * time.Minute)
	report := func(devices, problem string, untuned bool) {
		m.must(m.write("entity-a1", "agents/a1/poll", "version", 1, "boot", "b", "free_slots", 0, "audit_devices", devices, "audit_problem", problem, "audit_untuned", untuned))
	}
	report("2", "", false)
	found = m.postureIDs()
	require.NotContains(t, found, "not_checked mount")
	require.NotContains(t, found, "not_checked agent a1")
	require.Contains(t, found["agent_silent agent a2"], "not heard since")

	report("1", "", false)
	require.Contains(t, m.postureIDs(), "audit_single mount")
	report("0", "Vault has no audit device enabled", false)
	require.Equal(t, "agents report: a1: Vault has no audit device enabled", m.postureIDs()["audit_missing mount"])
	report("0", "the mount hides from audit devices: fence"+strings.Repeat(" and more", 1000), true)
	seen := m.postureIDs()["audit_untuned mount"]
	require.Contains(t, seen, "hides from audit devices: fence")
	require.Less(t, len(seen), 700, "an agent's words are cut")
	require.Equal(t, "0", m.must(m.read("", "agents/a1"))["audit_devices"])
}

// An unknown connection is missing, and a wrong field is named.
func TestPosture_Refusals(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	require.Nil(t, m.must(m.read("", "posture/nowhere")))
	resp, err := m.read("", "posture", "max_age", -5)
	require.Equal(t, "max_age", m.refused(wire.CodeInvalid, resp, err).Field)
}
