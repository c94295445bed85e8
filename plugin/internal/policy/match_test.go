package policy

import (
	"testing"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/ryanuber/go-glob"
	"github.com/stretchr/testify/require"
)

// A glob taken apart matches what the library that reads globs elsewhere matches.
func FuzzPattern(f *testing.F) {
	for _, seed := range [][2]string{
		{"", ""},
		{"*", ""},
		{"*", "a"},
		{"a*", "ab"},
		{"*b", "ab"},
		{"a*b", "ab"},
		{"a*b*c", "axbxc"},
		{"aa*aa", "aaa"},
		{"*a*", "bab"},
		{"**", "x"},
		{"a**b", "ab"},
		{"*ab*ab", "abab"},
		{"a*a", "a"},
		{"prod", "prod2"},
		{"*x*x*", "x"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, pattern, text string) {
		parsed := parsePattern(pattern)
		if want := glob.Glob(pattern, text); want != parsed.matches(text) {
			t.Fatalf("pattern %q on %q: want %v", pattern, text, want)
		}
	})
}

// What a policy asks of agents is names or labels or both; nothing is everybody.
func TestAgentMatches(t *testing.T) {
	t.Parallel()
	labels := map[string]string{"site": "eu-1", "disk": "fast"}
	for _, c := range []struct {
		need wire.AgentNeed
		want bool
	}{
		{wire.AgentNeed{}, true},
		{wire.AgentNeed{Names: []string{"db*", "x"}}, true},
		{wire.AgentNeed{Names: []string{"x"}}, false},
		{wire.AgentNeed{Labels: map[string]string{"site": "eu-*"}}, true},
		{wire.AgentNeed{Labels: map[string]string{"site": "eu-*", "gpu": "*"}}, false},
		{wire.AgentNeed{Names: []string{"x"}, Labels: map[string]string{"site": "eu-*"}}, false},
		{wire.AgentNeed{Names: []string{"db1"}, Labels: map[string]string{"site": "us-*"}}, false},
	} {
		require.Equal(t, c.want, AgentMatches(c.need, "db1", labels), "%+v", c.need)
	}
}
