package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// The vault commands of the README's quick start work as they are typed: with the
// README's own SQL, on a real server, through Vault's own program.
func TestReadme_QuickStart(t *testing.T) {
	text := testenv.README(t)
	server := testenv.Vault(t, testenv.VaultOptions{})
	database := testenv.Postgres(t, testenv.PostgresOptions{})
	database.CreateDatabase("shop")

	// Both blocks of rights, with a password, as a superuser: on one server here.
	blocks := regexp.MustCompile("(?s)```sql\n(.*?)```").FindAllStringSubmatch(text, -1)
	require.Len(t, blocks, 3)
	const password = "only-in-this-test"
	database.Exec("postgres", strings.ReplaceAll(blocks[0][1], "'…'", "'"+password+"'"))
	// What an administrator does where the server was restored from a backup.
	database.Exec("postgres", strings.ReplaceAll(testenv.InREADME(t, "administrator of the server, locally:\n\n    ", ";"), "for-a-minute", password))
	dir := t.TempDir()
	for _, statement := range regexp.MustCompile(`(?m)^-- (\w+\.sql)\n(.*)$`).FindAllStringSubmatch(blocks[2][1], -1) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, statement[1]), []byte(statement[2]), 0o600))
	}

	vault, err := exec.Command(filepath.Join("..", "..", "scripts", "ensure-vault")).Output()
	require.NoError(t, err)
	commands := regexp.MustCompile(`(?m)^    (vault (?:write|read)(?: -f)? dbops/(?:.*\\\n)*.*)$`).FindAllStringSubmatch(text, -1)
	require.Len(t, commands, 21)
	for _, command := range commands {
		line := strings.NewReplacer(
			"prod-db.example.com:5432", database.Address(), "sslmode=verify-full", "sslmode=disable", "<entity id>", "an-entity",
			"<group id>", "a-group", "<id>", "op-"+strings.Repeat("0", 26), "<digest>", "sha256:0", "<the answered seq>", "0",
		).Replace(command[1])
		cmd := exec.Command("sh", "-c", line)
		cmd.Dir = dir
		cmd.Stdin = strings.NewReader(password)
		cmd.Env = []string{
			"PATH=" + filepath.Dir(strings.TrimSpace(string(vault))) + ":" + os.Getenv("PATH"), "HOME=" + dir,
			"VAULT_ADDR=" + server.Address, "VAULT_TOKEN=" + server.RootToken,
		}
		out, err := cmd.CombinedOutput()
		if strings.Contains(line, " dbops/operations") || strings.Contains(line, "/acknowledge ") || strings.Contains(line, "/evaluate ") { // of people, and here is nobody
			require.Contains(t, string(out), "no_identity", line)
			continue
		}
		require.NoError(t, err, "%s\n%s", line, out)
	}
	// What was written means what was meant.
	connection, err := server.Client.Logical().Read("dbops/connections/prod")
	require.NoError(t, err)
	require.Equal(t, map[string]any{"inspect": "prod-inspect", "read": "prod-read"}, connection.Data["purposes"])
	require.Equal(t, map[string]any{"env": "prod"}, connection.Data["labels"])
	reports, err := server.Client.Logical().Read("dbops/roles/prod-reports")
	require.NoError(t, err)
	require.Equal(t, "readonly", reports.Data["preset"])
	require.NotEmpty(t, reports.Data["preparation_statements"])
	_, err = server.Client.Logical().Write("dbops/connections/prod", map[string]any{"operations_only": false})
	require.NoError(t, err)
	login, err := server.Client.Logical().Read("dbops/creds/prod-read")
	require.NoError(t, err)
	require.NotEmpty(t, login.Data["username"])
}
