package metrics

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// served is the client of a scraper and the address metrics are served at.
type served struct {
	t      *testing.T
	dial   func(context.Context) (net.Conn, error)
	client *http.Client
	stop   func()
}

func serve(t *testing.T, m *Metrics, network, address string) *served {
	t.Helper()
	listener, err := Listen(t.Context(), network, address)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.Serve(ctx, listener, hclog.NewNullLogger())
	}()
	at := listener.Addr()
	dial := func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, at.Network(), at.String())
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }}
	s := &served{t: t, dial: dial, client: &http.Client{Transport: transport, Timeout: 10 * time.Second}, stop: func() {
		transport.CloseIdleConnections()
		cancel()
		<-ended
	}}
	t.Cleanup(s.stop)
	return s
}

func (s *served) ask(method, path string) (int, string) {
	s.t.Helper()
	request, err := http.NewRequestWithContext(s.t.Context(), method, "http://agent"+path, nil)
	require.NoError(s.t, err)
	response, err := s.client.Do(request)
	require.NoError(s.t, err)
	defer func() { require.NoError(s.t, response.Body.Close()) }()
	body, err := io.ReadAll(response.Body)
	require.NoError(s.t, err)
	return response.StatusCode, string(body)
}

func (s *served) scrape() string {
	s.t.Helper()
	status, text := s.ask(http.MethodGet, Path)
	require.Equal(s.t, http.StatusOK, status)
	return text
}

// ours are the lines of the agent's own series.
func ours(text string) []string {
	var lines []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "dbops_agent_") {
			lines = append(lines, strings.TrimSuffix(line, "\n"))
		}
	}
	return lines
}

// Everything that is told is counted under its word, what is on no list under
// "other", and no series appears that was not there before anything happened.
func TestMetrics_Counted(t *testing.T) {
	t.Parallel()
	m := New("v1")
	s := serve(t, m, "tcp", "127.0.0.1:0")
	before := ours(s.scrape())
	require.Contains(t, before, `dbops_agent_info{version="v1"} 1`)
	require.Contains(t, before, `dbops_agent_operations{phase="running"} 0`, "nobody is asked yet how things stand")

	m.OperationEnded(wire.KindClone, operation.OutcomeSucceeded, "", "")
	m.OperationEnded(wire.KindClone, operation.OutcomeFailed, wire.StepCopy, wire.CodeDiskFull)
	m.OperationEnded("of the future", "of the future", "", "")
	m.OperationEnded(wire.KindClone, operation.OutcomeFailed, "of the future", "of the future")
	m.OperationEnded(wire.KindClone, operation.OutcomeCleanupFailed, wire.StepCleanup, wire.CodeEngine)
	m.StepFinished(wire.StepCopy, 2*time.Second)
	m.StepFinished("of the future", time.Second)
	m.WorkerStarted(nil)
	m.WorkerStarted(errors.New("no"))
	m.WorkerDied(true)
	m.WorkerDied(false)
	m.LeftoverFound(nil)
	m.LeftoverFound(errors.New("no"))
	m.VaultAnswered("")
	m.VaultAnswered(wire.CodeUnavailable)
	m.VaultAnswered("of the future")
	m.LoggedIn("")
	m.LoggedIn(wire.CodeConfig)
	m.TokenRenewed("")
	m.TokenRenewed(wire.CodeUnavailable)
	m.Watch(func() Now {
		return Now{
			Claims: map[wire.Phase]int{wire.PhaseRunning: 2}, Unclaimed: 3, Slots: 4, FreeSlots: 1, AuditDevices: 5,
			EventsWaiting: 6, EventsWaitingBytes: 7, EventsOldest: 8 * time.Second, EventsRecorded: 9, EventsRefused: 10,
		}
	})
	after := s.scrape()
	for _, line := range []string{
		`dbops_agent_operations_total{kind="clone",outcome="succeeded"} 1`,
		`dbops_agent_operations_total{kind="clone",outcome="failed"} 2`,
		`dbops_agent_operations_total{kind="clone",outcome="cleanup_failed"} 1`,
		`dbops_agent_operation_failures_total{code="disk_full"} 1`, `dbops_agent_operation_failures_total{code="engine"} 1`,
		`dbops_agent_operation_failures_total{code="other"} 1`,
		`dbops_agent_operation_failed_steps_total{step="copy"} 1`, `dbops_agent_operation_failed_steps_total{step="other"} 1`,
		`dbops_agent_step_duration_seconds_bucket{step="copy",le="1"} 0`, `dbops_agent_step_duration_seconds_bucket{step="copy",le="5"} 1`,
		`dbops_agent_step_duration_seconds_count{step="other"} 1`,
		`dbops_agent_workers_started_total{outcome="succeeded"} 1`, `dbops_agent_workers_started_total{outcome="failed"} 1`,
		`dbops_agent_workers_died_total{reason="memory"} 1`, `dbops_agent_workers_died_total{reason="exit"} 1`,
		`dbops_agent_sandbox_leftovers_total{outcome="removed"} 1`, `dbops_agent_sandbox_leftovers_total{outcome="left"} 1`,
		`dbops_agent_vault_requests_total{outcome="succeeded"} 1`, `dbops_agent_vault_requests_total{outcome="failed"} 2`,
		`dbops_agent_vault_failures_total{code="unavailable"} 1`, `dbops_agent_vault_failures_total{code="other"} 1`,
		`dbops_agent_logins_total{outcome="succeeded"} 1`, `dbops_agent_logins_total{outcome="failed"} 1`,
		`dbops_agent_token_renewals_total{outcome="succeeded"} 1`, `dbops_agent_token_renewals_total{outcome="failed"} 1`,
		`dbops_agent_operations{phase="running"} 2`, `dbops_agent_operations{phase="planning"} 0`, `dbops_agent_operations_unclaimed 3`,
		`dbops_agent_slots 4`, `dbops_agent_slots_free 1`, `dbops_agent_audit_devices 5`,
		`dbops_agent_events_waiting 6`, `dbops_agent_events_waiting_bytes 7`, `dbops_agent_events_oldest_seconds 8`,
		`dbops_agent_events_recorded_total 9`, `dbops_agent_events_refused_total 10`,
	} {
		require.Contains(t, "\n"+after, "\n"+line+"\n")
	}
	// The kind of the future is the one pair that no version can foresee.
	require.Len(t, ours(after), len(before)+1)
	require.Contains(t, after, `dbops_agent_operations_total{kind="other",outcome="other"} 1`)
}

// The age of the last poll grows from the start, until one is answered.
func TestMetrics_LastPollAge(t *testing.T) {
	t.Parallel()
	m := New("v1")
	long := time.Now().Add(-time.Hour)
	m.polled.Store(&long)
	s := serve(t, m, "tcp", "127.0.0.1:0")
	require.Regexp(t, `(?m)^dbops_agent_last_poll_age_seconds 3\d{3}`, s.scrape())
	m.PollAnswered()
	require.Regexp(t, `(?m)^dbops_agent_last_poll_age_seconds (\d|\d+e-\d+)(\.|$)`, s.scrape())
}

// promtool has nothing to say against names, types and words.
func TestMetrics_Promtool(t *testing.T) {
	t.Parallel()
	promtool := testenv.Promtool(t)
	m := New("v1")
	m.OperationEnded(wire.KindClone, operation.OutcomeSucceeded, "", "")
	check := exec.CommandContext(t.Context(), promtool, "check", "metrics")
	check.Stdin = strings.NewReader(serve(t, m, "tcp", "127.0.0.1:0").scrape())
	out, err := check.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Empty(t, string(out))
}

// A scraper reads one path and can do nothing else.
func TestServe_OnlyReads(t *testing.T) {
	t.Parallel()
	s := serve(t, New("v1"), "tcp", "127.0.0.1:0")
	for _, c := range []struct {
		method, path string
		status       int
	}{
		{http.MethodGet, Path, http.StatusOK},
		{http.MethodHead, Path, http.StatusOK},
		{http.MethodPost, Path, http.StatusMethodNotAllowed},
		{http.MethodGet, "/", http.StatusNotFound},
		{http.MethodGet, "/debug/pprof/", http.StatusNotFound},
	} {
		status, _ := s.ask(c.method, c.path)
		require.Equal(t, c.status, status, "%s %s", c.method, c.path)
	}
}

// Whoever opens connections and says nothing takes none of the agent's files beyond a
// few, and keeps a scraper waiting only.
func TestServe_Connections(t *testing.T) {
	t.Parallel()
	s := serve(t, New("v1"), "tcp", "127.0.0.1:0")
	var idle []net.Conn
	for range connectionsAtOnce {
		connection, err := s.dial(t.Context())
		require.NoError(t, err)
		defer connection.Close()
		idle = append(idle, connection)
	}
	s.client.Timeout = 300 * time.Millisecond
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://agent"+Path, nil)
	require.NoError(t, err)
	response, err := s.client.Do(request)
	if err == nil {
		require.NoError(t, response.Body.Close())
	}
	require.Error(t, err, "one more connection is served")

	s.client.Timeout = 10 * time.Second
	require.NoError(t, idle[0].Close())
	s.scrape()
	s.scrape() // the one before does not hold its place
}

// Whoever scrapes while the agent ends gets an answer, and nothing is left behind.
func TestServe_EndsAfterTheLastScrape(t *testing.T) {
	t.Parallel()
	m := New("v1")
	asked, answer := make(chan struct{}), make(chan struct{})
	m.Watch(func() Now {
		close(asked)
		<-answer
		return Now{Slots: 7}
	})
	s := serve(t, m, "tcp", "127.0.0.1:0")
	scraped, stopped := make(chan string, 1), make(chan struct{})
	go func() { scraped <- s.scrape() }()
	<-asked
	go func() {
		defer close(stopped)
		s.stop()
	}()
	select {
	case <-stopped:
		require.Fail(t, "stopped while a scrape is answered")
	case <-time.After(200 * time.Millisecond):
	}
	close(answer)
	require.Contains(t, <-scraped, "\ndbops_agent_slots 7\n")
	<-stopped
}

// A socket is open to its owner and group, one that a killed start has left is
// replaced, one that is done with is removed, and nothing else is touched: neither
// another file nor a socket at which somebody listens.
func TestListen_Socket(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "m") // short: a socket's path is
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	path := filepath.Join(dir, "metrics.sock")
	left, err := net.Listen("unix", path)
	require.NoError(t, err)
	socket, ok := left.(*net.UnixListener)
	require.True(t, ok)
	socket.SetUnlinkOnClose(false)
	require.NoError(t, left.Close())
	require.FileExists(t, path)

	s := serve(t, New("v1"), "unix", path)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o660), info.Mode().Perm())
	require.NotEmpty(t, ours(s.scrape()))
	s.stop()
	require.NoFileExists(t, path)

	require.NoError(t, os.WriteFile(path, []byte("mine"), 0o600))
	_, err = Listen(t.Context(), "unix", path)
	require.ErrorContains(t, err, "is no socket")
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "mine", string(content))

	require.NoError(t, os.Remove(path))
	theirs, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer theirs.Close()
	_, err = Listen(t.Context(), "unix", path)
	require.ErrorContains(t, err, "another program listens at "+path)
	connection, err := net.Dial("unix", path)
	require.NoError(t, err, "theirs is still there")
	require.NoError(t, connection.Close())
}
