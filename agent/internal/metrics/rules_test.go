package metrics

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

var rules = filepath.Join("..", "..", "..", "scripts", "prometheus")

// Every metric that an alert speaks of is served from the start: an alert on a name
// that nobody serves would be silent for ever.
func TestRules_SpeakOfWhatIsServed(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile(filepath.Join(rules, "dbops-agents.rules.yml"))
	require.NoError(t, err)
	names := regexp.MustCompile(`dbops_[a-z_]+`).FindAllString(string(content), -1)
	require.Greater(t, len(names), 11)
	text := serve(t, New("v1"), "tcp", "127.0.0.1:0").scrape()
	for _, name := range names {
		require.Regexp(t, `(?m)^`+name+`[{ ]`, text, name)
	}
	// So are the words it asks for.
	for _, matcher := range regexp.MustCompile(`(outcome|reason)="(\w+)"`).FindAllString(string(content), -1) {
		require.Contains(t, text, matcher)
	}
}

// The alert rules are rules, and each does what its test says.
func TestRules_Promtool(t *testing.T) {
	t.Parallel()
	promtool := testenv.Promtool(t)
	for _, arguments := range [][]string{{"check", "rules", "dbops-agents.rules.yml"}, {"test", "rules", "dbops-agents.rules.test.yml"}} {
		cmd := exec.CommandContext(t.Context(), promtool, arguments...)
		cmd.Dir = rules
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.Contains(t, string(out), "SUCCESS")
	}
}

// Each alert is in the tests, once where it must be silent and once where it must not.
func TestRules_EachIsTested(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile(filepath.Join(rules, "dbops-agents.rules.yml"))
	require.NoError(t, err)
	tests, err := os.ReadFile(filepath.Join(rules, "dbops-agents.rules.test.yml"))
	require.NoError(t, err)
	alerts := regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(string(content), -1)
	require.NotEmpty(t, alerts)
	for _, alert := range alerts {
		require.Regexp(t, `alertname: `+alert[1]+`\}`, string(tests), "silent")
		require.Regexp(t, `alertname: `+alert[1]+`\n\s+exp_alerts:\n\s+- exp_labels`, string(tests), "told")
	}
}
