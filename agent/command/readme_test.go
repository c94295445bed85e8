package command

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/config"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/vault"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// The table of codes says what the programs do: every code, each once, with its
// HTTP status, exit code and retry rule.
func TestReadme_Codes(t *testing.T) {
	t.Parallel()
	table := testenv.InREADME(t, "<!-- codes: checked by a test -->", "<!-- /codes -->")
	got := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\| (\\d+) \\| (\\d+) \\| (yes|no) \\| .+ \\|$").FindAllStringSubmatch(table, -1) {
		require.NotContains(t, got, row[1])
		got[row[1]] = strings.Join(row[2:], " ")
	}
	want := map[string]string{}
	for _, code := range wire.Codes() {
		again := "no"
		if code.Info().Retry {
			again = "yes"
		}
		want[string(code)] = fmt.Sprintf("%d %d %s", code.Info().HTTP, code.Info().Exit, again)
	}
	require.Equal(t, want, got)
}

// The tuning command is the one that shows what must be shown.
func TestReadme_TuneCommand(t *testing.T) {
	t.Parallel()
	require.Contains(t, testenv.README(t), "    "+vault.TuneCommand(wire.DefaultMount)+"\n")
}

// The configuration shown is one the agent takes, with all that is shown elsewhere.
func TestReadme_AgentHCL(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	blocks := regexp.MustCompile("(?s)```hcl\n(.*?)```").FindAllStringSubmatch(testenv.README(t), -1)
	for _, block := range blocks {
		text.WriteString(block[1])
	}
	c, err := config.Parse("README.md", []byte(text.String()))
	require.NoError(t, err)
	require.NotNil(t, c.Telemetry)
}

// The duties listed are those there are.
func TestReadme_Duties(t *testing.T) {
	t.Parallel()
	for _, duty := range vault.Duties() {
		require.Contains(t, testenv.README(t), "| `"+duty.PolicyName(wire.DefaultMount)+"` |")
	}
}

// Every dbops command in the README has commands, options and arguments that
// exist: it gets as far as looking for a token, or for its file.
func TestReadme_Commands(t *testing.T) {
	t.Setenv("VAULT_TOKEN", "")
	plugin := filepath.Join(t.TempDir(), "plugin")
	require.NoError(t, os.WriteFile(plugin, []byte("x"), 0o600))
	commands := regexp.MustCompile("(?m)(?:^    |`)dbops ((?:clone|operations?|plan|approve|reject|posture|receipt|setup|lockdown|unlock|audit (?:verify|search|chains))(?: [^\n`]*)?)[\n`]").FindAllStringSubmatch(testenv.README(t), -1)
	require.Greater(t, len(commands), 5)
	for _, command := range commands {
		line := strings.NewReplacer(`"refresh for ticket 4711"`, "refresh", `"stolen laptop, case 17"`, "theft", `"case 17 is closed"`, "closed", "<id>", "clone-1", "<digest>", "sha256:1", "<text>", "no", "<version>", "v0.1.0", "<file>", plugin,
			"/etc/vault/plugins/vault-plugin-secrets-dbops", plugin).Replace(command[1])
		if slices.Contains([]string{"setup", "posture", "lockdown", "unlock"}, line) {
			continue // the name of the command in a sentence
		}
		var out bytes.Buffer
		code := runCLI(strings.Fields(line), &console{stdout: &out, stderr: &out, version: "test"})
		want := "no token"
		if strings.HasPrefix(line, "receipt verify") {
			want = "no such file" // it needs no Vault, but a receipt
		}
		require.Contains(t, out.String(), want, line)
		require.Equal(t, 1, code, line)
	}
}
