package testenv

import (
	"bytes"
	"debug/buildinfo"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// Builds for tests can be killed at points and told another time; what is shipped
// holds none of the code for it.
func TestBinaries_ShippedHaveNoFaults(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		shipped, fault string
		marks          []string // of the code: its file, what it reads
	}{
		{Plugin(t), FaultPlugin(t), []string{"/plugin/fault.go", ".clock-offset"}},
		{Agent(t), FaultAgent(t), []string{"/runner/fault.go", "DBOPS_FAULT"}},
	} {
		tags := func(path string) (found string) {
			info, err := buildinfo.ReadFile(path)
			require.NoError(t, err)
			for _, s := range info.Settings {
				if s.Key == "-tags" {
					found = s.Value
				}
			}
			return found
		}
		require.Equal(t, "dbopsfault", tags(c.fault))
		require.Empty(t, tags(c.shipped))
		shipped, err := os.ReadFile(c.shipped)
		require.NoError(t, err)
		fault, err := os.ReadFile(c.fault)
		require.NoError(t, err)
		for _, mark := range c.marks {
			require.True(t, bytes.Contains(fault, []byte(mark)), "%s lacks %s: it proves nothing", c.fault, mark)
			require.False(t, bytes.Contains(shipped, []byte(mark)), "%s holds %s", c.shipped, mark)
		}
	}
}
