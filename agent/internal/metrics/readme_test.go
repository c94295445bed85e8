package metrics

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// The table in the README has each of the agent's own metrics once, and no other.
func TestReadme_Metrics(t *testing.T) {
	t.Parallel()
	table := testenv.InREADME(t, "<!-- agent metrics: checked by a test -->", "<!-- /agent metrics -->")
	listed := regexp.MustCompile(`dbops_agent_[a-z_]+`).FindAllString(table, -1)

	var served []string
	families, err := New("v1").registry.Gather()
	require.NoError(t, err)
	for _, family := range families {
		if strings.HasPrefix(family.GetName(), "dbops_agent_") {
			served = append(served, family.GetName())
		}
	}
	slices.Sort(listed)
	require.Equal(t, served, listed)
}
