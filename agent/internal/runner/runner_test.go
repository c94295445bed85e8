package runner_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// An operation goes through planning and running with one sandbox, and every
// step stands in the record in order.
func TestRunner_PlansAndRuns(t *testing.T) {
	t.Parallel()
	v := newFakeVault(t)
	h := prepared(t, v)
	boxes := 0
	h.onStart = func(sandbox.Spec) error { boxes++; return nil }
	h.start(t)
	settled(t, h, v, wire.StateSucceeded, "")
	require.Equal(t, 1, boxes, "one sandbox serves both phases")
	finish := get(v, func(v *fakeVault) wire.FinishRequest { return *v.finish })
	require.Equal(t, []string{"3", "30", "1"}, []string{finish.Rows, finish.Bytes, finish.Tables})
	head := reported(t, finish)
	require.Regexp(t, "^sha256:[0-9a-f]{64}$", head.TablesRoot)
	var steps []string
	for _, e := range get(v, func(v *fakeVault) []wire.Event { return v.delivered }) {
		require.Equal(t, "alice", e.User.Name)
		if e.EventType == wire.EventStepFinished {
			steps = append(steps, string(e.Phase))
		}
	}
	joined := strings.Join(steps, " ")
	require.Contains(t, joined, "inspect plan accounts snapshot stage copy verify switch drop_old revoke")
	for _, secret := range []string{"hunter2"} {
		require.NotContains(t, disk(t, h), secret, "no password on a disk")
	}
}

// reported is what a finish tells for the receipt: where the work ran, and that
// somebody looked at the audit devices.
func reported(t *testing.T, finish wire.FinishRequest) wire.ReportHead {
	t.Helper()
	var head wire.ReportHead
	require.NoError(t, json.Unmarshal([]byte(finish.Report), &head))
	require.Equal(t, &wire.SandboxFacts{WorkerImageID: "sha256:fake-worker", BaseImageID: "sha256:fake-base", Runtime: "fake"}, head.Sandbox)
	require.NotNil(t, head.Audit)
	require.Positive(t, head.Audit.Devices)
	require.WithinDuration(t, time.Now(), head.Audit.CheckedAt, time.Minute)
	return head
}

// With a pause for approval, running starts anew, with the plan made again.
func TestRunner_RunsAfterApproval(t *testing.T) {
	t.Parallel()
	v := newFakeVault(t)
	v.autoRun = false
	h := prepared(t, v)
	h.start(t)
	settled(t, h, v, wire.StateSucceeded, "")
}

// Each answer can be lost once, and each request fail once, without harm.
func TestRunner_EveryRequestFailsOnce(t *testing.T) {
	t.Parallel()
	for name, after := range map[string]bool{"before": false, "after": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newFakeVault(t)
			failed := map[string]bool{}
			v.fault = func(path string, _ []byte) (int, int) {
				if failed[path] {
					return 0, 0
				}
				failed[path] = true
				if after {
					return 0, http.StatusInternalServerError
				}
				return http.StatusServiceUnavailable, 0
			}
			h := prepared(t, v)
			h.start(t)
			settled(t, h, v, wire.StateSucceeded, "")
			require.Len(t, failed, 11, "every kind of request was made")
		})
	}
}

// An error of the engine at any step ends as failed with its code, and the
// target is cleaned.
func TestRunner_EngineFails(t *testing.T) {
	t.Parallel()
	for _, step := range []wire.Step{wire.StepSnapshot, wire.StepStage, wire.StepCopy, wire.StepVerify, wire.StepSwitch} {
		t.Run(string(step), func(t *testing.T) {
			t.Parallel()
			v := newFakeVault(t)
			h := prepared(t, v)
			h.engine.at = failsAt(step, &operation.Error{Code: wire.CodeDiskFull, Reason: "no space", Hint: "make some"})
			h.start(t)
			settled(t, h, v, wire.StateFailed, wire.CodeDiskFull)
			finish := get(v, func(v *fakeVault) wire.FinishRequest { return *v.finish })
			require.Equal(t, step, finish.Step)
			require.Equal(t, "make some", finish.Hint)
			require.Empty(t, reported(t, finish).TablesRoot, "nothing was verified to the end")
		})
	}
}

// A failure after the switch is none of the copy: it is in place and verified.
func TestRunner_FailsAfterSwitch(t *testing.T) {
	t.Parallel()
	v := newFakeVault(t)
	h := prepared(t, v)
	h.engine.at = failsAt(wire.StepDropOld, &operation.Error{Code: wire.CodeEngine, Reason: "cannot drop"})
	h.start(t)
	settled(t, h, v, wire.StateSucceeded, "")
	require.Equal(t, "3", get(v, func(v *fakeVault) string { return v.finish.Rows }), "the report is that of the journal")
}

// Reasons to stop while the engine copies.
func TestRunner_StopsWhileCopying(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before func(v *fakeVault)
		during func(v *fakeVault)
		state  wire.State
		code   wire.Code
	}{
		"cancel":   {during: func(v *fakeVault) { v.cancel = true }, state: wire.StateCancelled, code: wire.CodeCancelled},
		"deadline": {before: func(v *fakeVault) { v.maxMS = 700 }, state: wire.StateFailed, code: wire.CodeDeadline},
		"lease revoked": {
			before: func(v *fakeVault) { v.ttl = 1000 }, during: func(v *fakeVault) { clear(v.leases) },
			state: wire.StateFailed, code: wire.CodeLeaseLost,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newFakeVault(t)
			if c.before != nil {
				c.before(v)
			}
			h := prepared(t, v)
			h.engine.at = staysAt(wire.StepCopy, func() {
				if c.during != nil {
					v.set(c.during)
				}
			})
			h.start(t)
			settled(t, h, v, c.state, c.code)
		})
	}
}

// A claim that went to somebody else ends at once, without a word about the
// operation: no finish, no giving back of accounts that are not ours any more.
func TestRunner_ClaimLost(t *testing.T) {
	t.Parallel()
	v := newFakeVault(t)
	h := prepared(t, v)
	h.engine.at = staysAt(wire.StepCopy, func() { v.set(func(v *fakeVault) { v.dropped = true }) })
	h.start(t)
	require.Eventually(t, func() bool { return get(v, func(v *fakeVault) bool { return v.dropped && len(v.held) == 0 }) }, 20*time.Second, 5*time.Millisecond)
	nothingLeft(t, h)
	require.Zero(t, get(v, func(v *fakeVault) int { return v.finishes }))
}

// Vault is away while rows are copied; the operation goes on and its events
// follow.
func TestRunner_VaultOutageWhileCopying(t *testing.T) {
	t.Parallel()
	v := newFakeVault(t)
	h := prepared(t, v)
	h.engine.at = func(_ context.Context, at wire.Step) error {
		switch at {
		case wire.StepStage:
			v.set(func(v *fakeVault) { v.down = true })
		case wire.StepVerify:
			<-time.After(300 * time.Millisecond)
			v.set(func(v *fakeVault) { v.down = false })
		default:
		}
		return nil
	}
	h.start(t)
	settled(t, h, v, wire.StateSucceeded, "")
}

// Vault is away longer than the accounts live: the operation stops, and ends as
// soon as Vault is back.
func TestRunner_VaultOutageLongerThanAccounts(t *testing.T) {
	t.Parallel()
	v := newFakeVault(t)
	v.ttl = 1000
	h := prepared(t, v)
	h.engine.at = func(ctx context.Context, at wire.Step) error {
		if at != wire.StepCopy {
			return nil
		}
		v.set(func(v *fakeVault) { v.down = true })
		<-ctx.Done()
		v.set(func(v *fakeVault) { v.down = false })
		return ctx.Err()
	}
	h.start(t)
	settled(t, h, v, wire.StateFailed, wire.CodeLeaseLost)
}

// Without an audit device no operation is taken; with one it is.
func TestRunner_WaitsForAuditDevice(t *testing.T) {
	t.Parallel()
	v := newFakeVault(t)
	v.devices = 0
	h := prepared(t, v)
	h.start(t)
	require.Eventually(t, func() bool { return get(v, func(v *fakeVault) int { return v.polls }) > 5 }, 30*time.Second, 5*time.Millisecond)
	require.Equal(t, wire.StateRequested, get(v, func(v *fakeVault) wire.State { return v.state }))
	v.set(func(v *fakeVault) { v.devices = 1 })
	settled(t, h, v, wire.StateSucceeded, "")
}

// A device that is disabled before the switch keeps the target as it was.
func TestRunner_AuditDeviceGoneBeforeSwitch(t *testing.T) {
	t.Parallel()
	v := newFakeVault(t)
	h := prepared(t, v)
	h.engine.at = func(_ context.Context, at wire.Step) error {
		if at == wire.StepVerify {
			v.set(func(v *fakeVault) { v.devices = 0 })
		}
		return nil
	}
	h.limits.Flush = 200 * time.Millisecond
	h.start(t)
	require.Eventually(t, func() bool { return get(v, func(v *fakeVault) bool { return v.finishes > 0 }) }, 20*time.Second, 5*time.Millisecond)
	require.Empty(t, finished(v), "events wait for a device")
	v.set(func(v *fakeVault) { v.devices = 1 })
	settled(t, h, v, wire.StateFailed, wire.CodeAuditUnavailable)
}

// A source that changed between plan and run is not copied.
func TestRunner_PlanChanged(t *testing.T) {
	t.Parallel()
	v := newFakeVault(t)
	v.changed = true
	h := prepared(t, v)
	h.start(t)
	settled(t, h, v, wire.StateFailed, wire.CodePlanChanged)
}

// A sandbox that does not start fails the operation; accounts leased meanwhile
// are given back.
func TestRunner_SandboxDoesNotStart(t *testing.T) {
	t.Parallel()
	v := newFakeVault(t)
	h := prepared(t, v)
	h.onStart = func(sandbox.Spec) error { return errors.New("no space left") }
	h.start(t)
	settled(t, h, v, wire.StateFailed, wire.CodeSandbox)
}

// SIGTERM ends what runs, cleans up and tells.
func TestRunner_StopsGracefully(t *testing.T) {
	t.Parallel()
	v := newFakeVault(t)
	h := prepared(t, v)
	copying := make(chan struct{})
	h.engine.at = staysAt(wire.StepCopy, func() { close(copying) })
	stop := h.start(t)
	<-copying
	stop()
	settled(t, h, v, wire.StateFailed, wire.CodeAgentRestarted)
}

// What cannot be cleaned is told, so that a cleanup claim follows.
func TestRunner_TargetCannotBeCleaned(t *testing.T) {
	t.Parallel()
	v := newFakeVault(t)
	h := prepared(t, v)
	h.engine.at = func(_ context.Context, at wire.Step) error {
		if at == wire.StepCopy {
			// From here on no sandbox starts and the accounts of the target are gone.
			h.engine.dir += "/gone\x00"
			return &operation.Error{Step: at, Code: wire.CodeTargetUnavailable, Reason: "gone"}
		}
		return nil
	}
	h.start(t)
	require.Eventually(t, func() bool { return get(v, func(v *fakeVault) bool { return v.finishes > 0 }) }, 20*time.Second, 5*time.Millisecond)
	require.True(t, get(v, func(v *fakeVault) bool { return v.finish.CleanupNeeded }))
	require.Equal(t, wire.CodeTargetUnavailable, get(v, func(v *fakeVault) wire.Code { return v.finish.Code }))
	require.Contains(t, get(v, func(v *fakeVault) string { return v.finish.Hint }), "a try to clean the target failed: ")
	nothingLeft(t, h)
}
