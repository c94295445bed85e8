package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// The rights in the README are those the demo runs with, so they are enough.
func TestRights_AsInReadme(t *testing.T) {
	t.Parallel()
	readme := testenv.README(t)
	for _, rights := range []string{sourceRights, targetRights, inspectStatement, readStatement, writeStatement} {
		for _, line := range strings.Split(strings.TrimSpace(rights), "\n") {
			if strings.Contains(line, "LARGE OBJECT") {
				continue // of the demo's data
			}
			line, _, _ = strings.Cut(line, "--")
			line = strings.TrimSpace(strings.ReplaceAll(line, "%s", "'…'"))
			require.Contains(t, readme, line)
		}
	}
}
