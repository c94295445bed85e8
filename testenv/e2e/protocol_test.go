package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/stack"
)

// hand speaks the work protocol as one agent would, step by step.
type hand struct {
	t     *testing.T
	mount wire.Mount
	name  string
	vault *api.Client
}

func (h hand) try(path string, body, answer any) error {
	h.t.Helper()
	content, err := json.Marshal(body)
	require.NoError(h.t, err)
	var data map[string]any
	require.NoError(h.t, json.Unmarshal(content, &data))
	secret, err := h.vault.Logical().Write(path, data)
	if err != nil || answer == nil {
		return err
	}
	require.NotNil(h.t, secret)
	content, err = json.Marshal(secret.Data)
	require.NoError(h.t, err)
	require.NoError(h.t, json.Unmarshal(content, answer))
	return nil
}

func (h hand) poll(held ...string) wire.PollResponse {
	h.t.Helper()
	var answer wire.PollResponse
	require.NoError(h.t, h.try(h.mount.Poll(h.name), wire.PollRequest{
		Version: wire.Version, Boot: "by-hand", FreeSlots: 1, Held: held, Progress: []string{}, AuditDevices: "1",
	}, &answer))
	return answer
}

// claim polls until there is a claim.
func (h hand) claim() wire.Claim {
	h.t.Helper()
	var claims []wire.Claim
	testenv.Await(h.t, "a claim", 30*time.Second, func() error {
		if claims = h.poll().Claims; len(claims) == 0 {
			return errNothing
		}
		return nil
	})
	require.Len(h.t, claims, 1)
	return claims[0]
}

func (h hand) account(id string, purpose wire.Purpose, side wire.Side, fence string) error {
	return h.try(h.mount.Accounts(h.name, id, purpose, side), wire.AccountRequest{Fence: fence}, nil)
}

// plan sends a plan made up by hand: the plugin reads only its head.
func (h hand) plan(claim wire.Claim, text string) (wire.PlanResponse, error) {
	var answer wire.PlanResponse
	err := h.try(h.mount.Plan(h.name, claim.OperationID), wire.PlanRequest{Fence: claim.Fence, Part: "0", Parts: "1", Text: text}, &answer)
	return answer, err
}

func identity(p *testenv.PostgresServer, database string) wire.ServerIdentity {
	return wire.ServerIdentity{
		Engine: wire.EnginePostgres, Server: p.Value("postgres", "select system_identifier from pg_control_system()"),
		Database: database, Version: "15.0",
		DatabaseID: p.Value("postgres", "select coalesce((select oid::text from pg_database where datname = $1), '')", database),
	}
}

func planText(t *testing.T, s *stack.Stack, tables int) (plan, shape string) {
	t.Helper()
	head, err := json.Marshal(wire.ShapeHead{
		Kind: wire.KindClone, Strategy: "stream", Why: "by hand",
		Source: identity(s.Source, stack.Database), Target: identity(s.Target, stack.Database),
		Tables: tables, Options: map[string]string{},
	})
	require.NoError(t, err)
	text, err := json.Marshal(wire.Plan{Version: 1, Shape: head, Estimates: wire.Estimates{Tables: tables, Rows: 10, Bytes: 1000}})
	require.NoError(t, err)
	return string(text), string(head)
}

// The work protocol refuses whoever is not the claiming agent, whatever belongs to
// an earlier claim, and whatever does not fit the plan; each with its code.
func TestRefusals_WorkProtocol(t *testing.T) {
	t.Parallel()
	s := stack.New(t, stack.Options{WithoutAgent: true})
	one := hand{t, s.Mount(), "by-hand-one", s.AgentIdentity("by-hand-one")}
	two := hand{t, s.Mount(), "by-hand-two", s.AgentIdentity("by-hand-two")}
	id := s.Ask(nil)
	claim := one.claim()
	require.Equal(t, id, claim.OperationID)
	require.Equal(t, wire.PhasePlanning, claim.Phase)

	t.Run("another agent's path", func(t *testing.T) {
		intruder := hand{t, s.Mount(), one.name, two.vault}
		err := intruder.account(id, wire.PurposeInspect, wire.Source, claim.Fence)
		var answer *api.ResponseError
		require.ErrorAs(t, err, &answer)
		require.Equal(t, 403, answer.StatusCode) // by the ACL template; the plugin's own check is next
	})
	t.Run("another agent's path with rights to it", func(t *testing.T) {
		admin, _ := s.Person("mallory", "anything")
		require.NoError(t, s.Vault.Client.Sys().PutPolicy("anything", `path "*" { capabilities = ["create","read","update","sudo"] }`))
		intruder := hand{t, s.Mount(), one.name, admin}
		refused(t, intruder.account(id, wire.PurposeInspect, wire.Source, claim.Fence), wire.CodeNotYourOperation)
		root := hand{t, s.Mount(), one.name, s.Vault.Client}
		refused(t, root.account(id, wire.PurposeInspect, wire.Source, claim.Fence), wire.CodeNoIdentity)
	})
	t.Run("another agent's operation", func(t *testing.T) {
		refused(t, two.account(id, wire.PurposeInspect, wire.Source, claim.Fence), wire.CodeNotYourOperation)
	})
	t.Run("lost answer of a poll", func(t *testing.T) {
		again := one.poll().Claims
		require.Len(t, again, 1)
		require.Equal(t, claim.Fence, again[0].Fence)
	})
	t.Run("old fencing number", func(t *testing.T) {
		refused(t, one.account(id, wire.PurposeInspect, wire.Source, "0"), wire.CodeStaleClaim)
	})
	t.Run("running account while planning", func(t *testing.T) {
		refused(t, one.account(id, wire.PurposeRead, wire.Source, claim.Fence), wire.CodeConflict)
	})
	t.Run("fourth account of a claim", func(t *testing.T) {
		for range 3 {
			require.NoError(t, one.account(id, wire.PurposeInspect, wire.Target, claim.Fence))
		}
		refused(t, one.account(id, wire.PurposeInspect, wire.Target, claim.Fence), wire.CodeConflict)
		require.Equal(t, "1", s.Target.Value("postgres", `select count(*) from pg_roles where rolcanlogin and rolname not in ('dbops_root', $1)`, s.Target.User),
			"each account ends the one before")
	})

	plan, shape := planText(t, s, 3)
	answer, err := one.plan(claim, plan)
	require.NoError(t, err)
	stored, err := s.Requester.Logical().Read(s.Mount().Operation(id) + "/plan")
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(stored.Data["text"].(string), strings.TrimSuffix(plan, "}")+`,"logins":[`), "the agent's bytes, and the logins")
	require.Equal(t, wire.Digest([]byte(stored.Data["text"].(string))), answer.PlanDigest)
	require.Equal(t, wire.Digest([]byte(shape)), answer.ShapeDigest)
	require.NotNil(t, answer.Claim, "state %s", answer.State)
	running := *answer.Claim
	require.Equal(t, wire.PhaseRunning, running.Phase)

	t.Run("fence of the planning claim while running", func(t *testing.T) {
		refused(t, one.account(id, wire.PurposeRead, wire.Source, claim.Fence), wire.CodeStaleClaim)
	})
	require.NoError(t, one.account(id, wire.PurposeRead, wire.Source, running.Fence))

	t.Run("cancelled operation's finish", func(t *testing.T) {
		_, err := s.Requester.Logical().Write(s.Mount().Cancel(id), nil)
		require.NoError(t, err)
		require.Contains(t, one.poll(id+":"+running.Fence).Cancel, id)
		err = one.try(s.Mount().Finish(one.name, id), wire.FinishRequest{Fence: running.Fence, Outcome: wire.StateSucceeded}, nil)
		refused(t, err, wire.CodeConflict)
		require.NoError(t, one.try(s.Mount().Finish(one.name, id), wire.FinishRequest{
			Fence: running.Fence, Outcome: wire.StateCancelled, Code: wire.CodeCancelled, Reason: "on request",
		}, nil))
		op := s.AwaitFinal(id, 30*time.Second)
		require.Equal(t, wire.StateCancelled, op.State)
		// They are ended beside the answer: a database may be slow.
		testenv.Await(t, "the accounts of a finished operation to end", 30*time.Second, func() error {
			if left := stack.Logins(s.Source); left != "" {
				return fmt.Errorf("%s is left", left)
			}
			return nil
		})
	})

	t.Run("changed source between plan and run", func(t *testing.T) {
		id := s.Ask(nil)
		claim := one.claim()
		answer, err := one.plan(claim, plan)
		require.NoError(t, err)
		_, otherShape := planText(t, s, 4)
		_, err = one.plan(*answer.Claim, otherShape)
		refused(t, err, wire.CodePlanChanged)
		op := s.AwaitFinal(id, 30*time.Second)
		require.Equal(t, wire.StateFailed, op.State)
		require.Equal(t, wire.CodePlanChanged, op.Result.Code)
	})

	t.Run("target that is not what the plugin knows", func(t *testing.T) {
		id := s.Ask(nil)
		claim := one.claim()
		head, err := json.Marshal(wire.ShapeHead{
			Kind: wire.KindClone, Strategy: "stream", Source: identity(s.Source, stack.Database), Target: identity(s.Source, stack.Database),
			Options: map[string]string{},
		})
		require.NoError(t, err)
		text, err := json.Marshal(wire.Plan{Version: 1, Shape: head})
		require.NoError(t, err)
		answer, err := one.plan(claim, string(text))
		require.NoError(t, err)
		require.Equal(t, wire.StateDenied, answer.State)
		require.Equal(t, wire.CodeDenied, answer.Decision.Code)
		require.Contains(t, answer.Decision.Reason, stack.TargetName)
		require.Equal(t, wire.StateDenied, s.AwaitFinal(id, 30*time.Second).State)
	})

	t.Run("events of another chain or operation", func(t *testing.T) {
		id := s.Ask(nil)
		claim := one.claim()
		require.Equal(t, id, claim.OperationID)
		chain := one.poll(id + ":" + claim.Fence).Chain
		event := wire.Event{
			V: 1, T: time.Now(), Agent: one.name, Epoch: "1", Seq: "1", OpID: id, Operation: wire.KindClone,
			Source: stack.SourceName, Target: stack.TargetName, User: claim.Requester, Prev: chain.Head,
			EventType: wire.EventStepStarted, Severity: wire.SeverityInfo, Outcome: wire.OutcomeStarted, Phase: wire.StepPlan,
		}
		send := func(op string, e wire.Event) error {
			text, _, err := e.Encode()
			require.NoError(t, err)
			return one.try(s.Mount().Events(one.name, op), wire.EventsRequest{Events: []string{text}}, nil)
		}
		require.NoError(t, send(id, event))
		require.NoError(t, send(id, event), "the same batch again")
		gap := event
		gap.Seq = "3"
		refused(t, send(id, gap), wire.CodeChainBroken)
		fork := event
		fork.Object = "forged"
		refused(t, send(id, fork), wire.CodeChainBroken)
		_, head, err := event.Encode()
		require.NoError(t, err)
		next := event
		next.Seq, next.Prev, next.OpID = "2", head, "op-01aaaaaaaaaaaaaaaaaaaaaaaa"
		refused(t, send(id, next), wire.CodeInvalid)
		next.OpID, next.Agent = id, two.name
		refused(t, send(id, next), wire.CodeInvalid)
		next.Agent = one.name
		require.NoError(t, send(id, next))
	})
}
