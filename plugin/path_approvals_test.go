package plugin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

const (
	dave      = "entity-dave"
	approvers = "group-approvers"
)

// join puts entities into a group; an entity that is not known yet is made.
func (i *identities) join(group string, entities ...string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, id := range entities {
		if i.entities[id] == nil {
			i.entities[id] = &logical.Entity{ID: id, Name: strings.TrimPrefix(id, "entity-")}
		}
		i.groups[id] = append(i.groups[id], &logical.Group{ID: group})
	}
}

// leave takes an entity out of all its groups.
func (i *identities) leave(entity string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.groups, entity)
}

// newApprovalDesk is a desk whose policy asks for count approvals by the group of
// bob and carol; dave is nobody there.
func newApprovalDesk(t *testing.T, count int, policy ...any) *desk {
	t.Helper()
	m := newDesk(t)
	m.system.join(approvers, bob, carol)
	m.system.join("group-others", dave)
	m.must(m.write("", "policies/dev", append([]any{"approvals_count", count, "approvals_groups", approvers}, policy...)...))
	return m
}

// planned brings a new operation to where it waits for approval.
func (m *desk) planned() wire.Operation {
	m.t.Helper()
	op := m.clone()
	polled := m.poll("a1")
	require.Len(m.t, polled.Claims, 1)
	text, _ := planText()
	answer := into[wire.PlanResponse](m, m.must(m.sendPlan("a1", op.ID, polled.Claims[0].Fence, text)))
	require.Equal(m.t, wire.StateAwaitingApproval, answer.State)
	require.Nil(m.t, answer.Claim)
	return m.operation(op.ID)
}

func (m *desk) approve(who string, op wire.Operation) (*logical.Response, error) {
	m.t.Helper()
	return m.write(who, "operations/"+op.ID+"/approve", "plan_digest", op.PlanDigest)
}

func (m *desk) waiting(who string) []string {
	m.t.Helper()
	found := into[struct{ Operations []wire.Operation }](m, m.must(m.read(who, "operations", "waiting", "true")))
	ids := []string{}
	for _, op := range found.Operations {
		ids = append(ids, op.ID)
	}
	return ids
}

func needs(op wire.Operation) string {
	var texts []string
	for _, n := range op.ApprovalNeeds {
		texts = append(texts, n.String())
	}
	return strings.Join(texts, ", ")
}

// A plan waits without claim and account, is seen by those who may approve it and
// nobody else, is queued with the last approval, and goes to whichever agent comes;
// who approved what stands in the record for ever.
func TestApproval_WholeWay(t *testing.T) {
	t.Parallel()
	m := newApprovalDesk(t, 2, "approvals_ttl", "2h")
	op := m.clone("reason", "ticket 7")
	require.Equal(t, []string{op.ID}, m.must(m.handle(bob, logical.ListOperation, "operations/"))["keys"], "it can be seen coming")
	m.poll("a1")
	for _, side := range []string{"source", "target"} {
		m.must(m.work("a1", op.ID, "accounts/inspect/"+side, "fence", "1"))
	}
	text, shape := planText()
	for range 2 { // an answer that was lost is given again
		answer := into[wire.PlanResponse](m, m.must(m.sendPlan("a1", op.ID, "1", text)))
		require.Equal(t, wire.StateAwaitingApproval, answer.State)
		require.Nil(t, answer.Claim)
		require.Equal(t, wire.Digest([]byte(storedPlan(text))), answer.PlanDigest)
	}
	m.settle()
	require.Empty(t, m.db.openAccounts())
	require.Empty(t, m.poll("a1", op.ID+":1").Claims)
	require.Equal(t, []string{op.ID + ":1"}, m.poll("a1", op.ID+":1").Drop)
	resp, err := m.work("a1", op.ID, "accounts/inspect/source", "fence", "1")
	m.refused(wire.CodeStaleClaim, resp, err)

	op = into[wire.Operation](m, m.must(m.read(alice, "operations/"+op.ID)))
	require.Equal(t, "needs 2 more of group group-approvers (policy dev)", needs(op))
	require.Empty(t, m.waiting(alice))
	require.Empty(t, m.waiting(dave))
	require.Equal(t, []string{op.ID}, m.waiting(bob))
	require.Equal(t, storedPlan(text), m.must(m.read(bob, "operations/"+op.ID+"/plan"))["text"])
	resp, err = m.write(bob, "operations/"+op.ID+"/cancel")
	m.refused(wire.CodeNotFound, resp, err)
	for _, what := range []string{"", "/plan", "/report"} {
		resp, err = m.read(dave, "operations/"+op.ID+what)
		m.refused(wire.CodeNotFound, resp, err)
	}

	at := m.clock.now()
	after := into[wire.Operation](m, m.must(m.write(bob, "operations/"+op.ID+"/approve", "plan_digest", op.PlanDigest, "comment", "looked at it")))
	require.Equal(t, wire.StateAwaitingApproval, after.State)
	require.Equal(t, "needs 1 more of group group-approvers (policy dev)", needs(after))
	require.Equal(t, []string{"bob"}, after.ApprovalNeeds[0].By)
	require.Equal(t, at.Add(2*time.Hour), after.ApprovalNeeds[0].Until)
	require.Empty(t, m.waiting(bob))
	require.Equal(t, []string{op.ID}, m.waiting(carol))
	m.restart()
	m.clock.pass(time.Minute)
	after = into[wire.Operation](m, m.must(m.approve(carol, op)))
	require.Equal(t, wire.StateQueued, after.State)
	require.Equal(t, "approved by bob, carol of group group-approvers (policy dev)", needs(after))
	require.Equal(t, wire.StateQueued, into[wire.Operation](m, m.must(m.approve(carol, op))).State, "a repeat is answered alike")

	m.restart() // killed between approval and run
	claims := m.poll("a2").Claims
	require.Len(t, claims, 1)
	require.Equal(t, wire.PhaseRunning, claims[0].Phase)
	require.Equal(t, op.PlanDigest, claims[0].PlanDigest)
	require.Equal(t, "2", claims[0].Fence)
	require.EqualValues(t, 4*wholeHour*1000, claims[0].MaxDurationMilli, "the time people took is not counted")
	for _, side := range []string{"source", "target"} {
		m.must(m.work("a2", op.ID, "accounts/"+side, "fence", "2"))
	}
	m.must(m.sendPlan("a2", op.ID, "2", shape))
	m.must(m.work("a2", op.ID, "finish", "fence", "2", "outcome", "succeeded"))
	m.restart()
	end := into[wire.Operation](m, m.must(m.read(bob, "operations/"+op.ID)))
	require.Equal(t, wire.StateSucceeded, end.State)
	require.Equal(t, []wire.Approval{
		{User: wire.User{EntityID: bob, Name: "bob"}, Time: at, PlanDigest: op.PlanDigest, Comment: "looked at it"},
		{User: wire.User{EntityID: carol, Name: "carol"}, Time: at.Add(time.Minute), PlanDigest: op.PlanDigest},
	}, end.Approvals)
	require.Empty(t, end.ApprovalNeeds)
	resp, err = m.approve(carol, op)
	m.refused(wire.CodeConflict, resp, err)
}

// Every wrong approval is refused with its own code and changes nothing.
func TestApproval_Refusals(t *testing.T) {
	t.Parallel()
	m := newApprovalDesk(t, 1)
	early := m.clone()
	resp, err := m.write(bob, "operations/"+early.ID+"/approve", "plan_digest", "sha256:0")
	m.refused(wire.CodeConflict, resp, err)
	resp, err = m.write(bob, "operations/"+early.ID+"/reject", "reason", "x")
	m.refused(wire.CodeConflict, resp, err)
	m.must(m.write(alice, "operations/"+early.ID+"/cancel"))

	op := m.planned()
	m.system.join(approvers, alice)
	for name, c := range map[string]struct {
		who    string
		fields []any
		code   wire.Code
		field  string
	}{
		"nobody":            {"", []any{"plan_digest", op.PlanDigest}, wire.CodeNoIdentity, ""},
		"the requester":     {alice, []any{"plan_digest", op.PlanDigest}, wire.CodeDenied, ""},
		"no member":         {dave, []any{"plan_digest", op.PlanDigest}, wire.CodeNotFound, ""},
		"no digest":         {bob, nil, wire.CodeInvalid, "plan_digest"},
		"another digest":    {bob, []any{"plan_digest", wire.Digest([]byte("older"))}, wire.CodeConflict, "plan_digest"},
		"the shape's":       {bob, []any{"plan_digest", op.ShapeDigest}, wire.CodeConflict, "plan_digest"},
		"a long comment":    {bob, []any{"plan_digest", op.PlanDigest, "comment", strings.Repeat("x", maxReasonBytes+1)}, wire.CodeInvalid, "comment"},
		"no such id":        {bob, nil, wire.CodeNotFound, ""},
		"below all, no way": {bob, nil, "", ""},
	} {
		path := "operations/" + op.ID + "/approve"
		switch name {
		case "no such id":
			path = "operations/op-" + strings.Repeat("0", 26) + "/approve"
		case "below all, no way":
			_, err := m.write(c.who, "all/operations/"+op.ID+"/approve", "plan_digest", op.PlanDigest)
			require.ErrorIs(t, err, logical.ErrUnsupportedPath)
			continue
		}
		resp, err := m.write(c.who, path, c.fields...)
		require.Equal(t, c.field, m.refused(c.code, resp, err).Field, name)
	}
	for name, c := range map[string]struct {
		who    string
		fields []any
		code   wire.Code
		field  string
	}{
		"the requester":  {alice, []any{"reason", "x"}, wire.CodeDenied, ""},
		"no member":      {dave, []any{"reason", "x"}, wire.CodeNotFound, ""},
		"no reason":      {bob, []any{"reason", "  "}, wire.CodeInvalid, "reason"},
		"a long reason":  {bob, []any{"reason", strings.Repeat("x", maxReasonBytes+1)}, wire.CodeInvalid, "reason"},
		"another digest": {bob, []any{"reason", "x", "plan_digest", "sha256:0"}, wire.CodeConflict, "plan_digest"},
	} {
		resp, err := m.write(c.who, "operations/"+op.ID+"/reject", c.fields...)
		require.Equal(t, c.field, m.refused(c.code, resp, err).Field, name)
	}
	m.restart()
	require.Equal(t, op, m.operation(op.ID))

	m.must(m.write(alice, "operations/"+op.ID+"/cancel"))
	resp, err = m.approve(bob, op)
	require.Contains(t, m.refused(wire.CodeConflict, resp, err).Reason, "cancelled", "approve after cancel")
	require.Empty(t, m.poll("a1").Claims)
}

// Two approvers at once: with two needed both count; with one needed the operation
// is queued once, and the other hears that nobody is needed any more.
func TestApproval_TwoAtOnce(t *testing.T) {
	t.Parallel()
	for count, codes := range map[int][]wire.Code{2: {""}, 1: {"", wire.CodeConflict}} {
		t.Run(fmt.Sprint(count), func(t *testing.T) {
			t.Parallel()
			for range 20 {
				m := newApprovalDesk(t, count)
				op := m.planned()
				var wait sync.WaitGroup
				var agreed, late atomic.Int64
				for _, who := range []string{bob, carol, bob, carol} { // each twice: a client repeats by itself
					wait.Go(func() {
						_, err := m.approve(who, op)
						switch {
						case err == nil:
							agreed.Add(1)
						case wire.ParseError(err.Error()).Code == wire.CodeConflict:
							late.Add(1)
						}
					})
				}
				wait.Wait()
				require.EqualValues(t, 4, agreed.Load()+late.Load())
				if len(codes) == 1 {
					require.Zero(t, late.Load())
				} else {
					require.EqualValues(t, 2, late.Load())
				}
				after := m.operation(op.ID)
				require.Equal(t, wire.StateQueued, after.State)
				require.Len(t, after.Approvals, count)
				require.Len(t, m.poll("a2").Claims, 1)
				require.Empty(t, m.poll("a1").Claims)
			}
		})
	}
}

// What changes between the approval and the run is noticed before an agent gets
// the operation, and nothing runs on an approval that does not count any more.
func TestApproval_ChangedBeforeTheClaim(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(m *desk)
		state  wire.State
		code   wire.Code
	}{
		"approver left the group":  {func(m *desk) { m.system.leave(bob) }, wire.StateAwaitingApproval, ""},
		"approver disabled":        {func(m *desk) { m.system.disable(bob) }, wire.StateAwaitingApproval, ""},
		"approver gone or merged":  {func(m *desk) { m.system.remove(bob) }, wire.StateAwaitingApproval, ""},
		"requester disabled":       {func(m *desk) { m.system.disable(alice) }, wire.StateDenied, wire.CodeNoIdentity},
		"config":                   {func(m *desk) { m.db.set(func(f *fakeAccounts) { f.configs["prod"] = "c1b" }) }, wire.StateFailed, wire.CodePlanChanged},
		"connection":               {func(m *desk) { m.must(m.write("", "connections/staging", "labels", "tier=other")) }, wire.StateFailed, wire.CodePlanChanged},
		"role":                     {func(m *desk) { m.db.grant("w", "GRANT superuser") }, wire.StateFailed, wire.CodePlanChanged},
		"connection's config gone": {func(m *desk) { m.db.set(func(f *fakeAccounts) { delete(f.endpoints, "prod") }) }, wire.StateFailed, wire.CodeNotFound},
		"fewer approvals asked":    {func(m *desk) { m.must(m.write("", "policies/dev", "approvals_count", 0)) }, wire.StateFailed, wire.CodePlanChanged},
		"more approvals asked":     {func(m *desk) { m.must(m.write("", "policies/dev", "approvals_count", 3)) }, wire.StateFailed, wire.CodePlanChanged},
		"a new policy": {func(m *desk) {
			m.must(m.write("", "policies/more", "entities", "*", "sources", "*", "targets", "*", "allowed_operations", "*"))
		}, wire.StateFailed, wire.CodePlanChanged},
		"forbidden": {func(m *desk) { m.must(m.write("", "policies/dev", "allowed_operations", "backup")) }, wire.StateDenied, wire.CodeDenied},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newApprovalDesk(t, 1)
			op := m.planned()
			m.must(m.approve(bob, op))
			c.change(m)
			require.Empty(t, m.poll("a2").Claims)
			require.Empty(t, m.poll("a1").Claims)
			after := m.operation(op.ID)
			require.Equal(t, c.state, after.State)
			if c.code == "" {
				require.Equal(t, "needs 1 more of group group-approvers (policy dev)", needs(after))
				m.must(m.approve(carol, op))
				require.Equal(t, wire.PhaseRunning, m.poll("a1").Claims[0].Phase)
				return
			}
			require.Equal(t, c.code, after.Result.Code)
			require.NotEmpty(t, after.Result.Reason)
			require.Zero(t, m.db.made())
		})
	}
}

// The same between the claim and the accounts, which reach data: none is made.
func TestApproval_ChangedBeforeTheAccounts(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(m *desk)
		code   wire.Code
	}{
		"approver left the group": {func(m *desk) { m.system.leave(bob) }, wire.CodeDenied},
		"approver disabled":       {func(m *desk) { m.system.disable(bob) }, wire.CodeDenied},
		"approval expired":        {func(m *desk) { m.clock.pass(time.Hour) }, wire.CodeDenied},
		"policy":                  {func(m *desk) { m.must(m.write("", "policies/dev", "approvals_groups", "group-others")) }, wire.CodePlanChanged},
		"role":                    {func(m *desk) { m.db.grant("w", "GRANT superuser") }, wire.CodePlanChanged},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newApprovalDesk(t, 1, "approvals_ttl", "1h")
			op := m.planned()
			m.must(m.approve(bob, op))
			fence := m.poll("a2").Claims[0].Fence
			c.change(m)
			resp, err := m.work("a2", op.ID, "accounts/target", "fence", fence)
			m.refused(c.code, resp, err)
			after := m.operation(op.ID)
			require.Equal(t, wire.StateFailed, after.State)
			require.Equal(t, c.code, after.Result.Code)
			require.Zero(t, m.db.made())
			if c.code == wire.CodeDenied {
				require.Contains(t, after.Result.Reason, "needs 1 more of group group-approvers (policy dev)")
			}
		})
	}
}

// An approval that did not count when the run's logins were asked for is marked, with
// why, in the operation and in its receipt; one whose giver left later is not.
func TestApproval_NotCountedIsMarked(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(m *desk)
		why    wire.NotCounted
	}{
		"left the group": {func(m *desk) { m.system.leave(bob) }, wire.NotCountedNoMember},
		"disabled":       {func(m *desk) { m.system.disable(bob) }, wire.NotCountedNobody},
		"gone or merged": {func(m *desk) { m.system.remove(bob) }, wire.NotCountedNobody},
		"expired":        {func(m *desk) { m.clock.pass(59 * time.Minute) }, wire.NotCountedExpired},
		"nothing":        {func(*desk) {}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newApprovalDesk(t, 2, "approvals_ttl", "1h")
			const erin = "entity-erin"
			m.system.join(approvers, erin)
			op := m.planned()
			m.must(m.approve(bob, op))
			m.clock.pass(time.Minute)
			m.must(m.approve(carol, op)) // queued by both
			require.Empty(t, m.operation(op.ID).Approvals[0].NotCounted)
			c.change(m)
			if c.why != "" {
				require.Empty(t, m.poll("a1").Claims)
				require.Equal(t, c.why, m.operation(op.ID).Approvals[0].NotCounted, "while it waits")
				m.must(m.approve(erin, op))
			}
			fence := m.poll("a2").Claims[0].Fence
			m.must(m.work("a2", op.ID, "accounts/source", "fence", fence))
			at := m.clock.now()
			m.system.leave(carol) // she counted when it mattered
			m.must(m.work("a2", op.ID, "finish", "fence", fence, "outcome", "failed", "code", "engine"))
			m.restart()
			m.settle()
			after := m.operation(op.ID)
			require.Equal(t, c.why, after.Approvals[0].NotCounted)
			require.Empty(t, after.Approvals[1].NotCounted)
			a := m.receipt(op.ID).Predicate.Attested
			require.Equal(t, "bob", a.Approvals[0].Name)
			require.Equal(t, c.why, a.Approvals[0].NotCounted)
			require.Empty(t, a.Approvals[1].NotCounted)
			require.Equal(t, at, a.ApprovalsCheckedAt)
		})
	}
	t.Run("and so it was refused", func(t *testing.T) {
		t.Parallel()
		m := newApprovalDesk(t, 1)
		op := m.planned()
		m.must(m.approve(bob, op))
		fence := m.poll("a2").Claims[0].Fence
		m.system.leave(bob)
		resp, err := m.work("a2", op.ID, "accounts/source", "fence", fence)
		m.refused(wire.CodeDenied, resp, err)
		m.settle()
		require.Equal(t, wire.NotCountedNoMember, m.receipt(op.ID).Predicate.Attested.Approvals[0].NotCounted)
	})
	t.Run("never looked at", func(t *testing.T) {
		t.Parallel()
		m := newApprovalDesk(t, 1)
		op := m.planned()
		m.must(m.approve(bob, op))
		m.must(m.write(alice, "operations/"+op.ID+"/cancel"))
		m.settle()
		require.Zero(t, m.receipt(op.ID).Predicate.Attested.ApprovalsCheckedAt)
	})
}

// A source that changed between approval and run: the copying snapshot shows it,
// the operation ends, and its approval is worth nothing for the next plan.
func TestApproval_ShapeChanged(t *testing.T) {
	t.Parallel()
	m := newApprovalDesk(t, 1)
	op := m.planned()
	m.must(m.approve(bob, op))
	fence := m.poll("a2").Claims[0].Fence
	m.must(m.work("a2", op.ID, "accounts/source", "fence", fence))
	_, other := planText(func(h *wire.ShapeHead, _ *wire.Estimates) { h.Tables = 2 })
	resp, err := m.sendPlan("a2", op.ID, fence, other)
	m.refused(wire.CodePlanChanged, resp, err)
	require.Equal(t, wire.CodePlanChanged, m.operation(op.ID).Result.Code)
	m.settle()
	require.Empty(t, m.db.openAccounts())
	resp, err = m.approve(carol, op)
	m.refused(wire.CodeConflict, resp, err)

	again := m.clone()
	text, _ := planText(func(h *wire.ShapeHead, _ *wire.Estimates) { h.Tables = 2 })
	m.must(m.sendPlan("a1", again.ID, m.poll("a1").Claims[0].Fence, text))
	again = m.operation(again.ID)
	require.Empty(t, again.Approvals)
	resp, err = m.write(bob, "operations/"+again.ID+"/approve", "plan_digest", op.PlanDigest)
	require.Contains(t, m.refused(wire.CodeConflict, resp, err).Reason, again.PlanDigest, "an older digest")
	require.Equal(t, wire.StateQueued, into[wire.Operation](m, m.must(m.approve(bob, again))).State)
}

// One rejection ends the operation, says who and why, and holds against approvals;
// what runs already can only be cancelled.
func TestApproval_Rejected(t *testing.T) {
	t.Parallel()
	m := newApprovalDesk(t, 1)
	waiting, queued, running := m.planned(), wire.Operation{}, wire.Operation{}
	for range 2 { // the second is the answer to a repeat
		after := into[wire.Operation](m, m.must(m.write(bob, "operations/"+waiting.ID+"/reject", "reason", "not during the sale")))
		require.Equal(t, wire.StateDenied, after.State)
	}
	m.restart()
	after := into[wire.Operation](m, m.must(m.read(alice, "operations/"+waiting.ID)))
	require.Equal(t, wire.CodeRejected, after.Result.Code)
	require.Equal(t, "rejected by bob: not during the sale", after.Result.Reason)
	require.Equal(t, &wire.Rejection{
		User: wire.User{EntityID: bob, Name: "bob"}, Time: m.clock.now(), PlanDigest: waiting.PlanDigest, Reason: "not during the sale",
	}, after.Rejection)
	resp, err := m.approve(carol, waiting)
	m.refused(wire.CodeConflict, resp, err)
	resp, err = m.write(carol, "operations/"+waiting.ID+"/reject", "reason", "me too")
	m.refused(wire.CodeConflict, resp, err)

	queued = m.planned()
	m.must(m.approve(bob, queued))
	m.must(m.write(carol, "operations/"+queued.ID+"/reject", "reason", "stop", "plan_digest", queued.PlanDigest))
	require.Empty(t, m.poll("a2").Claims)

	running = m.planned()
	m.must(m.approve(bob, running))
	require.Len(t, m.poll("a2").Claims, 1)
	resp, err = m.write(carol, "operations/"+running.ID+"/reject", "reason", "stop")
	m.refused(wire.CodeConflict, resp, err)
}

// An operation that ran meanwhile has put another database in the target's place:
// whoever approves, or asked, hears at once which one, and a target of another
// database is not concerned.
func TestApproval_TargetReplacedMeanwhile(t *testing.T) {
	t.Parallel()
	m := newApprovalDesk(t, 1, "targets", "staging,alias,elsewhere")
	first := m.planned()
	second := m.planned()
	queued := m.planned()
	m.must(m.approve(bob, queued))
	m.must(m.write(alice, "operations/"+queued.ID+"/cancel"))
	elsewhere := m.operation(m.cloneInto("elsewhere"))
	text, _ := planText(func(h *wire.ShapeHead, _ *wire.Estimates) { h.Target.Server = "1003" })
	m.must(m.sendPlan("a1", elsewhere.ID, m.poll("a1").Claims[0].Fence, text))
	elsewhere = m.operation(elsewhere.ID)
	m.plannedByAnotherName()
	waiting := m.waiting(bob)
	require.Len(t, waiting, 4)

	m.clock.pass(time.Minute)
	m.must(m.approve(bob, first))
	fence := m.poll("a2").Claims[0].Fence
	for _, side := range []string{"source", "target"} {
		m.must(m.work("a2", first.ID, "accounts/"+side, "fence", fence))
	}
	_, shape := planText()
	m.must(m.sendPlan("a2", first.ID, fence, shape))
	m.must(m.work("a2", first.ID, "finish", "fence", fence, "outcome", "succeeded"))
	m.settle()

	for _, id := range waiting {
		if id == first.ID {
			continue
		}
		_, err := m.approve(bob, m.operation(id))
		after := m.operation(id)
		if id == elsewhere.ID {
			require.NoError(t, err)
			require.Equal(t, wire.StateQueued, after.State)
			continue
		}
		require.Error(t, err, id)
		require.Equal(t, wire.CodePlanChanged, after.Result.Code)
		require.Contains(t, after.Result.Reason, first.ID)
	}
	require.Equal(t, wire.CodePlanChanged, m.operation(second.ID).Result.Code)

	// What is planned from then on runs.
	m.clock.pass(time.Minute)
	m.must(m.write(alice, "operations/"+elsewhere.ID+"/cancel"))
	op := m.planned()
	m.must(m.approve(bob, op))
	require.Equal(t, op.ID, m.poll("a2").Claims[0].OperationID)
}

// failedInPlanning is an operation whose agent found that it cannot be planned.
func (m *desk) failedInPlanning() {
	m.t.Helper()
	op := m.clone()
	fence := m.poll("a1").Claims[0].Fence
	m.must(m.work("a1", op.ID, "accounts/inspect/target", "fence", fence))
	m.must(m.work("a1", op.ID, "finish", "fence", fence, "outcome", "failed", "code", "unsupported"))
	m.settle()
}

// plannedByAnotherName is an operation that waits for approval, into the database
// behind staging under a name which nobody has used before.
func (m *desk) plannedByAnotherName() {
	m.t.Helper()
	id := m.cloneInto("alias")
	claims := m.poll("a1").Claims
	require.Len(m.t, claims, 1)
	require.Equal(m.t, id, claims[0].OperationID)
	text, _ := planText()
	require.Equal(m.t, wire.StateAwaitingApproval, into[wire.PlanResponse](m, m.must(m.sendPlan("a1", id, claims[0].Fence, text))).State)
}

// Approving what has changed meanwhile ends the operation instead: nobody shall
// wait for approvals that cannot count.
func TestApproval_OfWhatHasChanged(t *testing.T) {
	t.Parallel()
	m := newApprovalDesk(t, 2)
	op := m.planned()
	m.must(m.approve(bob, op))
	m.must(m.write("", "policies/dev", "max_rows", 1000))
	resp, err := m.approve(carol, op)
	m.refused(wire.CodePlanChanged, resp, err)
	after := m.operation(op.ID)
	require.Equal(t, wire.StateFailed, after.State)
	require.Equal(t, wire.CodePlanChanged, after.Result.Code)
	require.Len(t, after.Approvals, 1)
}

// An approval whose Put failed has not happened, and can be given again.
func TestApproval_FailedPut(t *testing.T) {
	t.Parallel()
	m := newApprovalDesk(t, 1)
	op := m.planned()
	storage := m.storage
	m.storage = &failingPut{Storage: storage}
	_, err := m.approve(bob, op)
	require.Error(t, err)
	m.storage = storage
	require.Equal(t, wire.StateAwaitingApproval, m.operation(op.ID).State)
	m.restart()
	require.Empty(t, m.operation(op.ID).Approvals)
	m.must(m.approve(bob, op))
	require.Equal(t, wire.StateQueued, m.operation(op.ID).State)
}

// failingPut is a storage that takes nothing.
type failingPut struct{ logical.Storage }

func (*failingPut) Put(context.Context, *logical.StorageEntry) error { return errors.New("disk full") }

// Records of before there were approvals read as they did, and their operations go
// on.
func TestApproval_OldRecords(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	const queued = `{"id":"op-00000000000000000000000001","kind":"clone","source":"prod","target":"staging","state":"queued",
		"requester":{"entity_id":"entity-alice","name":"alice"},"options":{"jobs":"2"},"created_at":"2026-11-24T11:59:00Z","updated_at":"2026-11-24T11:59:00Z",
		"decision":{"allowed":true,"policies":["dev"],"reason":"allowed by every matching policy"},"plan_digest":"sha256:1","shape_digest":"sha256:2",
		"content_digest":"sha256:3","fence_used":1,"agents":["a1"],"planning_attempts":1,"started_at":"2026-11-24T11:59:00Z","plan_fence":"1"}`
	done := strings.NewReplacer("0001", "0002", "queued", "succeeded").Replace(queued)
	for id, text := range map[string]string{"op-00000000000000000000000001": queued, "op-00000000000000000000000002": done} {
		require.NoError(t, m.storage.Put(context.Background(), &logical.StorageEntry{Key: prefixOperation + id, Value: []byte(text)}))
	}
	m.restart()
	require.Equal(t, wire.StateSucceeded, m.operation("op-00000000000000000000000002").State)
	op := m.operation("op-00000000000000000000000001")
	require.Equal(t, wire.StateQueued, op.State)
	require.Empty(t, op.Approvals)
	require.Empty(t, op.ApprovalNeeds)
	require.NoError(t, m.b.enforceDeadlines(context.Background(), m.storage))
	resp, err := m.write(bob, "operations/"+op.ID+"/approve", "plan_digest", "sha256:1")
	m.refused(wire.CodeNotFound, resp, err)
	// It was queued without pins: that is never given to an agent on trust.
	require.Empty(t, m.poll("a1").Claims)
	require.Equal(t, wire.CodePlanChanged, m.operation(op.ID).Result.Code)
}
