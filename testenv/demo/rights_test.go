package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The rights in the README are those the demo runs with, so they are enough.
func TestRights_AsInReadme(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	require.NoError(t, err)
	for _, rights := range []string{sourceRights, targetRights, inspectStatement, readStatement, writeStatement} {
		for _, line := range strings.Split(strings.TrimSpace(rights), "\n") {
			if strings.Contains(line, "LARGE OBJECT") {
				continue // of the demo's data
			}
			line, _, _ = strings.Cut(line, "--")
			line = strings.TrimSpace(strings.ReplaceAll(line, "%s", "'…'"))
			require.Contains(t, string(content), line)
		}
	}
}
