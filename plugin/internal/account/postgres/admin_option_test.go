package postgres

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// Before PostgreSQL 16 CREATEROLE lets the connection's user change every login and
// give every role away; since then it needs the ADMIN OPTION, and the error says so,
// with the statement that helps.
func TestDriver_AdminOption(t *testing.T) {
	t.Parallel()
	p := testenv.Postgres(t, testenv.PostgresOptions{})
	rootRole(p)
	p.Exec("postgres", `CREATE ROLE "svc's" LOGIN PASSWORD 'before'`, `CREATE ROLE readers`)
	driver, ctx := open(t, p, rootConfig(p)), t.Context()
	needed := p.Major() >= 16
	refused := func(err error, says string) {
		t.Helper()
		if !needed {
			require.NoError(t, err)
			return
		}
		var e *account.Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, wire.CodePrivilege, e.Code)
		require.False(t, e.Ambiguous)
		require.Contains(t, e.Reason, says)
		require.NotContains(t, e.Reason, "planted")
	}
	const grant = `GRANT "svc's" TO "dbops_root" WITH ADMIN OPTION`
	rotate := account.RotateRequest{Username: "svc's", Password: wire.NewSecret("planted-next")}
	refused(driver.Rotate(ctx, rotate), grant)
	refused(driver.Renew(ctx, account.RenewRequest{Username: "svc's", Expiration: time.Now().Add(time.Hour)}), grant)
	member := account.CreateRequest{
		Username: "member", Password: wire.NewSecret("planted-pw"), Expiration: time.Now().Add(time.Hour), Statements: []string{createLogin + ` IN ROLE readers`},
	}
	refused(driver.Create(ctx, member), "readers")
	if needed {
		refused(driver.Create(ctx, member), "WITH ADMIN OPTION")
		refused(driver.End(ctx, account.EndRequest{Username: "svc's"}), grant)
		p.Exec("postgres", grant, `GRANT readers TO dbops_root WITH ADMIN OPTION`)
		require.NoError(t, driver.Rotate(ctx, rotate))
		require.NoError(t, driver.Create(ctx, member))
	}
	require.NoError(t, driver.Login(ctx, "svc's", rotate.Password))
	require.NoError(t, driver.End(ctx, account.EndRequest{Username: "member"}))
	require.NoError(t, driver.End(ctx, account.EndRequest{Username: "svc's"}))
	require.Equal(t, "0", p.Value("postgres", `SELECT count(*) FROM pg_roles WHERE rolname IN ('member', 'svc''s')`))
}

// What a login owns goes to a role that the connection's user may hand over to:
// since PostgreSQL 16 a membership need not allow that.
func TestDriver_EndHandsOverToARoleThatMayBeSet(t *testing.T) {
	t.Parallel()
	p := testenv.Postgres(t, testenv.PostgresOptions{})
	rootRole(p)
	options := func(text string) string {
		if p.Major() < 16 {
			return "WITH ADMIN OPTION"
		}
		return "WITH ADMIN OPTION, " + text
	}
	p.Exec("postgres", `CREATE ROLE a_role`, `GRANT a_role TO dbops_root `+options("SET FALSE"),
		`CREATE ROLE b_role`, `GRANT b_role TO dbops_root `+options("INHERIT FALSE"), `GRANT CREATE ON SCHEMA public TO PUBLIC`)
	want := "b_role"
	if p.Major() < 16 {
		want = "a_role" // the first by name; both will do
	}
	driver := open(t, p, rootConfig(p))
	require.NoError(t, driver.Create(t.Context(), account.CreateRequest{
		Username: "maker", Password: wire.NewSecret("pw"), Expiration: time.Now().Add(time.Hour), Statements: []string{createLogin + ` IN ROLE a_role, b_role`},
	}))
	p.Exec("postgres", `CREATE TABLE made (n int)`, `ALTER TABLE made OWNER TO maker`)
	require.NoError(t, driver.End(t.Context(), account.EndRequest{Username: "maker"}))
	require.Equal(t, want, p.Value("postgres", `SELECT tableowner FROM pg_tables WHERE tablename = 'made'`))
}
