package testenv_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// versions are those of each product.
type versions map[string][]string

var number = regexp.MustCompile(`\d+(?:\.\d+)?`)

// readmeVersions are those in README's table: what all tests run on, and what
// make test-versions has.
func readmeVersions(t *testing.T) (all, others versions) {
	t.Helper()
	all, others = versions{}, versions{}
	rows := testenv.InREADME(t, "| product | all tests | `make test-versions` |\n|---|---|---|\n", "\n\n")
	for row := range strings.Lines(rows) {
		cells := strings.Split(row, "|")
		require.Len(t, cells, 5, row)
		product := strings.TrimSpace(cells[1])
		all[product] = number.FindAllString(cells[2], -1)
		more, _, _ := strings.Cut(cells[3], ";") // after it, from which to which a clone goes
		others[product] = number.FindAllString(more, -1)
	}
	return all, others
}

// runVersions are those that scripts/test-versions says of its runs with the servers
// of a Debian suite, of all suites if it is "".
func runVersions(t *testing.T, suite string) versions {
	t.Helper()
	script, err := os.ReadFile("../scripts/test-versions")
	require.NoError(t, err)
	found := versions{}
	for _, run := range regexp.MustCompile(`(?m)^(\w+)[\w-]*\(\) \{ # (.*)$`).FindAllStringSubmatch(string(script), -1) {
		if suite != "" && run[1] != suite {
			continue
		}
		for server := range strings.SplitSeq(run[2], ", ") {
			product, version, _ := strings.Cut(server, " ")
			found[product] = append(found[product], version)
		}
	}
	require.NotEmpty(t, found, suite)
	return found
}

// README's table of versions has what scripts/test-versions runs on, all of it and
// nothing else. That the servers are of these versions is checked where they run, by
// requireTold.
func TestVersions_OfREADMEAreRun(t *testing.T) {
	t.Parallel()
	all, others := readmeVersions(t)
	runs := runVersions(t, "")
	for product, told := range others {
		require.NotContains(t, told, strings.Join(all[product], " "), product)
		require.ElementsMatch(t, runs[product], told, product)
		delete(runs, product)
	}
	require.Empty(t, runs, "not in the table")
}

// requireTold checks that README, or the run of scripts/test-versions that this is,
// says of a running server what the server says of itself. An official image is
// whatever its registry has; of those README tells nothing.
func requireTold(t *testing.T, part testenv.Part, product, itself string) {
	t.Helper()
	if !strings.HasPrefix(testenv.Image(t, part), "dbops-testenv:") {
		return
	}
	told, _ := readmeVersions(t)
	if suite := os.Getenv("DBOPS_SUITE"); suite != "" && suite != "bookworm" {
		told = runVersions(t, suite)
	}
	require.True(t, slices.ContainsFunc(told[product], func(version string) bool {
		return itself == version || strings.HasPrefix(itself, version+".")
	}), "%s is %s, and told is %v", product, itself, told[product])
}
