package testenv_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// A server keeps its data and port over a crash.
func TestRedis(t *testing.T) {
	t.Parallel()
	r := testenv.Redis(t, testenv.RedisOptions{Conf: []string{"appendfsync always"}})
	require.Equal(t, "OK", r.Command("SET", "key", "two\r\nlines"))
	r.Kill()
	r.Start()
	require.Equal(t, "two\r\nlines", r.Command("GET", "key"))
	require.Empty(t, r.Command("GET", "absent"))
}
