package fake_test

import (
	"os"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox/fake"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox/sandboxtest"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox/sandboxtest/probe"
)

// The fake keeps the promises of the real one.
func TestFake_Suite(t *testing.T) {
	t.Parallel()
	sandboxtest.Suite{Open: func(t *testing.T) sandbox.Sandbox {
		dir, err := os.MkdirTemp("", "fake") // short enough for a socket's path
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
		return fake.New("a1", dir, hclog.NewNullLogger(), probe.Engine{})
	}}.Run(t)
}
