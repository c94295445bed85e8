package plugin

import (
	"testing"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// One human with two logins of one entity is the requester under both, also when a
// login is moved to another entity meanwhile. As two entities that share nothing
// the human is two people, whom the limits of source, target and mount hold.
func TestApproval_OneHumanTwice(t *testing.T) {
	t.Parallel()
	m := newApprovalDesk(t, 1)
	login := func(accessor string) *logical.Alias { return &logical.Alias{MountAccessor: accessor, Name: "alice"} }
	m.system.alias(alice, login("auth_ldap_1"), login("auth_oidc_1"))
	m.system.join(approvers, alice)
	op := m.planned()
	resp, err := m.approve(alice, op) // whichever login the token came from: the entity is one
	m.refused(wire.CodeDenied, resp, err)

	m.system.join(approvers, "entity-alice-2")
	m.system.alias("entity-alice-2", login("auth_oidc_1"))
	m.system.alias(alice, login("auth_ldap_1"))
	resp, err = m.approve("entity-alice-2", op)
	require.Contains(t, m.refused(wire.CodeDenied, resp, err).Reason, "asked for themselves")
	require.Empty(t, m.waiting("entity-alice-2"))
	resp, err = m.write("entity-alice-2", "operations/"+op.ID+"/reject", "reason", "x")
	m.refused(wire.CodeDenied, resp, err)

	m.system.alias("entity-alice-2", login("auth_cert_1"))
	m.must(m.approve("entity-alice-2", op))
	require.Len(t, m.poll("a2").Claims, 1, "nothing that Vault knows ties the two together")

	for _, limit := range []string{"max_operations_per_hour_source", "max_operations_per_hour_target", "max_operations_per_hour_mount"} {
		m.must(m.write("", "policies/dev", "entities", alice+",entity-alice-2", limit, 1))
		for _, who := range []string{alice, "entity-alice-2"} {
			resp, err = m.write(who, "clone/prod/staging")
			require.Equal(t, limit, m.refused(wire.CodeRateLimited, resp, err).Rule)
		}
		m.must(m.write("", "policies/dev", limit, 0))
	}
}

// Two entities that share a login count as one, and merging them makes them one.
func TestApproval_MergedApprovers(t *testing.T) {
	t.Parallel()
	m := newApprovalDesk(t, 2)
	shared := []*logical.Alias{{MountAccessor: "auth_ldap_1", Name: "bob"}}
	m.system.alias(bob, shared...)
	op := m.planned()
	m.must(m.approve(bob, op))
	m.system.alias(carol, shared...)
	resp, err := m.approve(carol, op)
	m.refused(wire.CodeDenied, resp, err)
	m.system.remove(bob) // merged into carol
	after := into[wire.Operation](m, m.must(m.approve(carol, op)))
	require.Equal(t, wire.StateAwaitingApproval, after.State)
	require.Equal(t, []string{"carol"}, after.ApprovalNeeds[0].By)
	require.Equal(t, 1, after.ApprovalNeeds[0].Missing)
}

// The strictest of several policies is all of them: each need has to be met, and
// one approval counts for every need it fits.
func TestApproval_SeveralPolicies(t *testing.T) {
	t.Parallel()
	m := newApprovalDesk(t, 1)
	m.system.join("group-security", carol)
	m.must(m.write("", "policies/security", "entities", "*", "sources", "*", "targets", "*", "allowed_operations", "*",
		"max_operations_per_hour", 0, "approvals_count", 1, "approvals_groups", "group-security"))
	op := m.planned()
	require.Equal(t, "needs 1 more of group group-approvers (policy dev), needs 1 more of group group-security (policy security)", needs(op))
	m.must(m.approve(bob, op))
	require.Equal(t, "approved by bob of group group-approvers (policy dev), needs 1 more of group group-security (policy security)", needs(m.operation(op.ID)))
	m.must(m.approve(carol, op))
	require.Equal(t, wire.StateQueued, m.operation(op.ID).State)
	m.must(m.write(alice, "operations/"+op.ID+"/cancel"))

	op = m.planned()
	m.must(m.approve(carol, op))
	require.Equal(t, wire.StateQueued, m.operation(op.ID).State)
}

// Another operation into the same target that only waits, whatever for, changes
// nothing of what was approved; the approved one runs.
func TestApproval_OthersThatWait(t *testing.T) {
	t.Parallel()
	for name, other := range map[string]func(m *desk){
		"for an agent":               func(m *desk) { m.clone() },
		"for approval":               func(m *desk) { m.planned() },
		"approved, behind it":        func(m *desk) { m.must(m.approve(bob, m.planned())) },
		"rejected":                   func(m *desk) { m.must(m.write(bob, "operations/"+m.planned().ID+"/reject", "reason", "no")) },
		"cancelled":                  func(m *desk) { m.must(m.write(alice, "operations/"+m.planned().ID+"/cancel")) },
		"failed in planning":         func(m *desk) { m.failedInPlanning() },
		"under another name of it":   func(m *desk) { m.plannedByAnotherName() },
		"after the plugin's restart": func(m *desk) { m.planned(); m.restart() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newApprovalDesk(t, 1, "targets", "staging,alias")
			op := m.planned()
			other(m)
			m.must(m.approve(bob, op))
			var mine []wire.Claim
			for _, claim := range m.poll("a2").Claims {
				if claim.OperationID == op.ID {
					mine = append(mine, claim)
				}
			}
			require.Len(t, mine, 1, "%+v", m.operation(op.ID).Result)
			for _, side := range []string{"source", "target"} {
				m.must(m.work("a2", op.ID, "accounts/"+side, "fence", mine[0].Fence))
			}
			_, shape := planText()
			require.Equal(t, wire.StateRunning, into[wire.PlanResponse](m, m.must(m.sendPlan("a2", op.ID, mine[0].Fence, shape))).State)
		})
	}
}
