package plugin

import (
	"fmt"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/policy"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// unfulfilled are the obligations that this version cannot meet, by rule. Whoever
// builds the part that meets one takes its row away.
var unfulfilled = []struct {
	rule  string
	asked func(wire.Decision) (policy, what string) // "" for nothing
}{
	{policy.RuleMask, func(d wire.Decision) (string, string) {
		if len(d.Masks) == 0 {
			return "", ""
		}
		return "", fmt.Sprintf("mask %s, and masking is not built yet", d.Masks[0])
	}},
	{policy.RuleUndecidedColumns, func(d wire.Decision) (string, string) {
		if d.UndecidedColumns != policy.UndecidedStop {
			return "", ""
		}
		return "", "that columns which look personal are found, and masking is not built yet"
	}},
	{policy.RuleCloneTTL, func(d wire.Decision) (string, string) {
		if d.CloneTTL == 0 {
			return "", ""
		}
		return "", fmt.Sprintf("that the clone ends after %s, and clones with an end of life are not built yet", d.CloneTTL)
	}},
}

// fulfillable turns a permission into a refusal when it comes with an obligation
// that this version cannot meet: what a policy asks for is never left out in
// silence.
func fulfillable(d wire.Decision) wire.Decision {
	if !d.Allowed {
		return d
	}
	for _, obligation := range unfulfilled {
		if by, what := obligation.asked(d); what != "" {
			return wire.Decision{
				Code: wire.CodeUnsupported, Policies: d.Policies, Policy: by, Rule: obligation.rule, Reason: "a policy asks for " + what,
			}
		}
	}
	return d
}
