package plugin

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/helper/locksutil"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// soon fails the test when f does not come back, which a deadlock or work without
// bounds would never do.
func soon(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatalf("%s does not end", what)
	}
}

// Locks are shared by names. No name of an agent may share the one that is taken
// within its own: its first claim would wait for itself, and every agent for it.
func TestPoll_NameThatSharesALock(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	name := ""
	for n := 0; name == ""; n++ {
		candidate := fmt.Sprintf("db-host-%d", n)
		if locksutil.LockForKey(m.b.ops.outer, prefixAgent+candidate) == locksutil.LockForKey(m.b.ops.outer, "claims") {
			name = candidate
		}
	}
	entity := "entity-" + name
	m.system.add(&logical.Entity{ID: entity, Name: entity, Aliases: []*logical.Alias{{MountAccessor: approle, Metadata: map[string]string{"role_name": name}}}})
	m.must(m.write("", "agents/"+name, "accessor", approle))
	op := m.clone()
	var polled wire.PollResponse
	soon(t, "the poll of agent "+name, func() { polled = m.poll(name) })
	require.Equal(t, op.ID, polled.Claims[0].OperationID)
}

// The same part at the same time, many times over, is one part: a text is never
// taken for whole while another part of it is missing.
func TestTextParts_TheSamePartAtOnce(t *testing.T) {
	t.Parallel()
	for range 30000 {
		parts := &textParts{parts: make([]*string, 2)}
		start := make(chan struct{})
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				<-start
				_, whole, err := parts.add(0, "x")
				if whole || err != nil {
					t.Errorf("whole %t, %v", whole, err)
				}
			})
		}
		close(start)
		all.Wait()
	}
}

// What an agent writes into the audit log is an event and nothing else: no text
// before, behind or between, no field twice, and nobody else's name.
func TestEvents_NothingBesideTheEvent(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	id, _ := m.running()
	op := m.operation(id)
	good := (&testChain{agent: "a1", epoch: 1}).event(op)
	for name, text := range map[string]string{
		"behind a bracket":      good + "] secret-row",
		"behind a brace":        good + "} secret-row",
		"blanks":                " " + good,
		"a line":                good + "\n",
		"a field twice":         strings.Replace(good, `"agent":"a1"`, `"agent":"secret-row","agent":"a1"`, 1),
		"a field's other case":  strings.Replace(good, `"agent":"a1"`, `"Agent":"secret-row","agent":"a1"`, 1),
		"another order":         strings.Replace(strings.Replace(good, `"v":1,`, "", 1), `}`, `,"v":1}`, 1),
		"an escape":             strings.Replace(good, `"agent":"a1"`, `"agent":"\u00611"`, 1),
		"the name of another":   (&testChain{agent: "a1", epoch: 1}).event(op, func(e *wire.Event) { e.User.Name = "bob" }),
		"a field that is null":  strings.Replace(good, `"prev":""`, `"prev":null`, 1),
		"an empty field, spelt": strings.Replace(good, `"prev":""`, `"detail":"","prev":""`, 1),
	} {
		resp, err := m.events("a1", id, text)
		require.Error(t, err, name)
		e := m.refused(wire.CodeInvalid, resp, err)
		require.Equal(t, wire.EventsKey, e.Field, name)
		require.NotContains(t, err.Error(), "secret-row", name)
	}
	resp, err := m.work("a1", id, "events", wire.EventsKey, good) // no list
	m.refused(wire.CodeInvalid, resp, err)
	m.must(m.work("a1", id, "events", wire.EventsKey, []any{good})) // as Vault hands it on
}

// A plan that arrives while its agent loses the claim replaces nothing of the plan
// that its successor sends.
func TestPlan_OfALostClaim(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	op := m.clone()
	m.poll("a1")
	theirs, _ := planText(func(h *wire.ShapeHead, _ *wire.Estimates) { h.Why = "of the second" })
	m.system.onNextLook(alice, func() {
		m.clock.pass(2 * defaultGrace)
		m.settle()
		claims := m.poll("a2").Claims
		require.Len(t, claims, 1)
		m.must(m.sendPlan("a2", op.ID, claims[0].Fence, theirs))
	})
	late, _ := planText()
	resp, err := m.sendPlan("a1", op.ID, "1", late)
	m.refused(wire.CodeStaleClaim, resp, err)
	require.Equal(t, wire.Digest([]byte(storedPlan(theirs))), m.operation(op.ID).PlanDigest)
	require.Equal(t, storedPlan(theirs), m.must(m.read(alice, "operations/"+op.ID+"/plan"))["text"])
}

// A finish that is refused leaves no report behind.
func TestFinish_RefusedReport(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	id, fence := m.running()
	resp, err := m.work("a1", id, "finish", "fence", fence, "outcome", "cancelled", "report", `{"rows":"1"}`)
	m.refused(wire.CodeConflict, resp, err)
	m.must(m.work("a1", id, "finish", "fence", fence, "outcome", "failed", "code", "engine"))
	resp, err = m.read(alice, "operations/"+id+"/report")
	m.refused(wire.CodeNotFound, resp, err)
}

// A connection that is pointed elsewhere between the look at the ground and the
// account gets no account.
func TestAccounts_RepointedMeanwhile(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(m *desk){
		"config": func(m *desk) {
			m.db.connect("staging", "another", wire.Endpoint{Engine: wire.EnginePostgres, Host: "somewhere-else", Port: 5432, Database: "shop", SSLMode: "verify-full"})
		},
		"purposes": func(m *desk) { m.must(m.write("", "connections/staging", "purposes", "inspect=i,write=superuser")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newDesk(t)
			op := m.clone()
			m.poll("a1")
			text, _ := planText()
			answer := into[wire.PlanResponse](m, m.must(m.sendPlan("a1", op.ID, "1", text)))
			changed := false
			m.system.onNextLook(alice, func() {
				change(m)
				changed = true
			})
			resp, err := m.work("a1", op.ID, "accounts/target", "fence", answer.Claim.Fence)
			m.refused(wire.CodePlanChanged, resp, err)
			require.True(t, changed)
			require.Empty(t, m.db.openAccounts())
			require.Equal(t, wire.StateFailed, m.operation(op.ID).State)
		})
	}
}

// What an agent tells of its progress is shown to others: only what is progress,
// and no more than fits.
func TestPoll_Progress(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	id, fence := m.running()
	long := strings.Repeat("t", 1<<20)
	progress := fmt.Sprintf(`{"operation_id":%q,"step":"secret-row","table":%q,"rows":5}`, id, long+" jane@example.com")
	m.must(m.write(agentOne, "agents/a1/poll", "version", 1, "boot", long, "held", []string{id + ":" + fence}, "audit_devices", long, "progress", []string{progress}))
	for _, path := range []string{"operations/" + id, "all/operations/" + id} {
		shown := m.must(m.read(alice, path))
		require.Less(t, len(fmt.Sprint(shown)), 1<<14)
		require.NotContains(t, fmt.Sprint(shown), "secret-row")
	}
	require.Less(t, len(fmt.Sprint(m.must(m.read("", "agents/a1")))), 1<<14)
}

// Text without end, made so that looking for what is personal in it takes longest,
// is refused before it is looked at.
func TestFreeText_TooLong(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.must(m.write("", "policies/dev", "entities", alice, "sources", "prod", "targets", "staging", "allowed_operations", "clone",
		"approvals_count", 1, "approvals_groups", "group-ops"))
	op := m.clone()
	m.poll("a1")
	text, _ := planText()
	m.must(m.sendPlan("a1", op.ID, "1", text))
	digest := m.operation(op.ID).PlanDigest
	for name, long := range map[string]string{
		"local part": strings.Repeat(".", 1<<20) + "@a.bc=",
		"chain":      strings.Repeat("(212) 555-1234(030) 1234-5678", 1<<15),
	} {
		for path, fields := range map[string][]any{
			"clone/prod/staging":               {"reason", long},
			"operations/" + op.ID + "/approve": {"comment", long, "plan_digest", digest},
			"operations/" + op.ID + "/reject":  {"reason", long},
			"lockdown":                         {"reason", long},
			"unlock":                           {"reason", long},
		} {
			entity := bob
			if strings.HasPrefix(path, "clone") {
				entity = alice
			}
			soon(t, path+" with a long "+name, func() {
				resp, err := m.write(entity, path, fields...)
				m.refused(wire.CodeInvalid, resp, err)
			})
		}
		soon(t, "a search for "+name, func() {
			_, err := m.read(alice, "operations", "state", long)
			require.Error(t, err)
			require.Less(t, len(err.Error()), 1<<14)
		})
	}
}

// Wherever a long refusal is cut, no part of an address is left of it.
func TestWithoutPersonal_Cut(t *testing.T) {
	t.Parallel()
	const address = "jane@example.com"
	for before := longestRefusal - len(address); before <= longestRefusal; before++ {
		text := strings.Repeat("x", before-1) + " " + address + " and more"
		clean := withoutPersonal(&wire.Error{Reason: text, Hint: text})
		for _, text := range []string{clean.Reason, clean.Hint} {
			require.NotContains(t, text, "jane", "%d bytes before", before)
			require.LessOrEqual(t, len(text), longestRefusal+len("…"))
		}
	}
	long := withoutPersonal(&wire.Error{Reason: "it has " + strings.Repeat("x", longestRefusal)})
	require.Equal(t, "it has …", long.Reason)
	whole := strings.Repeat("x", longestRefusal)
	require.Equal(t, whole, withoutPersonal(&wire.Error{Reason: whole}).Reason)
}

// An agent that takes what is to be cleaned, has a login for it and falls silent, or
// holds the claim for ever, gets no more logins on the target than one that says that it
// failed: in the end a person has to look.
func TestCleanup_OfASilentAgentEnds(t *testing.T) {
	t.Parallel()
	for name, silent := range map[string]func(m *desk, id, fence string){
		"falls silent": func(m *desk, _, _ string) { m.clock.pass(2 * defaultGrace) },
		"never ends": func(m *desk, id, fence string) {
			for range 5*60 + 1 {
				m.clock.pass(50 * time.Second)
				if len(m.poll("a1", id+":"+fence).Drop) > 0 {
					return
				}
				require.NoError(m.t, m.b.enforceDeadlines(t.Context(), m.storage))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newDesk(t)
			id, fence := m.running()
			m.fails(id, fence)
			claims := 0
			for range 3 * maxCleanupAttempts {
				m.settle()
				m.clock.pass(10 * time.Minute)
				for _, claim := range m.poll("a1").Claims {
					claims++
					require.Equal(t, wire.PhaseCleanup, claim.Phase)
					m.must(m.work("a1", id, "accounts/target", "fence", claim.Fence))
					silent(m, id, claim.Fence)
				}
			}
			require.Equal(t, maxCleanupAttempts, claims)
			m.settle()
			m.settle()
			require.Empty(t, m.db.openAccounts())
			require.Equal(t, "failed", m.must(m.read("", "all/operations/"+id))["cleanup"])
			require.Equal(t, "failed", m.receipt(id).Predicate.Attested.End.Cleanup)
		})
	}
}

// What an agent says of a server is compared with what the server tells Vault: a server
// by another name would have other policies. Nothing of it is believed for later.
func TestPlan_OfAnotherServerThanVaultSees(t *testing.T) {
	t.Parallel()
	for _, side := range []string{"prod", "staging"} {
		m := newDesk(t)
		op := m.clone()
		fence := m.poll("a1").Claims[0].Fence
		m.db.identify(side, wire.ServerIdentity{Engine: wire.EnginePostgres, Server: "6666", Database: "shop"})
		text, _ := planText()
		answer := into[wire.PlanResponse](m, m.must(m.sendPlan("a1", op.ID, fence, text)))
		require.Equal(t, wire.StateDenied, answer.State)
		require.Contains(t, answer.Decision.Reason, side)
		require.Nil(t, m.must(m.read("", "connections/"+side))["identity"])
	}
}

// An agent that tells of a switch before the shape was confirmed has switched nothing:
// people can still cancel, and falling silent makes no success of it.
func TestEvents_SwitchOfNothing(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	op := m.clone()
	fence := m.poll("a1").Claims[0].Fence
	text, _ := planText()
	fence = into[wire.PlanResponse](m, m.must(m.sendPlan("a1", op.ID, fence, text))).Claim.Fence
	m.must(m.work("a1", op.ID, "accounts/target", "fence", fence))
	chain := &testChain{agent: "a1", epoch: 1}
	m.must(m.events("a1", op.ID, chain.event(m.operation(op.ID), step(wire.EventStepFinished, wire.StepSwitch, "success"))))
	require.Equal(t, true, m.must(m.write(alice, "operations/"+op.ID+"/cancel"))["cancel_requested"])
	m.clock.pass(2 * defaultGrace)
	m.settle()
	require.Equal(t, wire.StateFailed, m.operation(op.ID).State)
	require.Equal(t, wire.CodeAgentLost, m.operation(op.ID).Result.Code)
}
