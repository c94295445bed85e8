package plugin

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/hashicorp/vault/sdk/helper/locksutil"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// interrupted is a storage where something happens at the first write of a key, once:
// before it, and instead of it when that answers an error.
type interrupted struct {
	logical.Storage
	key     func(key string) bool
	happens func() error
}

func (s *interrupted) Put(ctx context.Context, entry *logical.StorageEntry) error {
	if happens := s.happens; happens != nil && s.key(entry.Key) {
		s.happens = nil
		if err := happens(); err != nil {
			return err
		}
	}
	return s.Storage.Put(ctx, entry)
}

// onWrite lets something happen at the next write of a chunk or a head below prefix.
func (m *desk) onWrite(prefix string, head bool, happens func() error) {
	m.storage = &interrupted{
		Storage: m.storage, happens: happens,
		key: func(key string) bool {
			return strings.HasPrefix(key, prefix) && strings.HasSuffix(key, "/head") == head
		},
	}
}

// free tells that nobody holds the lock of an operation.
func (m *desk) free(id string) {
	m.t.Helper()
	lock := locksutil.LockForKey(m.b.ops.inner, id)
	require.True(m.t, lock.TryLock(), "operations that share its lock wait")
	lock.Unlock()
}

// oneText checks that below prefix nothing is but one text.
func (m *desk) oneText(prefix, id string) {
	m.t.Helper()
	head, err := getStored[textHead](m.t.Context(), m.storage, prefix+id+"/head")
	require.NoError(m.t, err)
	require.NotNil(m.t, head)
	require.Len(m.t, m.keys(prefix+id), 1+head.Chunks)
}

// Plans and reports are large. While they are written no other operation waits, and the
// one they belong to can be cancelled.
func TestText_NobodyWaitsForAWrite(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	op := m.clone()
	m.poll("a1")
	m.onWrite(prefixPlan, false, func() error {
		m.free(op.ID)
		return nil
	})
	text, shape := planText()
	answer := into[wire.PlanResponse](m, m.must(m.sendPlan("a1", op.ID, "1", text)))
	require.Equal(t, wire.StateRunning, answer.State)
	fence := answer.Claim.Fence
	m.must(m.sendPlan("a1", op.ID, fence, shape))
	m.onWrite(prefixReport, false, func() error {
		m.free(op.ID)
		m.must(m.write(alice, "operations/"+op.ID+"/cancel"))
		return nil
	})
	resp, err := m.work("a1", op.ID, "finish", "fence", fence, "outcome", "succeeded", "report", `{"rows":"1"}`)
	m.refused(wire.CodeConflict, resp, err)
	require.Empty(t, m.keys(prefixReport+op.ID), "a finish that is refused leaves nothing")
	m.must(m.work("a1", op.ID, "finish", "fence", fence, "outcome", "cancelled", "report", `{"rows":"2"}`))
	m.oneText(prefixReport, op.ID)
	m.settle()
	require.Equal(t, `{"rows":"2"}`, m.must(m.read(alice, "operations/"+op.ID+"/report"))["text"])
}

// An agent that loses its claim while its plan is written replaces nothing of the plan
// of its successor, and leaves nothing behind.
func TestText_PlanOfAClaimLostWhileWritten(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	op := m.clone()
	m.poll("a1")
	theirs, _ := planText(func(h *wire.ShapeHead, _ *wire.Estimates) { h.Why = "of the second" })
	m.onWrite(prefixPlan, false, func() error {
		m.free(op.ID)
		m.clock.pass(2 * defaultGrace)
		m.settle()
		claims := m.poll("a2").Claims
		require.Len(t, claims, 1)
		m.must(m.sendPlan("a2", op.ID, claims[0].Fence, theirs))
		return nil
	})
	late, _ := planText()
	resp, err := m.sendPlan("a1", op.ID, "1", late)
	m.refused(wire.CodeStaleClaim, resp, err)
	require.Equal(t, storedPlan(theirs), m.readPlanOf(op.ID))
	require.Equal(t, wire.Digest([]byte(storedPlan(theirs))), m.operation(op.ID).PlanDigest)
	m.oneText(prefixPlan, op.ID)
}

// The plan of one claim that comes twice at once, the second time with other logins
// behind it, is the one that was decided on and pinned.
func TestText_PlanTwiceAtOnce(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	op := m.clone()
	m.poll("a1")
	text, _ := planText()
	m.onWrite(prefixPlan, false, func() error {
		m.free(op.ID)
		m.db.grant("w", "GRANT ALL")
		m.must(m.sendPlan("a1", op.ID, "1", text))
		return nil
	})
	resp, err := m.sendPlan("a1", op.ID, "1", text)
	m.refused(wire.CodeStaleClaim, resp, err)
	read := m.readPlanOf(op.ID)
	require.Contains(t, read, "GRANT ALL")
	require.Equal(t, wire.Digest([]byte(read)), m.operation(op.ID).PlanDigest)
	m.oneText(prefixPlan, op.ID)
}

// A plan counts when it is whole. Killed at any write of it, there is none, another agent
// plans anew, and of the first one nothing is left.
func TestText_KilledWhileAPlanIsWritten(t *testing.T) {
	t.Parallel()
	for _, head := range []bool{false, true} {
		m := newDesk(t)
		op := m.clone()
		m.poll("a1")
		m.onWrite(prefixPlan, head, func() error {
			m.process.kill()
			return errKilled
		})
		text, _ := planText(func(h *wire.ShapeHead, _ *wire.Estimates) { h.Why = "of the first" })
		_, err := m.sendPlan("a1", op.ID, "1", text)
		require.Error(t, err)
		m.restart()
		require.Equal(t, wire.StatePlanning, m.operation(op.ID).State)
		resp, err := m.read(alice, "operations/"+op.ID+"/plan")
		m.refused(wire.CodeNotFound, resp, err)
		m.clock.pass(2 * defaultGrace)
		m.settle()
		claims := m.poll("a2").Claims
		require.Len(t, claims, 1)
		text, _ = planText()
		m.must(m.sendPlan("a2", op.ID, claims[0].Fence, text))
		require.Equal(t, storedPlan(text), m.readPlanOf(op.ID))
		m.oneText(prefixPlan, op.ID)
	}
}

// A storage that fails leaves nothing of a plan, and the same claim sends it again. Where
// its head may have been written, its chunks stay until a plan is accepted.
func TestText_StorageFailsWhileAPlanIsWritten(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	op := m.clone()
	m.poll("a1")
	text, _ := planText()
	for _, head := range []bool{false, true} {
		m.onWrite(prefixPlan, head, func() error { return errors.New("disk full") })
		_, err := m.sendPlan("a1", op.ID, "1", text)
		require.ErrorContains(t, err, "internal")
		require.Equal(t, head, len(m.keys(prefixPlan+op.ID)) > 0)
	}
	require.Equal(t, "running", m.must(m.sendPlan("a1", op.ID, "1", text))["state"])
	require.Equal(t, storedPlan(text), m.readPlanOf(op.ID))
	m.oneText(prefixPlan, op.ID)
}
