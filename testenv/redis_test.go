package testenv_test

import (
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// A server keeps its data and port over a crash. It is of the version that is told.
func TestRedis(t *testing.T) {
	t.Parallel()
	r := testenv.Redis(t, testenv.RedisOptions{Conf: []string{"appendfsync always"}})
	part, product, field := testenv.PartRedis, "Redis", "redis_version"
	if r.Valkey {
		part, product, field = testenv.PartValkey, "Valkey", "valkey_version"
	}
	itself := regexp.MustCompile(`(?m)^` + field + `:(\S+)`).FindStringSubmatch(r.Command("INFO", "server"))
	require.Len(t, itself, 2)
	requireTold(t, part, product, itself[1])
	require.Equal(t, "OK", r.Command("SET", "key", "two\r\nlines"))
	r.Kill()
	r.Start()
	require.Equal(t, "two\r\nlines", r.Command("GET", "key"))
	require.Empty(t, r.Command("GET", "absent"))
}
