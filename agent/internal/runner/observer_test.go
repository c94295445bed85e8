package runner_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/metrics"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// counted is a host whose agent counts, and what a scrape of it says.
func counted(t *testing.T, v *fakeVault) (h *host, scrape func() string) {
	t.Helper()
	h = prepared(t, v)
	h.counts = metrics.New("test")
	return h, func() string {
		w := httptest.NewRecorder()
		h.counts.Handler(nil).ServeHTTP(w, httptest.NewRequest(http.MethodGet, metrics.Path, nil))
		return w.Body.String()
	}
}

func says(t *testing.T, scrape func() string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		require.Eventually(t, func() bool { return strings.Contains(scrape(), "\n"+line+"\n") }, 30*time.Second, 10*time.Millisecond, line)
	}
}

// What a runner does is counted once: the operation, each of its steps, its worker.
// No name of anything is in a scrape.
func TestObserver_Success(t *testing.T) {
	t.Parallel()
	v := newFakeVault(t)
	h, scrape := counted(t, v)
	h.start(t)
	settled(t, h, v, wire.StateSucceeded, "")
	says(t, scrape, `dbops_agent_operations_total{kind="clone",outcome="succeeded"} 1`, `dbops_agent_operations_total{kind="clone",outcome="planned"} 0`,
		`dbops_agent_workers_started_total{outcome="succeeded"} 1`, `dbops_agent_workers_started_total{outcome="failed"} 0`,
		`dbops_agent_vault_requests_total{outcome="failed"} 0`, `dbops_agent_sandbox_leftovers_total{outcome="removed"} 0`)
	for _, step := range []wire.Step{
		wire.StepSandbox, wire.StepInspect, wire.StepPlan, wire.StepAccounts, wire.StepSnapshot, wire.StepStage, wire.StepCopy,
		wire.StepVerify, wire.StepSwitch, wire.StepDropOld, wire.StepRevoke,
	} {
		says(t, scrape, `dbops_agent_step_duration_seconds_count{step="`+string(step)+`"} 1`)
	}
	text := scrape()
	require.Regexp(t, `(?m)^dbops_agent_vault_requests_total\{outcome="succeeded"\} \d\d+$`, text)
	for line := range strings.Lines(text) {
		for _, name := range []string{"prod", "staging", "shop", "alice", `"e1"`, opID, "hunter2", `"` + agentName + `"`} {
			require.False(t, !strings.HasPrefix(line, "#") && strings.Contains(line, name), "%s in %s", name, line)
		}
	}
}

// With a pause for approval the work on the plan is an end of its own.
func TestObserver_Planned(t *testing.T) {
	t.Parallel()
	v := newFakeVault(t)
	v.autoRun = false
	h, scrape := counted(t, v)
	h.start(t)
	settled(t, h, v, wire.StateSucceeded, "")
	says(t, scrape, `dbops_agent_operations_total{kind="clone",outcome="planned"} 1`, `dbops_agent_operations_total{kind="clone",outcome="succeeded"} 1`,
		`dbops_agent_workers_started_total{outcome="succeeded"} 2`)
}

// A failure is counted with its code and the step it happened in, which has no
// duration then.
func TestObserver_Failure(t *testing.T) {
	t.Parallel()
	v := newFakeVault(t)
	h, scrape := counted(t, v)
	h.engine.at = failsAt(wire.StepCopy, &operation.Error{Code: wire.CodeDiskFull, Reason: "no space"})
	h.start(t)
	settled(t, h, v, wire.StateFailed, wire.CodeDiskFull)
	says(t, scrape, `dbops_agent_operations_total{kind="clone",outcome="failed"} 1`, `dbops_agent_operation_failures_total{code="disk_full"} 1`,
		`dbops_agent_operation_failed_steps_total{step="copy"} 1`, `dbops_agent_step_duration_seconds_count{step="copy"} 0`,
		`dbops_agent_step_duration_seconds_count{step="stage"} 1`, `dbops_agent_step_duration_seconds_count{step="cleanup"} 1`)
}

// A sandbox that does not start is a failed start of a worker.
func TestObserver_NoSandbox(t *testing.T) {
	t.Parallel()
	v := newFakeVault(t)
	h, scrape := counted(t, v)
	h.onStart = func(sandbox.Spec) error { return errors.New("no daemon") }
	h.start(t)
	settled(t, h, v, wire.StateFailed, wire.CodeSandbox)
	says(t, scrape, `dbops_agent_workers_started_total{outcome="failed"} 1`, `dbops_agent_workers_started_total{outcome="succeeded"} 0`,
		`dbops_agent_operation_failures_total{code="sandbox"} 1`)
}

// Work that somebody else decides about is lost, neither a success nor a failure.
func TestObserver_Lost(t *testing.T) {
	t.Parallel()
	v := newFakeVault(t)
	h, scrape := counted(t, v)
	h.engine.at = staysAt(wire.StepCopy, func() { v.set(func(v *fakeVault) { v.dropped = true }) })
	h.start(t)
	says(t, scrape, `dbops_agent_operations_total{kind="clone",outcome="lost"} 1`, `dbops_agent_operations_total{kind="clone",outcome="failed"} 0`)
	nothingLeft(t, h)
}

// A sandbox of an earlier start that belongs to nothing is found and removed.
func TestObserver_Leftover(t *testing.T) {
	t.Parallel()
	v := newFakeVault(t)
	v.set(func(v *fakeVault) { v.state = wire.StateSucceeded })
	h, scrape := counted(t, v)
	require.NoError(t, os.MkdirAll(filepath.Join(h.dir, "run", opID), 0o700))
	stop := h.start(t)
	says(t, scrape, `dbops_agent_sandbox_leftovers_total{outcome="removed"} 1`, `dbops_agent_sandbox_leftovers_total{outcome="left"} 0`)
	nothingLeft(t, h)
	stop()

	// One that cannot be removed is left, and says so.
	require.NoError(t, os.MkdirAll(filepath.Join(h.dir, "run", opID), 0o700))
	h.onRemove = func(string) error { return errors.New("busy") }
	h.start(t)
	says(t, scrape, `dbops_agent_sandbox_leftovers_total{outcome="left"} 1`)
}

// While Vault is away its refusals are counted, and the last poll grows old.
func TestObserver_VaultAway(t *testing.T) {
	t.Parallel()
	v := newFakeVault(t)
	v.set(func(v *fakeVault) { v.state, v.down = wire.StateSucceeded, true })
	h, scrape := counted(t, v)
	h.start(t)
	require.Eventually(t, func() bool {
		return !strings.Contains(scrape(), `dbops_agent_vault_failures_total{code="unavailable"} 0`)
	}, 30*time.Second, 10*time.Millisecond)
	require.NotContains(t, scrape(), `dbops_agent_vault_requests_total{outcome="failed"} 0`)
	says(t, scrape, `dbops_agent_vault_requests_total{outcome="succeeded"} 0`)
}
