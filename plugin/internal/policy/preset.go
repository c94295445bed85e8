package policy

import "github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"

// Presets are templates for the six rules of the seed.
const (
	PresetMaximum  = "maximum"
	PresetBalanced = "balanced"
	PresetMinimum  = "minimum"
)

// Presets lists every preset, the strictest first.
func Presets() []string { return []string{PresetMaximum, PresetBalanced, PresetMinimum} }

// ApplyPreset gives p the six rules of the preset, which [Presets] lists; none, "",
// leaves them, but for the two that only minimum may lift. The values are the seed's,
// but for those two, which the seed's balanced level leaves out and this one keeps.
func (p *Policy) ApplyPreset(preset string) {
	p.Preset = preset
	p.RequireAuthentication, p.EnableNetworkIsolation = preset != PresetMinimum, preset != PresetMinimum
	switch preset {
	case PresetMaximum:
		p.AuditOperations, p.AllowCrossEngineOperations = true, false
		p.MaxOperationsPerHour = 10
		p.AllowedOperations = []string{string(wire.KindClone), string(wire.KindBackup)}
	case PresetBalanced:
		p.AuditOperations, p.AllowCrossEngineOperations = true, true
		p.MaxOperationsPerHour = 50
		p.AllowedOperations = nil
		for _, kind := range wire.Kinds() {
			p.AllowedOperations = append(p.AllowedOperations, string(kind))
		}
	case PresetMinimum:
		p.AuditOperations, p.AllowCrossEngineOperations = false, true
		p.MaxOperationsPerHour = 999
		p.AllowedOperations = []string{Any}
	}
}

// Points of a score. A policy begins with those of what no policy can lift, and
// what the seed's levels differ in adds up to [MaxScore].
const (
	scoreBase           = 20 // identity, no way out of a sandbox, default deny
	scoreAudit          = 30
	scoreAuthentication = 10
	scoreIsolation      = 10
	scoreOneEngine      = 10
	scoreStrictRate     = 10 // at most strictPerHour
	scoreModerateRate   = 5  // at most moderatePerHour
	scoreFewKinds       = 10 // at most fewKinds
	scoreNamedKinds     = 5  // each named
	// MaxScore is the best score.
	MaxScore = scoreBase + scoreAudit + scoreAuthentication + scoreIsolation + scoreOneEngine + scoreStrictRate + scoreFewKinds

	strictPerHour, moderatePerHour = 10, 50 // the seed's, of its two upper levels
	fewKinds                       = 2

	// The lowest scores of the seed's bands 90-100 and 60-80; 20-40 is the rest.
	bandMaximum, bandBalanced = 90, 60
)

// Score is how strict the six rules of the seed are, 20 to [MaxScore], and the
// seed's band: maximum from 90, balanced from 60, minimum below.
func (p Policy) Score() (score int, band string) {
	score = scoreBase
	add := func(condition bool, points int) bool {
		if condition {
			score += points
		}
		return condition
	}
	add(p.AuditOperations, scoreAudit)
	add(p.RequireAuthentication, scoreAuthentication)
	add(p.EnableNetworkIsolation, scoreIsolation)
	add(!p.AllowCrossEngineOperations, scoreOneEngine)
	if limit := p.MaxOperationsPerHour; limit > 0 && !add(limit <= strictPerHour, scoreStrictRate) {
		add(limit <= moderatePerHour, scoreModerateRate)
	}
	named := true
	for _, kind := range p.AllowedOperations {
		named = named && kind != Any
	}
	if named && !add(len(p.AllowedOperations) <= fewKinds, scoreFewKinds) {
		add(true, scoreNamedKinds)
	}
	switch {
	case score >= bandMaximum:
		return score, PresetMaximum
	case score >= bandBalanced:
		return score, PresetBalanced
	default:
		return score, PresetMinimum
	}
}
