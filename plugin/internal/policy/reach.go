package policy

import (
	"slices"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Unapproved returns the names of the policies that let somebody run an operation
// that writes to c, as far as names, labels and protection go, without anybody's
// approval. A policy that speaks of every such operation and asks for approvals
// stands before all of them, for all that match have to allow.
func Unapproved(policies []Policy, c Connection) []string {
	var names []string
	for _, p := range policies {
		switch {
		case p.Approvals == nil:
			if p.letsWrite(c) {
				names = append(names, p.Name)
			}
		case p.speaksOfAllInto(c):
			return nil
		}
	}
	return names
}

// speaksOfAllInto reports whether p matches every operation of everybody into c.
func (p Policy) speaksOfAllInto(c Connection) bool {
	return slices.Contains(p.Entities, Any) && slices.Contains(p.Sources, "*") && len(p.SourceLabels) == 0 &&
		!slices.ContainsFunc(writing(), func(kind wire.Kind) bool { return !p.matchesKind(Request{Kind: kind}) }) &&
		matchesConnection(p.Targets, p.TargetLabels, c)
}

// letsWrite reports whether p permits an operation of some kind to write to c.
func (p Policy) letsWrite(c Connection) bool {
	if c.Protected && !p.AllowProtectedTarget {
		return false
	}
	return matchesConnection(p.Targets, p.TargetLabels, c) && slices.ContainsFunc(writing(), func(kind wire.Kind) bool {
		return p.matchesKind(Request{Kind: kind}) &&
			(slices.Contains(p.AllowedOperations, Any) || slices.Contains(p.AllowedOperations, string(kind)))
	})
}

// writing are the kinds of operations that change their target.
func writing() []wire.Kind {
	return slices.DeleteFunc(slices.Clone(wire.Kinds()), func(kind wire.Kind) bool { return kind == wire.KindBackup })
}

// Rules lists the rules that a refusal can name.
func Rules() []string {
	return []string{
		RuleRequireAuthentication, RuleAllowCrossEngineOperations, RuleEnableNetworkIsolation, RuleAuditOperations,
		RuleMaxOperationsPerHour, RuleAllowedOperations, RuleMaxOperationsPerHourSource, RuleMaxOperationsPerHourTarget,
		RuleMaxOperationsPerHourMount, RuleMaxConcurrent, RuleMaxDuration, RuleMaxBytes, RuleMaxRows, RuleAllowedHours,
		RuleRequireTLS, RuleAllowProtectedTarget, RuleAllowCrossZone, RuleAgents, RuleApprovals, RuleMask, RuleUndecidedColumns,
		RulePreview, RuleCloneTTL, RuleLabels, RuleDefaultDeny, RuleSameDatabase, RuleServerIdentity,
	}
}
