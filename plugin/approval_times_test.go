package plugin

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Approvals end with their time, wherever the operation is then, and one that
// nobody approves ends too.
func TestApproval_Expires(t *testing.T) {
	t.Parallel()
	m := newApprovalDesk(t, 2, "approvals_ttl", "30m")
	op := m.planned()
	m.must(m.approve(bob, op))
	m.clock.pass(20 * time.Minute)
	m.must(m.approve(carol, op))
	require.Equal(t, wire.StateQueued, m.operation(op.ID).State)
	m.clock.pass(10*time.Minute - time.Second)
	require.NoError(t, m.b.enforceDeadlines(context.Background(), m.storage))
	require.Equal(t, wire.StateQueued, m.operation(op.ID).State)
	m.clock.pass(time.Second)
	require.NoError(t, m.b.enforceDeadlines(context.Background(), m.storage))
	after := m.operation(op.ID)
	require.Equal(t, wire.StateAwaitingApproval, after.State)
	require.Equal(t, []string{"carol"}, after.ApprovalNeeds[0].By)
	require.Empty(t, m.poll("a1").Claims)
	require.Equal(t, []string{op.ID}, m.waiting(bob))
	m.must(m.approve(bob, op)) // once more
	after = m.operation(op.ID)
	require.Equal(t, wire.StateQueued, after.State)
	require.Len(t, after.Approvals, 2)

	// A poll finds what the watcher has not looked at yet.
	m.clock.pass(20 * time.Minute)
	require.Empty(t, m.poll("a1").Claims)
	require.Equal(t, wire.StateAwaitingApproval, m.operation(op.ID).State)

	// All in all a day, also over restarts.
	m.clock.pass(23*time.Hour + 10*time.Minute - time.Second)
	m.restart()
	require.NoError(t, m.b.enforceDeadlines(context.Background(), m.storage))
	require.Equal(t, wire.StateAwaitingApproval, m.operation(op.ID).State)
	m.clock.pass(2 * time.Second)
	require.NoError(t, m.b.enforceDeadlines(context.Background(), m.storage))
	after = m.operation(op.ID)
	require.Equal(t, wire.StateExpired, after.State)
	require.Equal(t, wire.CodeExpired, after.Result.Code)
	resp, err := m.approve(carol, op)
	m.refused(wire.CodeConflict, resp, err)
}

// What is approved outside of allowed_hours, or is still queued when they end, waits
// until they begin and says when; from then on it waits for an agent as long as any
// other, and not until they begin again.
func TestApproval_WaitsForHours(t *testing.T) {
	t.Parallel()
	enforce := func(m *desk) { require.NoError(t, m.b.enforceDeadlines(context.Background(), m.storage)) }
	opens := time.Date(2026, 11, 25, 8, 0, 0, 0, time.UTC)
	for name, approvedAt := range map[string]time.Duration{"approved outside": 2 * time.Hour, "hours end while queued": 30 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newApprovalDesk(t, 1, "allowed_hours", "08:00-13:00") // it is Tuesday, 12:00
			op := m.planned()
			m.clock.pass(approvedAt)
			after := into[wire.Operation](m, m.must(m.approve(bob, op)))
			require.Equal(t, wire.StateQueued, after.State)
			if approvedAt > time.Hour {
				require.Equal(t, opens, after.NotBefore, "the answer says when")
			} else {
				require.Zero(t, after.NotBefore)
			}
			m.clock.pass(2*time.Hour - approvedAt)
			require.Empty(t, m.poll("a1").Claims)
			enforce(m)
			require.Equal(t, opens, m.operation(op.ID).NotBefore)
			m.restart()
			m.clock.pass(10 * time.Hour)
			enforce(m)
			require.Empty(t, m.poll("a1").Claims)
			after = m.operation(op.ID)
			require.Equal(t, wire.StateQueued, after.State)
			require.Equal(t, opens, after.NotBefore)

			m.clock.pass(opens.Sub(m.clock.now()) + maxWait)
			enforce(m)
			after = m.operation(op.ID)
			require.Equal(t, wire.StateQueued, after.State)
			require.Zero(t, after.NotBefore, "it may run now")
			if name == "approved outside" {
				require.Equal(t, wire.PhaseRunning, m.poll("a1").Claims[0].Phase)
				return
			}
			m.clock.pass(time.Second)
			enforce(m)
			after = m.operation(op.ID)
			require.Equal(t, wire.StateExpired, after.State)
			require.Contains(t, after.Result.Reason, "no agent took it in time")
		})
	}

	// Of several policies all must be open.
	m := newApprovalDesk(t, 1, "allowed_hours", "08:00-13:00")
	m.must(m.write("", "policies/more", "entities", "*", "sources", "*", "targets", "*", "allowed_operations", "*", "max_operations_per_hour", 0,
		"allowed_hours", "12:00-12:10"))
	op := m.planned()
	m.clock.pass(5 * time.Minute)
	require.Equal(t, wire.StateQueued, into[wire.Operation](m, m.must(m.approve(bob, op))).State)
	m.clock.pass(maxWait + time.Second)
	enforce(m)
	require.Equal(t, time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC), m.operation(op.ID).NotBefore)
}

// Hours of a policy that is written or changed after the plan end what waits when an
// agent would have taken it, or somebody approves it, and not only when they begin: the
// plan was decided on without them. Of a policy that speaks about others they do not.
func TestApproval_HoursOfALaterPolicy(t *testing.T) {
	t.Parallel()
	for name, write := range map[string]func(m *desk, hours string){
		"written": func(m *desk, hours string) {
			m.must(m.write("", "policies/later", "entities", "*", "sources", "*", "targets", "*", "allowed_operations", "*",
				"max_operations_per_hour", 0, "allowed_hours", hours))
		},
		"changed": func(m *desk, hours string) { m.must(m.write("", "policies/dev", "allowed_hours", hours)) },
	} {
		for when, hours := range map[string]string{"later": "15:00-16:00", "now": "08:00-14:00"} {
			t.Run(name+", "+when, func(t *testing.T) {
				t.Parallel()
				m := newApprovalDesk(t, 1, "allowed_hours", "08:00-13:00") // it is Tuesday, 12:00
				m.must(m.write("", "policies/others", "entities", "somebody", "sources", "*", "targets", "*", "allowed_operations", "*", "allowed_hours", "00:00-00:01"))
				approved, open := m.planned(), m.planned()
				m.must(m.approve(bob, approved))
				write(m, hours)
				require.Empty(t, m.poll("a1").Claims)
				after := m.operation(approved.ID)
				require.Equal(t, wire.StateFailed, after.State)
				require.Equal(t, wire.CodePlanChanged, after.Result.Code)
				resp, err := m.approve(bob, open)
				m.refused(wire.CodePlanChanged, resp, err)
				require.Equal(t, wire.StateFailed, m.operation(open.ID).State)
			})
		}
	}
	t.Run("of others", func(t *testing.T) {
		t.Parallel()
		m := newApprovalDesk(t, 1, "allowed_hours", "08:00-13:00")
		op := m.planned()
		m.must(m.approve(bob, op))
		m.must(m.write("", "policies/others", "entities", "somebody", "sources", "*", "targets", "*", "allowed_operations", "*", "allowed_hours", "00:00-00:01"))
		m.clock.pass(2 * time.Hour)
		require.Empty(t, m.poll("a1").Claims)
		require.Equal(t, wire.StateQueued, m.operation(op.ID).State)
	})
}

// What is queued when allowed_hours are changed to hours that never meet expires with
// the policies that have them, not with a question after agents.
func TestApproval_HoursThatNeverMeet(t *testing.T) {
	t.Parallel()
	m := newApprovalDesk(t, 1, "allowed_hours", "08:00-13:00") // it is Tuesday, 12:00
	for name, hours := range map[string]string{"always": "", "lunch": "12:00-12:10"} {
		m.must(m.write("", "policies/"+name, "entities", "*", "sources", "*", "targets", "*", "allowed_operations", "*", "max_operations_per_hour", 0,
			"allowed_hours", hours))
	}
	op := m.planned()
	m.must(m.approve(bob, op))
	m.must(m.write("", "policies/lunch", "allowed_hours", "14:00-15:00"))
	m.clock.pass(maxWait + time.Second)
	require.NoError(t, m.b.enforceDeadlines(context.Background(), m.storage))
	after := m.operation(op.ID)
	require.Equal(t, wire.StateExpired, after.State)
	require.Equal(t, wire.Result{
		Code: wire.CodeExpired, Reason: "within two weeks there is no time at which allowed_hours of policies dev, lunch let it run",
		Hint: "change them so that they have a time in common, then ask again",
	}, *after.Result)
}
