package plugin

import (
	"fmt"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/policy"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// fulfillable turns a permission into a refusal when it comes with an obligation
// that this version cannot meet: what a policy asks for is never left out in
// silence. Whoever builds the part that meets one takes its case away here.
func fulfillable(d wire.Decision) wire.Decision {
	if !d.Allowed || len(d.Approvals) == 0 {
		return d
	}
	need := d.Approvals[0]
	return wire.Decision{
		Code: wire.CodeUnsupported, Policies: d.Policies, Policy: need.Policy, Rule: policy.RuleApprovals,
		Reason: fmt.Sprintf("%d approvals are asked for, and approvals are not built yet", need.Count),
	}
}
