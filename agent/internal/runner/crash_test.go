package runner_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/journal"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// crashPlan tells a child process where to die.
type crashPlan struct {
	Dir, Vault string
	// Event and Phase: right after this event is durable.
	Event wire.EventType
	Phase wire.Step
	// Effect: right after the rename, before the agent knows.
	Effect bool
	// Journal: right after the entry with this was written: switching, finish.
	Journal string
}

const crashVariable = "DBOPS_RUNNER_CRASH"

// TestMain turns the test binary into an agent that kills itself, when asked to.
func TestMain(m *testing.M) {
	if text := os.Getenv(crashVariable); text != "" {
		var plan crashPlan
		fatal(json.Unmarshal([]byte(text), &plan))
		crashing(plan)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func crashing(plan crashPlan) {
	die := func() {
		fatal(syscall.Kill(os.Getpid(), syscall.SIGKILL))
		select {}
	}
	h := newHost(plan.Dir, plan.Vault)
	h.tapEvent = func(e wire.Event) {
		if plan.Event != "" && e.EventType == plan.Event && e.Phase == plan.Phase {
			die()
		}
	}
	h.tapEntry = func(e journal.Entry) {
		if plan.Journal == "switching" && e.Switching || plan.Journal == "finish" && e.Finish != nil || plan.Journal == "claim" {
			die()
		}
	}
	if plan.Effect {
		h.engine.switched = die
	}
	fatal(h.work(context.Background(), hclog.NewNullLogger()))
}

// kill lets an agent work on the host until it dies as planned.
func kill(t *testing.T, h *host, v *fakeVault, plan crashPlan) {
	t.Helper()
	plan.Dir, plan.Vault = h.dir, v.server.URL
	text, err := json.Marshal(plan)
	require.NoError(t, err)
	child := exec.Command(os.Args[0], "-test.run=^$")
	child.Env = append(os.Environ(), crashVariable+"="+string(text))
	output, err := child.CombinedOutput()
	var ended *exec.ExitError
	require.ErrorAs(t, err, &ended, "%s", output)
	require.Equal(t, "signal: killed", ended.String(), "%s", output)
}

// Killed at every boundary, the next start leaves nothing behind and gives the
// operation its end; the target tells which.
func TestRunner_KilledAtEveryBoundary(t *testing.T) {
	t.Parallel()
	plans := []crashPlan{{Effect: true}, {Journal: "claim"}, {Journal: "switching"}, {Journal: "finish"}, {Event: wire.EventOperationFinished, Phase: wire.StepFinish}}
	for _, step := range []wire.Step{
		wire.StepSandbox, wire.StepInspect, wire.StepPlan, wire.StepAccounts, wire.StepSnapshot, wire.StepStage, wire.StepCopy,
		wire.StepVerify, wire.StepSwitch, wire.StepDropOld, wire.StepRevoke,
	} {
		plans = append(plans, crashPlan{Event: wire.EventStepStarted, Phase: step}, crashPlan{Event: wire.EventStepFinished, Phase: step})
	}
	for _, plan := range plans {
		name := strings.Trim(string(plan.Event)+" "+string(plan.Phase)+" "+plan.Journal, " ")
		if plan.Effect {
			name = "after the effect of switch"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newFakeVault(t)
			h := prepared(t, v)
			kill(t, h, v, plan)
			want, code := wire.StateFailed, wire.CodeAgentRestarted
			live, err := os.ReadFile(h.engine.live())
			require.NoError(t, err)
			planning := get(v, func(v *fakeVault) bool { return v.state == wire.StatePlanning || v.state == wire.StateRequested })
			if planning || string(live) == opID || plan.Phase == wire.StepPlan && plan.Event == wire.EventStepFinished {
				want, code = wire.StateSucceeded, "" // begun anew, or done
			}
			h.start(t)
			settled(t, h, v, want, code)
			require.LessOrEqual(t, get(v, func(v *fakeVault) string { return v.chain.Epoch }), "1", "the chain goes on")
		})
	}
}

// An agent that lost its state finds out at the target that the work was done.
func TestRunner_LostStateAfterSwitch(t *testing.T) {
	t.Parallel()
	v := newFakeVault(t)
	h := prepared(t, v)
	v.plan.Shape = json.RawMessage(`{"kind": "clone", "check": "a<b"}`)
	v.state, v.fence = wire.StateRunning, 2
	require.NoError(t, os.WriteFile(h.engine.live(), []byte(opID), 0o600))
	h.start(t)
	settled(t, h, v, wire.StateSucceeded, "")
	for _, e := range get(v, func(v *fakeVault) []wire.Event { return v.delivered }) {
		require.NotEqual(t, wire.StepStage, e.Phase, "nothing was copied again")
	}
}

// The plugin ended the operation while the agent was away: nothing stays here.
func TestRunner_ForgetsWhatThePluginEnded(t *testing.T) {
	t.Parallel()
	v := newFakeVault(t)
	v.state = wire.StateFailed
	h := prepared(t, v)
	book, err := journal.Open(filepath.Join(h.dir, "journal"))
	require.NoError(t, err)
	require.NoError(t, book.Put(journal.Entry{Claim: wire.Claim{OperationID: opID, Fence: "2", Phase: wire.PhaseRunning}, Touched: true}))
	h.start(t)
	nothingLeft(t, h)
}

// An operation that ended while its agent was away is cleaned by a claim of its
// own, whose end is a success when nothing is left.
func TestRunner_CleansUpLater(t *testing.T) {
	t.Parallel()
	v := newFakeVault(t)
	h := prepared(t, v)
	v.state, v.fence, v.cleanup = wire.StateFailed, 3, true
	require.NoError(t, os.WriteFile(h.engine.staging(opID), nil, 0o600))
	h.start(t)
	require.Eventually(t, func() bool { return get(v, func(v *fakeVault) bool { return v.cleaned }) }, 20*time.Second, 5*time.Millisecond)
	require.NoFileExists(t, h.engine.staging(opID))
	require.Empty(t, get(v, func(v *fakeVault) map[string]wire.Side { return v.leases }))
	nothingLeft(t, h)
}

// A claim to clean looks at the target whatever the journal holds: the agent that was
// lost after its shape was confirmed and before it staged anything does not fail it.
func TestRunner_CleansUpWhatItRemembers(t *testing.T) {
	t.Parallel()
	for name, left := range map[string]journal.Entry{
		"nothing staged": {},
		"staged":         {Touched: true, Step: wire.StepCopy},
		"end decided":    {Touched: true, Finish: &wire.FinishRequest{Fence: "2", Outcome: wire.StateFailed, Code: wire.CodeEngine, CleanupNeeded: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newFakeVault(t)
			h := prepared(t, v)
			v.state, v.fence, v.cleanup = wire.StateFailed, 3, true
			if left.Touched {
				require.NoError(t, os.WriteFile(h.engine.staging(opID), nil, 0o600))
			}
			book, err := journal.Open(filepath.Join(h.dir, "journal"))
			require.NoError(t, err)
			left.Claim = v.claim(wire.PhaseRunning)
			left.Claim.Fence = "2"
			require.NoError(t, book.Put(left))
			h.start(t)
			require.Eventually(t, func() bool { return !get(v, func(v *fakeVault) bool { return v.cleanup }) }, 20*time.Second, 5*time.Millisecond)
			require.True(t, get(v, func(v *fakeVault) bool { return v.cleaned }))
			require.NoFileExists(t, h.engine.staging(opID))
			nothingLeft(t, h)
		})
	}
}

// A claim to clean that could not tells what failed, for whoever has to do it by hand.
func TestRunner_CleaningFails(t *testing.T) {
	t.Parallel()
	v := newFakeVault(t)
	h := prepared(t, v)
	v.state, v.fence, v.cleanup = wire.StateFailed, 3, true
	h.onStart = func(sandbox.Spec) error { return errors.New("no space left") }
	h.start(t)
	require.Eventually(t, func() bool { return get(v, func(v *fakeVault) bool { return v.cleaning != nil }) }, 20*time.Second, 5*time.Millisecond)
	told := get(v, func(v *fakeVault) wire.FinishRequest { return *v.cleaning })
	require.Equal(t, wire.StateFailed, told.Outcome)
	require.True(t, told.CleanupNeeded)
	require.Contains(t, told.Hint, "a try to clean the target failed: the sandbox cannot be started (sandbox); see the agent's log")
	nothingLeft(t, h)
}

// A cancellation that comes when the copy is in place already changes nothing,
// and the record says that it is in place.
func TestRunner_KilledAfterSwitchThenCancelled(t *testing.T) {
	t.Parallel()
	v := newFakeVault(t)
	h := prepared(t, v)
	kill(t, h, v, crashPlan{Effect: true})
	v.set(func(v *fakeVault) { v.cancel = true })
	h.start(t)
	settled(t, h, v, wire.StateSucceeded, "")
	told := false
	for _, e := range get(v, func(v *fakeVault) []wire.Event { return v.delivered }) {
		told = told || e.EventType == wire.EventStepFinished && e.Phase == wire.StepSwitch && e.Outcome == "success"
	}
	require.True(t, told)
}

// disk is everything the host has on its disks.
func disk(t *testing.T, h *host) string {
	t.Helper()
	var all strings.Builder
	require.NoError(t, filepath.WalkDir(h.dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		all.Write(content)
		return err
	}))
	return all.String()
}
