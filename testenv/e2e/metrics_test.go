package e2e

import (
	"context"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/stack"
)

// scrapeAgent reads the metrics of an agent at its socket.
func scrapeAgent(t *testing.T, socket string) (string, error) {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://agent/metrics", nil)
	require.NoError(t, err)
	response, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Do(request)
	if err != nil {
		return "", err
	}
	defer func() { require.NoError(t, response.Body.Close()) }()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, response.StatusCode, "%s", body)
	require.Contains(t, response.Header.Get("Content-Type"), "text/plain; version=0.0.4")
	return string(body), nil
}

// The agent's metrics are what promtool takes for metrics, tell what it did, have
// every series from the start, and name nobody and nothing.
func TestMetrics_OfAgent(t *testing.T) {
	t.Parallel()
	promtool := testenv.Promtool(t)
	socket := filepath.Join(t.TempDir(), "m.sock")
	s := stack.New(t, stack.Options{AgentConfig: "telemetry {\n  listen = \"unix://" + socket + "\"\n}\n"})
	var before string
	testenv.Await(t, "the agent's metrics", 60*time.Second, func() (err error) {
		before, err = scrapeAgent(t, socket)
		return err
	})
	check := exec.CommandContext(t.Context(), promtool, "check", "metrics")
	check.Stdin = strings.NewReader(before)
	out, err := check.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Empty(t, string(out), "promtool has nothing to say against the names")

	op := s.Succeed(nil, 2*time.Minute)
	var after string
	testenv.Await(t, "the end to be counted", 30*time.Second, func() (err error) {
		after, err = scrapeAgent(t, socket)
		if err == nil && !strings.Contains(after, "\n"+`dbops_agent_operations_total{kind="clone",outcome="succeeded"} 1`+"\n") {
			err = io.ErrUnexpectedEOF
		}
		return err
	})
	for _, line := range []string{
		`dbops_agent_workers_started_total{outcome="succeeded"} 1`, `dbops_agent_step_duration_seconds_count{step="copy"} 1`,
		`dbops_agent_logins_total{outcome="succeeded"} 1`, `dbops_agent_audit_devices 1`, `dbops_agent_slots 1`,
		`dbops_agent_events_refused_total 0`, `dbops_agent_operation_failures_total{code="engine"} 0`,
	} {
		require.Contains(t, after, "\n"+line+"\n")
	}
	require.Regexp(t, `(?m)^dbops_agent_last_poll_age_seconds \d(\.|e-|$)`, after)
	require.Equal(t, strings.Count(before, "\ndbops_agent_"), strings.Count(after, "\ndbops_agent_"), "no series appears later")
	for line := range strings.Lines(after) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		for _, name := range []string{op.ID, stack.SourceName, stack.TargetName, stack.Database, stack.AgentName, op.Requester.EntityID} {
			require.NotContains(t, line, `"`+name+`"`)
		}
	}
}
