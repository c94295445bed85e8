package plugin

import (
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"
)

func (m *desk) metrics() string {
	m.t.Helper()
	data := m.must(m.read("", "metrics"))
	require.Equal(m.t, "text/plain; version=0.0.4", data[logical.HTTPContentType])
	return string(data[logical.HTTPRawBody].([]byte))
}

func (m *desk) counted(lines ...string) {
	m.t.Helper()
	text := m.metrics()
	for _, line := range lines {
		require.Contains(m.t, text, "\n"+line+"\n")
	}
}

// Decisions, operations and agents are counted as they are decided, ended, heard.
func TestMetrics_OfOperations(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.counted(`dbops_operations{state="requested"} 0`, `dbops_agents{state="lost"} 2`, `dbops_policy_changes_total 1`)
	op := m.clone()
	_, err := m.write(bob, "clone/prod/staging")
	require.Error(t, err)
	_, err = m.write("", "clone/prod/staging")
	require.Error(t, err)
	m.counted(
		`dbops_operations_requested_total{kind="clone"} 1`, `dbops_operations{state="requested"} 1`,
		`dbops_decisions_total{outcome="allowed",rule=""} 1`, `dbops_decisions_total{outcome="denied",rule="default_deny"} 1`,
		`dbops_refusals_total{code="denied"} 1`, `dbops_refusals_total{code="no_identity"} 1`,
	)
	m.poll("a1")
	m.counted(`dbops_agents{state="heard"} 1`, `dbops_operations{state="planning"} 1`)
	m.clock.pass(10 * time.Second)
	m.must(m.work("a1", op.ID, "finish", "fence", "1", "outcome", "failed", "code", "engine"))
	m.counted(
		`dbops_operations_finished_total{kind="clone",outcome="failed"} 1`, `dbops_operation_duration_seconds_count{kind="clone"} 1`,
		`dbops_operation_duration_seconds_sum{kind="clone"} 10`, `dbops_operations{state="planning"} 0`,
	)
	m.restart()
	m.counted(`dbops_operations_finished_total{kind="clone",outcome="failed"} 0`)
}
