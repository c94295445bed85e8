package command

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Arguments and configuration are checked before anything is done.
func TestRunAgent_Arguments(t *testing.T) {
	t.Parallel()
	good, err := filepath.Abs("../internal/config/testdata/agent-minimal.hcl")
	require.NoError(t, err)
	bad := filepath.Join(t.TempDir(), "bad.hcl")
	require.NoError(t, os.WriteFile(bad, []byte("name = 7\ncolour = 1\n"), 0o600))
	for name, c := range map[string]struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		"no configuration": {nil, 1, "", "-config is missing"},
		"unknown flag":     {[]string{"-colour"}, 1, "", "flag provided but not defined"},
		"leftover":         {[]string{"-config", good, "more"}, 1, "", "Usage"},
		"help":             {[]string{"-help"}, 0, "Usage", ""},
		"version":          {[]string{"-version"}, 0, "dbops-agent v9", ""},
		"check":            {[]string{"-config", good, "-check"}, 0, "is fine", ""},
		"bad file":         {[]string{"-config", bad}, 1, "", "bad.hcl:2,1"},
		"no file":          {[]string{"-config", bad + "x"}, 1, "", "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var stdout, stderr bytes.Buffer
			require.Equal(t, c.code, runAgent(c.args, "v9", &stdout, &stderr))
			require.Contains(t, stdout.String(), c.stdout)
			require.Contains(t, stderr.String(), c.stderr)
			if c.stdout == "" {
				require.Empty(t, stdout.String())
			}
		})
	}
}

// Two agents never work with one state directory.
func TestLockState(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	unlock, err := lockState(dir)
	require.NoError(t, err)
	_, err = lockState(dir)
	require.ErrorContains(t, err, "another agent")
	require.NoError(t, unlock())
	unlock, err = lockState(dir)
	require.NoError(t, err)
	require.NoError(t, unlock())
}
