package e2e

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/stack"
)

// approvalSite is a site whose policy asks for two approvals by a group. Bob is its
// member, carol by way of a group inside it, dave is not.
type approvalSite struct {
	*stack.Stack
	bob, carol, dave *api.Client
	bobToken         string
	inner            string // group id
	carolEntity      string
}

func newApprovalSite(t *testing.T) *approvalSite {
	t.Helper()
	s := &approvalSite{Stack: stack.New(t, stack.Options{Vault: testenv.VaultOptions{Raft: true}})}
	s.bob, s.bobToken = s.Person("bob", "dbops-approver")
	s.carol, _ = s.Person("carol", "dbops-approver")
	s.dave, _ = s.Person("dave", "dbops-approver")
	entity := func(c *api.Client) string {
		self, err := c.Auth().Token().LookupSelf()
		require.NoError(t, err)
		id, _ := self.Data["entity_id"].(string)
		return id
	}
	group := func(name string, fields map[string]any) string {
		fields["name"] = name
		made, err := s.Vault.Client.Logical().Write("identity/group", fields)
		require.NoError(t, err)
		id, _ := made.Data["id"].(string)
		return id
	}
	s.carolEntity = entity(s.carol)
	s.inner = group("leads", map[string]any{"member_entity_ids": []string{s.carolEntity}})
	outer := group("approvers", map[string]any{"member_entity_ids": []string{entity(s.bob)}, "member_group_ids": []string{s.inner}})
	s.Write("policies/everyone", map[string]any{"approvals_count": 2, "approvals_groups": outer})
	return s
}

func (s *approvalSite) await(t *testing.T, id string, state wire.State) wire.Operation {
	t.Helper()
	var op wire.Operation
	testenv.Await(t, id+" to be "+string(state), 2*time.Minute, func() error {
		var err error
		if op, err = s.Operation(id); err != nil {
			return err
		}
		if op.State != state {
			return fmt.Errorf("it is %s: %+v", op.State, op.Result)
		}
		return nil
	})
	return op
}

func (s *approvalSite) approve(t *testing.T, op wire.Operation, who ...*api.Client) {
	t.Helper()
	for _, c := range who {
		_, err := c.Logical().Write(s.Mount().Operation(op.ID)+"/approve", map[string]any{"plan_digest": op.PlanDigest, "comment": "seen with the team"})
		require.NoError(t, err)
	}
}

// A plan made by one agent is approved by two people, one of them a member by way
// of an inner group, while Vault is killed in between, and is run by another agent.
// What changes after the approvals, at the source or in a group, stops it. Audit
// devices show digest, comment and reason in clear.
func TestApproval_AnotherAgentRuns(t *testing.T) {
	t.Parallel()
	s := newApprovalSite(t)
	s.Source.Exec(stack.Database, "CREATE TABLE marker (round int)", "INSERT INTO marker VALUES (1)")
	second := func() func() *testenv.AgentProcess {
		stdout, stderr, status := s.CLI(s.Vault.RootToken, "setup", "-mount="+string(s.Mount()), "-agent=host2", "-out="+s.Dir)
		require.Zero(t, status, stdout+stderr)
		config := s.WriteAgentConfig("host2", 1, "")
		return func() *testenv.AgentProcess { return testenv.StartAgent(t, testenv.Agent(t), config) }
	}()

	op := s.await(t, s.Ask(map[string]any{"reason": "ticket 7"}), wire.StateAwaitingApproval)
	require.Len(t, op.ApprovalNeeds, 1)
	require.Equal(t, 2, op.ApprovalNeeds[0].Missing)
	testenv.Await(t, "the inspecting logins to end", 30*time.Second, func() error {
		if left := stack.Logins(s.Source) + stack.Logins(s.Target); left != "" {
			return fmt.Errorf("logins %s", left)
		}
		return nil
	})
	behind := s.await(t, s.Ask(nil), wire.StateAwaitingApproval) // its agent goes on with other work
	s.Agent.Stop(30 * time.Second)

	seen, err := s.dave.Logical().Read(s.Mount().Operation(op.ID))
	require.NoError(t, err)
	require.Nil(t, seen, "whoever may not approve it finds none")
	_, err = s.Requester.Logical().Write(s.Mount().Operation(op.ID)+"/approve", map[string]any{"plan_digest": op.PlanDigest})
	require.ErrorContains(t, err, "403")
	list, stderr, status := s.CLI(s.bobToken, "operations", "-waiting")
	require.Zero(t, status, stderr)
	require.Contains(t, list, op.ID)
	plan, stderr, status := s.CLI(s.bobToken, "plan", op.ID)
	require.Zero(t, status, stderr)
	require.Regexp(t, `public\.marker +table +copy +round +integer`, plan)
	require.Contains(t, plan, "needs 2 more of group")
	command := regexp.MustCompile(`(?m)^  dbops (approve .*)$`).FindStringSubmatch(plan)
	require.Len(t, command, 2, plan)
	shown, stderr, status := s.CLI(s.bobToken, append(strings.Fields(command[1]), "-comment=fine")...)
	require.Zero(t, status, stderr)
	require.Contains(t, shown, "needs 1 more of group")
	s.Vault.Kill()
	s.Vault.Restart()
	s.approve(t, op, s.carol)
	s.Vault.Kill()
	s.Vault.Restart()
	require.Equal(t, wire.StateQueued, s.await(t, op.ID, wire.StateQueued).State)

	host2 := second()
	op = s.AwaitFinal(op.ID, 3*time.Minute)
	require.Equal(t, wire.StateSucceeded, op.State, "%+v\n%s", op.Result, host2.Log())
	require.Equal(t, "host2", op.Agent)
	require.Len(t, op.Approvals, 2)
	require.Equal(t, "fine", op.Approvals[0].Comment)
	require.Equal(t, op.PlanDigest, op.Approvals[1].PlanDigest)
	require.Equal(t, "1", s.Target.Value(stack.Database, "SELECT round FROM marker"))

	// What waited beside it changed nothing of it, but has a plan for what was there
	// before.
	_, err = s.bob.Logical().Write(s.Mount().Operation(behind.ID)+"/approve", map[string]any{"plan_digest": behind.PlanDigest})
	require.Contains(t, refused(t, err, wire.CodePlanChanged).Reason, op.ID)

	// The source changes after the approvals, and its agent was away meanwhile.
	changed := s.await(t, s.Ask(nil), wire.StateAwaitingApproval)
	host2.Kill()
	s.approve(t, changed, s.bob, s.carol)
	s.Source.Exec(stack.Database, "ALTER TABLE marker ADD COLUMN more text")
	host2.Start()
	changed = s.AwaitFinal(changed.ID, 3*time.Minute)
	require.Equal(t, wire.CodePlanChanged, changed.Result.Code, "%+v\n%s", changed.Result, host2.Log())

	// A member leaves after the approvals.
	left := s.await(t, s.Ask(nil), wire.StateAwaitingApproval)
	host2.Stop(30 * time.Second)
	s.approve(t, left, s.bob, s.carol)
	require.Equal(t, wire.StateQueued, s.await(t, left.ID, wire.StateQueued).State)
	_, err = s.Vault.Client.Logical().Write("identity/group/id/"+s.inner, map[string]any{"member_entity_ids": []string{}})
	require.NoError(t, err)
	host2.Start()
	left = s.await(t, left.ID, wire.StateAwaitingApproval)
	require.Equal(t, 1, left.ApprovalNeeds[0].Missing)
	_, stderr, status = s.CLI(s.bobToken, "reject", "-reason=carol has left", left.ID)
	require.Zero(t, status, stderr)
	_, stderr, status = s.CLI(s.RequesterToken, "operation", "-follow", left.ID)
	require.Equal(t, wire.CodeRejected.Info().Exit, status, stderr)

	testenv.Await(t, "logins to end", 60*time.Second, func() error {
		if left := stack.Logins(s.Source) + stack.Logins(s.Target); left != "" {
			return fmt.Errorf("logins %s", left)
		}
		return nil
	})
	audited := map[string]string{}
	for _, raw := range s.Vault.AuditEntries() {
		var entry struct {
			Type    string
			Request struct {
				Path string
				Data map[string]any
			}
			Response struct{ Data map[string]any }
		}
		require.NoError(t, json.Unmarshal(raw, &entry))
		if digest, ok := entry.Request.Data["plan_digest"].(string); ok && entry.Type == "response" {
			audited[entry.Request.Path+" plan_digest"] = digest
		}
		if words, ok := entry.Response.Data["comment"].(string); ok {
			audited[entry.Request.Path+" comment"] = words
		}
	}
	require.Equal(t, op.PlanDigest, audited[s.Mount().Operation(op.ID)+"/approve plan_digest"])
	require.Equal(t, "seen with the team", audited[s.Mount().Operation(op.ID)+"/approve comment"])
	require.Equal(t, "carol has left", audited[s.Mount().Operation(left.ID)+"/reject comment"])
}

// A server that does not tell Vault for a moment which one it is, after people have
// approved, gets no login until it does, and then the clone runs: the agent asks again.
func TestApproval_ServerDoesNotSayWhichItIs(t *testing.T) {
	t.Parallel()
	s := newApprovalSite(t)
	s.Source.Exec(stack.Database, "CREATE TABLE marker (round int)", "INSERT INTO marker VALUES (1)")
	op := s.await(t, s.Ask(nil), wire.StateAwaitingApproval)
	noLogins := func() error {
		if left := stack.Logins(s.Source) + stack.Logins(s.Target); left != "" {
			return fmt.Errorf("logins %s", left)
		}
		return nil
	}
	testenv.Await(t, "the inspecting logins to end", 30*time.Second, noLogins)
	s.Write("reset/"+stack.SourceName, nil) // it forgets what the server said
	s.Source.Exec("postgres", "ALTER ROLE dbops_root CONNECTION LIMIT 0", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'dbops_root'")
	s.approve(t, op, s.bob, s.carol)
	path := s.Mount().Accounts(stack.AgentName, op.ID, wire.PurposeRead, wire.Source)
	testenv.Await(t, "the agent to be told twice to ask again", 30*time.Second, func() error {
		told := 0
		for _, entry := range s.Vault.AuditEntries() {
			if text := string(entry); strings.Contains(text, path) && strings.Contains(text, "until it says which server it is") {
				told++
			}
		}
		if told < 2 {
			return fmt.Errorf("told %d times", told)
		}
		return nil
	})
	require.Empty(t, stack.Logins(s.Source))
	s.Source.Exec("postgres", "ALTER ROLE dbops_root CONNECTION LIMIT -1")
	s.await(t, op.ID, wire.StateSucceeded)
	require.Equal(t, "1", s.Target.Value(stack.Database, "SELECT round FROM marker"))
	testenv.Await(t, "the logins to end", 30*time.Second, noLogins)
}
