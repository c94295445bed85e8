package plugin

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hashicorp/go-secure-stdlib/base62"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"
)

// policies are password policies as Vault would draw from them.
func (m *engine) policies(lengths map[string]int) {
	for name, length := range lengths {
		m.System().(*logical.StaticSystemView).SetPasswordPolicy(name, func() (string, error) { return base62.Random(length) })
	}
}

func TestSCRAMIterations(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := withRole(t, p, nil)
	m.policies(map[string]int{"weak": 19, "strong": 25})
	iterations := func(username string) string {
		t.Helper()
		verifier := p.Value("postgres", `SELECT rolpassword FROM pg_authid WHERE rolname = $1`, username)
		require.True(t, strings.HasPrefix(verifier, "SCRAM-SHA-256$"), verifier)
		number, _, _ := strings.Cut(strings.TrimPrefix(verifier, "SCRAM-SHA-256$"), ":")
		return number
	}
	made := func() string {
		t.Helper()
		data := m.must(logical.ReadOperation, "creds/app", nil).Data
		_, err := login(t, p, data["username"].(string), data["password"].(string))
		require.NoError(t, err)
		return iterations(data["username"].(string))
	}
	operation := func() string {
		t.Helper()
		issued, err := m.issueAccount(t.Context(), m.storage, accountRequest{Connection: "prod", Role: "app", OperationID: "op"})
		require.NoError(t, err)
		_, err = login(t, p, issued.Username, issued.Password.Reveal())
		require.NoError(t, err)
		return iterations(issued.Username)
	}
	require.Equal(t, "4096", made())
	require.Equal(t, "1", operation(), "the agent's own logins")
	m.must(logical.UpdateOperation, "config/prod", map[string]any{"scram_iterations": 1})
	require.Equal(t, "1", made())

	// The role's policy wins over the connection's, and the weaker is refused.
	m.must(logical.UpdateOperation, "config/prod", map[string]any{"password_policy": "strong"})
	require.Equal(t, "1", made())
	m.must(logical.UpdateOperation, "roles/app", map[string]any{"credential_config": map[string]any{"password_policy": "weak"}})
	refusal, status := m.refused(logical.ReadOperation, "creds/app", nil)
	require.Equal(t, 400, status)
	require.Equal(t, "scram_iterations", refusal.Field)
	require.Equal(t, "4096", operation(), "the agent's logins are stretched then")
	m.must(logical.UpdateOperation, "config/prod", map[string]any{"scram_iterations": "4096"})
	require.Equal(t, "4096", made())

	for name, data := range map[string]map[string]any{
		"weak policy":  {"scram_iterations": 4095, "password_policy": "weak"},
		"too many":     {"scram_iterations": 1000000},
		"negative":     {"scram_iterations": -1},
		"not a number": {"scram_iterations": "few"},
	} {
		refusal, status := m.refused(logical.UpdateOperation, "config/prod", data)
		require.Equal(t, 400, status, name)
		require.Equal(t, "scram_iterations", refusal.Field, name)
	}
}

// The estimate is never above what is there.
func TestPasswordBits(t *testing.T) {
	t.Parallel()
	draw := func(f func(i int) string) (samples []string) {
		for i := range estimateSamples {
			samples = append(samples, f(i))
		}
		return samples
	}
	random := func(n int) string {
		text, err := base62.Random(n)
		require.NoError(t, err)
		return text
	}
	for length := 8; length <= 40; length += 4 {
		bits := passwordBits(draw(func(int) string { return random(length) }))
		require.Less(t, bits, 5.9542*float64(length))
		require.Greater(t, bits, 4.7*float64(length))
	}
	require.Less(t, passwordBits(draw(func(i int) string { return strings.Repeat("a", 100) + fmt.Sprint(i) })), 10.0)
	require.Less(t, passwordBits(draw(func(int) string { return strings.Repeat("x", 30) + random(20) })), 60.0)
	require.Zero(t, passwordBits(draw(func(int) string { return "" })))
	require.Zero(t, passwordBits([]string{random(40)}), "too few to tell")
}
