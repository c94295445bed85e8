package e2e

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// Vault dies by SIGKILL while a lockdown ends accounts, and ends the rest when it
// is back.
func TestLockdown_VaultKilledWhileEnding(t *testing.T) {
	t.Parallel()
	v := testenv.Vault(t, testenv.VaultOptions{Raft: true, SkipAudit: true})
	p := testenv.Postgres(t, testenv.PostgresOptions{})
	write := issuing(t, v, p)
	write("roles/app", map[string]any{"db_name": "prod", "creation_statements": createLogin})
	// Records of these stand in Vault's storage: they have statements of their own.
	write("roles/own", map[string]any{
		"db_name": "prod", "creation_statements": createLogin,
		"revocation_statements": `DROP ROLE "{{name}}"`,
	})
	const each = 60
	for range each {
		for _, role := range []string{"app", "own"} {
			_, err := v.Client.Logical().Read(v.Mount + "/creds/" + role)
			require.NoError(t, err)
		}
	}
	count := func() int {
		n, err := strconv.Atoi(p.Value("postgres", `SELECT count(*) FROM pg_roles WHERE rolname LIKE 'dbops-%'`))
		require.NoError(t, err)
		return n
	}
	require.Equal(t, 2*each, count())
	// One cannot be dropped while this session names it, so that some are left however
	// late a busy machine lets Vault be killed.
	holding := p.Connect("postgres")
	_, err := holding.Exec(t.Context(), `BEGIN; COMMENT ON ROLE "`+p.Value("postgres", `SELECT max(rolname) FROM pg_roles WHERE rolname LIKE 'dbops-%'`)+`" IS 'held'`)
	require.NoError(t, err)
	write("lockdown", map[string]any{"reason": "drill"})
	for began := time.Now(); count() == 2*each; {
		require.Less(t, time.Since(began), time.Minute, "no login went")
	}
	v.Kill()
	left := count()
	require.Positive(t, left)
	t.Logf("%d of %d logins were left when Vault was killed", left, 2*each)
	v.Restart()
	_, err = holding.Exec(t.Context(), "ROLLBACK")
	require.NoError(t, err)
	testenv.Await(t, "no login to be left", 2*time.Minute, func() error {
		if n := count(); n > 0 {
			return fmt.Errorf("%d logins", n)
		}
		return nil
	})
	_, err = v.Client.Logical().Read(v.Mount + "/creds/app")
	refusedWith(t, wire.CodeLocked, err)
}

func refusedWith(t *testing.T, code wire.Code, err error) {
	t.Helper()
	require.Error(t, err)
	parsed := wire.ParseError(err.Error())
	require.NotNil(t, parsed, "%v", err)
	require.Equal(t, code, parsed.Code, "%v", err)
}
