package e2e

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/stack"
)

// evasionSite is a site where every clone is approved by one member of a group, with
// an agent that does what the test says.
type evasionSite struct {
	*stack.Stack
	agent    hand
	approver *api.Client
}

func newEvasionSite(t *testing.T) *evasionSite {
	t.Helper()
	s := &evasionSite{Stack: stack.New(t, stack.Options{WithoutAgent: true})}
	s.agent = hand{t, s.Mount(), "by-hand", s.AgentIdentity("by-hand")}
	s.approver, _ = s.Person("bob", "dbops-approver")
	self, err := s.approver.Auth().Token().LookupSelf()
	require.NoError(t, err)
	group, err := s.Vault.Client.Logical().Write("identity/group", map[string]any{
		"name": "approvers", "member_entity_ids": []any{self.Data["entity_id"]},
	})
	require.NoError(t, err)
	s.Write("policies/everyone", map[string]any{"approvals_count": 1, "approvals_groups": group.Data["id"]})
	return s
}

// approved asks for a clone, plans it by hand and has it approved.
func (s *evasionSite) approved(t *testing.T) wire.Operation {
	t.Helper()
	id := s.Ask(nil)
	claim := s.agent.claim()
	require.Equal(t, id, claim.OperationID)
	text, _ := planText(t, s.Stack, 1)
	answer, err := s.agent.plan(claim, text)
	require.NoError(t, err)
	require.Equal(t, wire.StateAwaitingApproval, answer.State)
	_, err = s.approver.Logical().Write(s.Mount().Operation(id)+"/approve", map[string]any{"plan_digest": answer.PlanDigest})
	require.NoError(t, err)
	op, err := s.Operation(id)
	require.NoError(t, err)
	require.Equal(t, wire.StateQueued, op.State)
	return op
}

// planOf reads a plan of one part.
func (s *evasionSite) planOf(t *testing.T, who *api.Client, id string) (text, digest string) {
	t.Helper()
	secret, err := who.Logical().Read(s.Mount().Operation(id) + "/plan")
	require.NoError(t, err)
	require.Equal(t, "1", secret.Data["parts"])
	return secret.Data["text"].(string), secret.Data["plan_digest"].(string)
}

// stopped polls as the agent would, tries to get at data, and checks that the
// operation ends with the code, without any account that reaches rows.
func (s *evasionSite) stopped(t *testing.T, id string, code wire.Code) {
	t.Helper()
	var op wire.Operation
	testenv.Await(t, id+" to be stopped", 20*time.Second, func() error {
		for _, claim := range s.agent.poll().Claims {
			for side, purpose := range claim.Phase.Purposes() {
				if err := s.agent.account(claim.OperationID, purpose, side, claim.Fence); err == nil {
					t.Fatalf("%s got the account to %s the %s", id, purpose, side)
				}
			}
		}
		var err error
		if op, err = s.Operation(id); err != nil {
			return err
		}
		if !op.State.Final() {
			return errNothing
		}
		return nil
	})
	require.NotEqual(t, wire.StateSucceeded, op.State)
	require.Equal(t, code, op.Result.Code, "%+v", op.Result)
	require.Empty(t, stack.Logins(s.Source))
	require.Empty(t, stack.Logins(s.Target))
}

// Ways around policy and approval, each tried on a real Vault with the rights its
// actor has. Those by way of old claims, other agents' paths and events are in
// TestRefusals_WorkProtocol, those by forged or replayed audit entries in the tests
// of dbops audit.
func TestEvasions(t *testing.T) {
	t.Parallel()
	s := newEvasionSite(t)

	t.Run("a second name for the same database", func(t *testing.T) {
		// Another host name, another label, and a policy that allows it everything.
		s.Connect("harmless", s.Source, "postgres", stack.Database)
		s.Policy("prohibition", map[string]any{"sources": stack.SourceName, "allowed_operations": "backup"})
		_, err := s.TryAsk(s.Requester, "harmless", stack.TargetName, nil)
		refusal := refused(t, err, wire.CodeDenied)
		require.Equal(t, "prohibition", refusal.Policy)
		_, err = s.TryAsk(s.Requester, "harmless", stack.SourceName, nil)
		refused(t, err, wire.CodeSameDatabase)
		for _, path := range []string{"policies/prohibition", "connections/harmless", "config/harmless"} {
			_, err := s.Vault.Client.Logical().Delete(string(s.Mount()) + "/" + path)
			require.NoError(t, err)
		}
	})

	t.Run("a connection that is re-pointed after the approval", func(t *testing.T) {
		op := s.approved(t)
		other := testenv.Postgres(t, testenv.PostgresOptions{})
		stack.PrepareTarget(other)
		operator, _ := s.Person("operator", "dbops-operator")
		_, err := operator.Logical().Write(string(s.Mount())+"/config/"+stack.TargetName, map[string]any{"connection_url": other.ConnectionURL("postgres")})
		require.NoError(t, err)
		s.stopped(t, op.ID, wire.CodePlanChanged)
		require.Empty(t, stack.Logins(other))
		_, err = operator.Logical().Write(string(s.Mount())+"/config/"+stack.TargetName, map[string]any{"connection_url": s.Target.ConnectionURL("postgres")})
		require.NoError(t, err)
	})

	t.Run("a role that is widened after the approval", func(t *testing.T) {
		operator, _ := s.Person("widener", "dbops-operator")
		role := func(purpose wire.Purpose) string { return stack.TargetName + "-" + string(purpose) }
		as := stack.Roles()[wire.PurposeWrite]
		for field, statement := range map[string]string{
			"creation_statements":   as + ` GRANT pg_read_all_data TO "{{name}}";`,
			"revocation_statements": `SELECT 1`,
			"renew_statements":      `ALTER ROLE "{{name}}" VALID UNTIL 'infinity'`,
		} {
			op := s.approved(t)
			_, err := operator.Logical().Write(string(s.Mount())+"/roles/"+role(wire.PurposeWrite), map[string]any{field: statement})
			require.NoError(t, err)
			s.stopped(t, op.ID, wire.CodePlanChanged)
			_, err = operator.Logical().Write(string(s.Mount())+"/roles/"+role(wire.PurposeWrite), map[string]any{
				"creation_statements": as, "revocation_statements": []string{}, "renew_statements": []string{},
			})
			require.NoError(t, err)
		}
		// What approvers are shown is what the logins would be granted.
		op := s.approved(t)
		text, digest := s.planOf(t, s.approver, op.ID)
		require.Equal(t, op.PlanDigest, digest)
		require.Equal(t, op.PlanDigest, wire.Digest([]byte(text)))
		var plan wire.Plan
		require.NoError(t, json.Unmarshal([]byte(text), &plan))
		require.Len(t, plan.Logins, 2)
		require.Equal(t, []string{as}, plan.Logins[1].Creation)
		require.Equal(t, role(wire.PurposeWrite), plan.Logins[1].Role)
		_, err := s.Requester.Logical().Write(s.Mount().Cancel(op.ID), nil)
		require.NoError(t, err)
	})

	t.Run("labels that are edited after the approval", func(t *testing.T) {
		op := s.approved(t)
		admin, _ := s.Person("labeller", "dbops-connection-admin")
		_, err := admin.Logical().Write(string(s.Mount())+"/connections/"+stack.TargetName, map[string]any{"labels": map[string]any{"env": "elsewhere"}})
		require.NoError(t, err)
		s.stopped(t, op.ID, wire.CodePlanChanged)
	})

	t.Run("a policy that is written after the approval", func(t *testing.T) {
		op := s.approved(t)
		s.Policy("later", map[string]any{"max_rows": 1})
		s.stopped(t, op.ID, wire.CodeLimitExceeded)
		_, err := s.Vault.Client.Logical().Delete(string(s.Mount()) + "/policies/later")
		require.NoError(t, err)
	})

	t.Run("source and target swapped by the agent", func(t *testing.T) {
		id := s.Ask(nil)
		claim := s.agent.claim()
		text, _ := planText(t, s.Stack, 1)
		var plan wire.Plan
		require.NoError(t, json.Unmarshal([]byte(text), &plan))
		var head wire.ShapeHead
		require.NoError(t, json.Unmarshal(plan.Shape, &head))
		head.Source, head.Target = head.Target, head.Source
		var err error
		plan.Shape, err = json.Marshal(head)
		require.NoError(t, err)
		swapped, err := json.Marshal(plan)
		require.NoError(t, err)
		answer, err := s.agent.plan(claim, string(swapped))
		require.NoError(t, err)
		require.Equal(t, wire.StateDenied, answer.State)
		op, err := s.Operation(id)
		require.NoError(t, err)
		require.Equal(t, wire.CodeDenied, op.Result.Code)
		// Nor does an account of the other purpose come out of the right side.
		id = s.Ask(nil)
		claim = s.agent.claim()
		for side, purpose := range map[wire.Side]wire.Purpose{wire.Source: wire.PurposeWrite, wire.Target: wire.PurposeRead} {
			require.Error(t, s.agent.account(id, purpose, side, claim.Fence), "%s the %s", purpose, side)
		}
		_, err = s.Requester.Logical().Write(s.Mount().Cancel(id), nil)
		require.NoError(t, err)
	})
}
