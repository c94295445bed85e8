package policy_test

import (
	"testing"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/policy"
	"github.com/stretchr/testify/require"
)

// The presets have the seed's values and scores within its bands, and so has what
// the seed calls balanced, which only minimum may be here.
func TestPreset_ValuesAndScores(t *testing.T) {
	t.Parallel()
	all := []string{"clone", "merge", "migrate", "backup", "restore"}
	for preset, want := range map[string]struct {
		policy   policy.Policy
		low, top int
	}{
		"maximum": {policy.Policy{
			RequireAuthentication: true, EnableNetworkIsolation: true, AuditOperations: true,
			MaxOperationsPerHour: 10, AllowedOperations: []string{"clone", "backup"},
		}, 90, 100},
		"balanced": {policy.Policy{
			RequireAuthentication: true, EnableNetworkIsolation: true, AuditOperations: true, AllowCrossEngineOperations: true,
			MaxOperationsPerHour: 50, AllowedOperations: all,
		}, 60, 80},
		"minimum": {policy.Policy{
			AllowCrossEngineOperations: true, MaxOperationsPerHour: 999, AllowedOperations: []string{"*"},
		}, 20, 40},
	} {
		var p policy.Policy
		p.ApplyPreset(preset)
		score, band := p.Score()
		require.GreaterOrEqual(t, score, want.low, preset)
		require.LessOrEqual(t, score, want.top, preset)
		require.Equal(t, preset, band)
		want.policy.Preset = preset
		require.Equal(t, want.policy, p)
		require.ErrorContains(t, p.Validate(), `field="entities"`, "a preset needs who")
		p.Entities = []string{"e"}
		require.ErrorContains(t, p.Validate(), `field="sources"`, "and what")
		p.Sources, p.Targets = []string{"a"}, []string{"b"}
		require.NoError(t, p.Validate())
	}
	seedBalanced := policy.Policy{AllowCrossEngineOperations: true, AuditOperations: true, MaxOperationsPerHour: 50, AllowedOperations: all}
	score, band := seedBalanced.Score()
	require.Equal(t, 60, score)
	require.Equal(t, policy.PresetBalanced, band)
	require.Equal(t, 100, policy.MaxScore)
}
