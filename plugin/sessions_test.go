package plugin

import (
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// sessions is how many sessions of ours the server has.
func sessions(t *testing.T, p *testenv.PostgresServer) int {
	t.Helper()
	n, err := strconv.Atoi(p.Value("postgres", `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dbops'`))
	require.NoError(t, err)
	return n
}

// Sessions are kept for the next login. While an operation has logins they are not,
// whoever's they are, so that a database can be renamed.
func TestSessions_LeaveForOperations(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, nil)
	m.configure("same", p)
	m.must(logical.CreateOperation, "roles/other", map[string]any{"db_name": "same", "creation_statements": createMember})
	m.start()
	login := func() {
		m.must(logical.ReadOperation, "creds/app", nil)
		m.must(logical.ReadOperation, "creds/other", nil)
	}
	kept := func() {
		t.Helper()
		login()
		time.Sleep(4 * leaveEvery)                   // that nothing happens is the point
		require.GreaterOrEqual(t, sessions(t, p), 2) // the sweeper may have one, too
	}
	left := func() {
		t.Helper()
		require.Eventually(t, func() bool { return sessions(t, p) == 0 }, 30*time.Second, 20*time.Millisecond)
	}
	kept()
	issued, err := m.issueAccount(t.Context(), m.storage, accountRequest{Connection: "prod", Role: "app", OperationID: "op", TTL: time.Minute})
	require.NoError(t, err)
	left()
	login()
	left()
	require.NoError(t, m.endAccount(t.Context(), m.storage, issued.RecordID))
	kept()
}
