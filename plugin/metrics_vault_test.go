package plugin_test

import (
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// scrape reads the metrics as Prometheus does.
func scrape(t *testing.T, v *testenv.VaultServer) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, v.Address+"/v1/dbops/metrics", nil)
	require.NoError(t, err)
	request.Header.Set("Authorization", "Bearer "+v.RootToken)
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer func() { require.NoError(t, response.Body.Close()) }()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, response.StatusCode, "%s", body)
	require.Equal(t, "text/plain; version=0.0.4", response.Header.Get("Content-Type"))
	return string(body)
}

// A scrape of a real Vault is what promtool takes for metrics, counts what was
// done, and has every series that the alerts speak of, before anything happened.
func TestMetrics_ThroughVault(t *testing.T) {
	t.Parallel()
	promtool := testenv.Promtool(t)
	v, _ := vaultWithDatabase(t, testenv.VaultOptions{})
	before := scrape(t, v)
	rules, err := os.ReadFile(filepath.Join("..", "scripts", "prometheus", "dbops.rules.yml"))
	require.NoError(t, err)
	names := regexp.MustCompile(`dbops_[a-z_]+`).FindAllString(string(rules), -1)
	require.Greater(t, len(names), 8)
	for _, name := range names {
		require.Regexp(t, `(?m)^`+name+`[{ ]`, before, name)
	}
	require.Contains(t, before, "\n"+`dbops_accounts_issued_total{engine="postgres",outcome="succeeded",use="creds"} 0`+"\n")

	check := exec.CommandContext(t.Context(), promtool, "check", "metrics")
	check.Stdin = strings.NewReader(before)
	out, err := check.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Empty(t, string(out), "promtool has nothing to say against the names")

	secret := creds(t, v, "app")
	_, err = v.Client.Logical().ReadWithContext(t.Context(), "dbops/creds/unknown")
	require.Error(t, err)
	require.NoError(t, v.Client.Sys().RevokeWithContext(t.Context(), secret.LeaseID))
	after := scrape(t, v)
	for _, line := range []string{
		`dbops_accounts_issued_total{engine="postgres",outcome="succeeded",use="creds"} 1`,
		`dbops_account_creation_seconds_count{engine="postgres"} 1`,
		`dbops_refusals_total{code="invalid"} 1`,
		`dbops_accounts_ended_total{outcome="succeeded"} 1`,
		`dbops_accounts 0`, `dbops_revocations_waiting 0`, `dbops_agents{state="lost"} 0`,
	} {
		require.Contains(t, after, "\n"+line+"\n")
	}
	require.Equal(t, strings.Count(before, "\n"), strings.Count(after, "\n"), "no series appears later")
}

// The alert rules are rules, and each does what its test says.
func TestMetrics_AlertRules(t *testing.T) {
	t.Parallel()
	promtool := testenv.Promtool(t)
	for _, arguments := range [][]string{{"check", "rules", "dbops.rules.yml"}, {"test", "rules", "dbops.rules.test.yml"}} {
		cmd := exec.CommandContext(t.Context(), promtool, arguments...)
		cmd.Dir = filepath.Join("..", "scripts", "prometheus")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.Contains(t, string(out), "SUCCESS")
	}
}
