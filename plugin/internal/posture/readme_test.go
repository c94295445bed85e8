package posture

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

func readmePath() string { return filepath.Join("..", "..", "..", "README.md") }

// inReadme compares what stands between two comments of the README with what the
// code says; -update writes it anew.
func inReadme(t *testing.T, name, want string) {
	t.Helper()
	from, to := "<!-- "+name+": checked by a test -->\n", "<!-- /"+name+" -->"
	content, err := os.ReadFile(readmePath())
	require.NoError(t, err)
	before, rest, ok := strings.Cut(string(content), from)
	require.True(t, ok, from)
	got, after, ok := strings.Cut(rest, to)
	require.True(t, ok, to)
	if *update {
		require.NoError(t, os.WriteFile(readmePath(), []byte(before+from+want+to+after), 0o600))
		return
	}
	require.Equal(t, want, got)
}

// The README's table of checks is the code's: each with severity, meaning, remedy.
func TestReadme_Checks(t *testing.T) {
	var b strings.Builder
	b.WriteString("| finding | severity | points | means | remedy |\n|---|---|---|---|---|\n")
	for _, c := range Checks() {
		fmt.Fprintf(&b, "| `%s` | %s | %d | %s | %s |\n", c.ID, c.Severity, c.points(), c.Finds, c.Remedy)
	}
	inReadme(t, "posture checks", b.String())
}

// The README's tables of least rights are those the check goes by.
func TestReadme_LeastRights(t *testing.T) {
	for _, engine := range []wire.EngineType{wire.EnginePostgres, wire.EngineMySQL, wire.EngineRedis} {
		var b strings.Builder
		b.WriteString("| right | for |\n|---|---|\n")
		for _, right := range LeastRights(engine) {
			fmt.Fprintf(&b, "| %s | %s |\n", right.Shown, right.For)
		}
		inReadme(t, "rights "+string(engine), b.String())
	}
}

// Whatever the README tells to give the engine's login on Redis is in its table.
func TestReadme_RedisLogin(t *testing.T) {
	content, err := os.ReadFile(readmePath())
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(content), "ACL SETUSER vault on >… ")
	require.True(t, ok)
	line, _, _ := strings.Cut(rest, "\n")
	rules := strings.Fields(line)
	require.NotEmpty(t, rules)
	require.Empty(t, excess(wire.EngineRedis, rules))
}
