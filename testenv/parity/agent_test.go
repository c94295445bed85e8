package parity_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// Vault Agent's templates on our mount: leased logins, and static ones that are
// rotated by a period or by a schedule, are written again when they change, and what
// stands in the files logs in. With the built-in engine the scheduled one is stale for
// as long as static_secret_render_interval says.
func TestVaultAgent_Templates(t *testing.T) {
	t.Parallel()
	testenv.Require(t, testenv.PartVault, testenv.PartDocker, testenv.PartPostgres)
	p := testenv.Postgres(t, testenv.PostgresOptions{})
	p.Exec("postgres", "CREATE ROLE root_"+ourMount+" LOGIN SUPERUSER PASSWORD '"+rootPassword+"'",
		"CREATE ROLE period LOGIN PASSWORD 'first'", "CREATE ROLE schedule LOGIN PASSWORD 'first'")
	v := testenv.Vault(t, testenv.VaultOptions{Mount: ourMount})
	ours := &engine{name: ourMount, vault: v, leases: map[string]string{}}
	for _, r := range []row{
		put("connection", "config/pg", pgConfig(&databases{postgres: p}, nil)),
		put("leased", "roles/leased", roleFields(fields{"default_ttl": "15s", "max_ttl": "15s"})),
		put("by a period", "static-roles/period", fields{"db_name": "pg", "username": "period", "rotation_period": "15s"}),
		put("by a schedule", "static-roles/schedule", fields{"db_name": "pg", "username": "schedule", "rotation_schedule": "* * * * *"}),
	} {
		require.Less(t, ours.ask(t, r).status, http.StatusBadRequest, r.name)
	}
	template := func(path string) string {
		return `{{ with secret "` + ourMount + `/` + path + `" }}{{ .Data.username }} {{ .Data.password }}{{ end }}`
	}
	dir := v.Agent(t, map[string]string{
		"leased": template("creds/leased"), "period": template("static-creds/period"), "schedule": template("static-creds/schedule"),
	})

	// What is stale is so from when the login in a file is refused until the file is
	// written again.
	const longest = 15 * time.Second
	files := []string{"leased", "period", "schedule"}
	known, worked, versions := map[string]string{}, map[string]time.Time{}, map[string]int{}
	enough := func() bool { return versions["leased"] > 2 && versions["period"] > 2 && versions["schedule"] > 2 }
	for began := time.Now(); !enough(); time.Sleep(200 * time.Millisecond) {
		require.Less(t, time.Since(began), 4*time.Minute, "%v", versions)
		for _, name := range files {
			content, err := os.ReadFile(filepath.Join(dir, name))
			if os.IsNotExist(err) {
				require.Less(t, time.Since(began), 30*time.Second, "%s was never written", name)
				continue
			}
			require.NoError(t, err)
			if text := string(content); text != known[name] {
				known[name] = text
				versions[name]++
				if versions[name] == 1 {
					worked[name] = time.Now()
				}
			}
			if logsIn(t, p, known[name]) {
				worked[name] = time.Now()
			} else {
				require.Less(t, time.Since(worked[name]), longest, "%s is stale", name)
			}
		}
	}
}

// logsIn tries a username and a password.
func logsIn(t *testing.T, p *testenv.PostgresServer, login string) bool {
	t.Helper()
	username, password, found := strings.Cut(login, " ")
	if !found {
		return false // the file is being written
	}
	c, err := pgx.Connect(t.Context(), strings.NewReplacer("{{username}}", username, "{{password}}", password).Replace(p.ConnectionURL("postgres")))
	if err != nil {
		return false
	}
	require.NoError(t, c.Close(t.Context()))
	return true
}
