package plugin

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// A login of an operation is made by the role as it was pinned or not at all, whatever
// of it was changed; what only shortens its life, and limits of creds/, are no change.
func TestOperationLogins_MadeAsPinned(t *testing.T) {
	t.Parallel()
	p := database(t)
	p.Exec("postgres", `CREATE ROLE dbops_inspect NOLOGIN`)
	for name, c := range map[string]struct {
		change  map[string]any
		changed bool
	}{
		"creation_statements":   {map[string]any{"creation_statements": createLogin + ` IN ROLE dbops_owner`}, true},
		"revocation_statements": {map[string]any{"revocation_statements": `SELECT 1`}, true},
		"renew_statements":      {map[string]any{"renew_statements": `SELECT 1`}, true},
		"credential_config":     {map[string]any{"credential_config": map[string]any{"password_policy": "weak"}}, true},
		"preset":                {map[string]any{"preset": "owner"}, true},
		"ttl":                   {map[string]any{"default_ttl": "5m", "max_ttl": "10m", "max_leases": 7}, false},
		"the same again":        {map[string]any{"creation_statements": createMember}, false},
	} {
		t.Run(name, func(t *testing.T) {
			m := withRole(t, p, nil)
			pinned, err := m.operationLogin(t.Context(), m.storage, "prod", "app")
			require.NoError(t, err)
			require.Equal(t, []string{createMember}, pinned.Creation)
			m.must(logical.UpdateOperation, "roles/app", c.change)
			issued, err := m.issueAccount(t.Context(), m.storage, accountRequest{
				Connection: "prod", Role: "app", OperationID: "clone-1", Side: wire.Source, Purpose: wire.PurposeRead, Login: pinned.Digest, TTL: time.Minute,
			})
			if !c.changed {
				require.NoError(t, err)
				require.NoError(t, m.endAccount(t.Context(), m.storage, issued.RecordID))
				return
			}
			var refused *wire.Error
			require.ErrorAs(t, err, &refused)
			require.Equal(t, wire.CodePlanChanged, refused.Code)
			require.Contains(t, refused.Reason, "roles/app")
			require.NotEmpty(t, refused.Hint)
			require.Empty(t, keys(t, m.storage, prefixAccount))
			require.Equal(t, "0", logins(t, p))
		})
	}
	t.Run("the connection", func(t *testing.T) {
		m := withRole(t, p, nil)
		pinned, err := m.operationLogin(t.Context(), m.storage, "prod", "app")
		require.NoError(t, err)
		m.must(logical.UpdateOperation, "config/prod", map[string]any{"connection_url": database(t).ConnectionURL("postgres"), "password": rootPassword})
		moved, err := m.operationLogin(t.Context(), m.storage, "prod", "app")
		require.NoError(t, err)
		require.Equal(t, pinned.PlannedLogin, moved.PlannedLogin)
		require.NotEqual(t, pinned.Digest, moved.Digest)
	})
	t.Run("a role that cannot be used", func(t *testing.T) {
		m := withRole(t, p, nil)
		m.must(logical.DeleteOperation, "roles/app", nil)
		_, err := m.operationLogin(t.Context(), m.storage, "prod", "app")
		require.ErrorContains(t, err, "does not exist")
	})
}

// What runs on the server to renew and to end an operation's login is what its role
// said when it was made. Where that does not end it, the plugin's own way does.
func TestOperationLogins_RenewedAndEndedAsMade(t *testing.T) {
	t.Parallel()
	p := database(t)
	marks := func() string {
		return p.Value("postgres", `SELECT coalesce(string_agg(rolname, ' ' ORDER BY rolname), '') FROM pg_roles WHERE rolname LIKE 'mark_%'`)
	}
	m := withRole(t, p, map[string]any{
		"renew_statements":      `CREATE ROLE mark_renewed`,
		"revocation_statements": `CREATE ROLE mark_ended; DROP ROLE "{{name}}"`,
	})
	issued := m.issue("clone-1", wire.Source)
	m.must(logical.UpdateOperation, "roles/app", map[string]any{
		"renew_statements":      `CREATE ROLE mark_evil_renewal; GRANT dbops_owner TO "{{name}}"`,
		"revocation_statements": `CREATE ROLE mark_evil_end`,
	})
	require.NoError(t, m.renewAccount(t.Context(), m.storage, issued.RecordID, time.Hour))
	require.Equal(t, "mark_renewed", marks())
	require.NoError(t, m.endAccount(t.Context(), m.storage, issued.RecordID))
	require.Equal(t, "mark_ended mark_renewed", marks())
	require.Equal(t, "0", logins(t, p))

	m.must(logical.UpdateOperation, "roles/app", map[string]any{"revocation_statements": `DROP ROLE nobody_of_this_name`})
	issued = m.issue("clone-1", wire.Source)
	require.NoError(t, m.endAccount(t.Context(), m.storage, issued.RecordID))
	require.Equal(t, "0", logins(t, p))
	require.Empty(t, keys(t, m.storage, prefixAccount))
}

// The logins in a plan are the plugin's to say, under whatever spelling.
func TestPlan_LoginsOfAnAgent(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	op := m.clone()
	fence := m.poll("a1").Claims[0].Fence
	text, _ := planText()
	for _, key := range []string{"logins", "LOGINS", "loginſ"} {
		for _, value := range []string{`[]`, `null`, `[{"role":"harmless"}]`, `"x"`} {
			resp, err := m.sendPlan("a1", op.ID, fence, `{"`+key+`":`+value+`,`+text[1:])
			require.Equal(t, "text", m.refused(wire.CodeInvalid, resp, err).Field, key)
		}
	}
	m.db.grant("w", "")
	resp, err := m.sendPlan("a1", op.ID, fence, text)
	require.Contains(t, m.refused(wire.CodeConflict, resp, err).Reason, `"w"`, "a role that is not there is told before anybody is asked to approve")
	m.db.grant("w", `GRANT "a<b>" TO c`)
	m.must(m.sendPlan("a1", op.ID, fence, text+"\n"))
	stored := m.must(m.read(alice, "operations/"+op.ID+"/plan"))["text"].(string)
	require.Contains(t, stored, `GRANT \"a<b>\" TO c`)
	var plan wire.Plan
	require.NoError(t, json.Unmarshal([]byte(stored), &plan))
	require.Len(t, plan.Logins, 2)
	require.Equal(t, wire.PlannedLogin{
		Side: wire.Source, Purpose: wire.PurposeRead, Connection: "prod", Role: "r", CredentialType: credentialPassword, Creation: []string{"GRANT r"},
	}, plan.Logins[0])
	require.Equal(t, "write on staging by role w", string(plan.Logins[1].Purpose)+" on "+plan.Logins[1].Connection+" by role "+plan.Logins[1].Role)
}

// A cleanup gets the login that was approved for the run, or none.
func TestCleanup_LoginAsPinned(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	id := m.failed()
	claim := m.poll("a1").Claims[0]
	require.Equal(t, wire.PhaseCleanup, claim.Phase)
	m.must(m.work("a1", id, "accounts/target", "fence", claim.Fence))
	for _, r := range m.db.openAccounts() {
		require.Equal(t, m.b.ops.operation(id).Pins.TargetLogin.Digest, r.Login)
	}
}

// A connection that leads to another server gets no login to clean there: the one that
// the run wrote to would pass as clean.
func TestCleanup_ServerAsPinned(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	id := m.failed()
	fence := m.poll("a1").Claims[0].Fence
	before := m.db.made()
	m.db.identify("staging", wire.ServerIdentity{Server: "another"})
	resp, err := m.work("a1", id, "accounts/target", "fence", fence)
	refusal := m.refused(wire.CodePlanChanged, resp, err)
	require.Contains(t, refusal.Reason, "connection staging")
	require.Contains(t, refusal.Hint, "all/operations/"+id+"/acknowledge")
	require.Equal(t, before, m.db.made())
	m.db.identify("staging", wire.ServerIdentity{Server: m.b.ops.operation(id).Pins.server(wire.Target)})
	m.must(m.work("a1", id, "accounts/target", "fence", fence))
}

// A server that does not say who it is gets no plan and no login, whatever the agent
// says of it. For a while the agent is to ask again; then the server is unavailable.
func TestOperationLogins_ServerThatDoesNotSayWhoItIs(t *testing.T) {
	t.Parallel()
	for side, name := range map[wire.Side]string{wire.Source: "prod", wire.Target: "staging"} {
		m := newDesk(t)
		silent := func(silent bool) { m.db.set(func(f *fakeAccounts) { f.silent[name] = silent }) }
		refused := func(code wire.Code, err error) {
			t.Helper()
			require.Error(t, err)
			require.Equal(t, code, wire.ParseError(err.Error()).Code, "%v", err)
		}
		silent(true)
		op := m.clone() // a requester is not kept waiting
		fence := m.poll("a1").Claims[0].Fence
		text, _ := planText()
		_, err := m.sendPlan("a1", op.ID, fence, text)
		refused(wire.CodeUnavailable, err)
		require.Equal(t, wire.StatePlanning, m.operation(op.ID).State)
		require.Empty(t, m.operation(op.ID).PlanDigest)
		require.Nil(t, m.must(m.read("", "connections/"+name))["identity"])
		silent(false)
		fence = into[wire.PlanResponse](m, m.must(m.sendPlan("a1", op.ID, fence, text))).Claim.Fence

		silent(true)
		lease := func() error {
			_, err := m.work("a1", op.ID, "accounts/"+string(side), "fence", fence)
			return err
		}
		for range 2 * maxAccountsPerClaim {
			refused(wire.CodeUnavailable, lease())
			m.clock.pass(time.Second)
		}
		require.Empty(t, m.db.openAccounts())
		require.Equal(t, wire.StateRunning, m.operation(op.ID).State)
		m.clock.pass(identityPatience)
		refused(map[wire.Side]wire.Code{wire.Source: wire.CodeSourceUnavailable, wire.Target: wire.CodeTargetUnavailable}[side], lease())
		require.Zero(t, m.db.made())
		silent(false)
		require.NoError(t, lease())
		silent(true)
		refused(wire.CodeUnavailable, lease())
		m.must(m.work("a1", op.ID, "finish", "fence", fence, "outcome", "failed", "code", "engine"))
		m.settle()
		m.b.ops.mu.RLock()
		left := len(m.b.ops.silent)
		m.b.ops.mu.RUnlock()
		require.Zero(t, left)
	}
}

// The same of real servers: one that is frozen for a moment, one that never answers,
// and one that lets the connection's user not in.
func TestOperationLogins_RealServersThatDoNotAnswer(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, nil)
	m.must(logical.CreateOperation, "config/hole", map[string]any{
		"plugin_name": postgresPluginName, "connection_url": "postgresql://{{username}}:{{password}}@" + testenv.BlackHole(t).String() + "/x",
		"username": "dbops_root", "password": rootPassword, "verify_connection": false,
	})
	look := func(connection string) (string, wire.Code) {
		t.Helper()
		server, err := m.ownLook(t.Context(), m.storage, "clone-1", wire.Target, connection)
		if err == nil {
			return server, ""
		}
		require.Empty(t, server)
		var refusal *wire.Error
		require.ErrorAs(t, err, &refusal)
		require.Contains(t, refusal.Reason, connection)
		return "", refusal.Code
	}
	identifier := p.Value("postgres", `SELECT system_identifier FROM pg_control_system()`)
	is := func(connection, server string, code wire.Code) {
		t.Helper()
		got, refused := look(connection)
		require.Equal(t, code, refused)
		require.Equal(t, server, got)
	}
	// A busy machine may let a server be late, which is the same as silent.
	soon := func(server string, code wire.Code) {
		t.Helper()
		require.Eventually(t, func() bool {
			got, refused := look("prod")
			return got == server && refused == code
		}, 30*time.Second, 50*time.Millisecond)
	}
	soon(identifier, "")
	p.Pause()
	m.clock.advance(identityKept)
	is("prod", "", wire.CodeUnavailable)
	p.Unpause()
	soon(identifier, "")

	is("hole", "", wire.CodeUnavailable)
	m.clock.advance(identityPatience / 2)
	is("hole", "", wire.CodeUnavailable)
	m.clock.advance(identityPatience / 2)
	is("hole", "", wire.CodeTargetUnavailable)

	p.Exec("postgres", `ALTER ROLE dbops_root NOLOGIN`, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'dbops_root'`)
	m.clock.advance(identityKept)
	soon("", wire.CodeLoginRefused)
}
