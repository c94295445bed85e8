package metrics

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The table in the README has each of the agent's own metrics once, and no other.
func TestReadme_Metrics(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile(filepath.Join("..", "..", "..", "README.md"))
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(content), "<!-- agent metrics: checked by a test -->")
	require.True(t, found)
	table, _, found := strings.Cut(rest, "<!-- /agent metrics -->")
	require.True(t, found)
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
