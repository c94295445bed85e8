package vault

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

var update = flag.Bool("update", false, "write the golden files anew")

// The text of each policy is what operators review and what grants rights: any
// change of it must be seen in a diff.
func TestACLPolicyTexts(t *testing.T) {
	t.Parallel()
	for _, duty := range Duties() {
		t.Run(string(duty), func(t *testing.T) {
			t.Parallel()
			text, err := ACLPolicy(duty, wire.DefaultMount, "auth_approle_1a2b3c4d")
			require.NoError(t, err)
			golden := filepath.Join("testdata", "acl", string(duty)+".hcl")
			if *update {
				require.NoError(t, os.MkdirAll(filepath.Dir(golden), 0o755))
				require.NoError(t, os.WriteFile(golden, []byte(text), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), text)
			_, diagnostics := hclparse.NewParser().ParseHCL([]byte(text), golden)
			require.False(t, diagnostics.HasErrors(), "%v", diagnostics)
		})
	}
}

// No person's policy reaches an agent's work protocol, where passwords are
// handed out, or creds/, but for the two duties that are about data: those reach
// roles whose names say what they give.
func TestACLPolicy_NoPersonReachesPasswords(t *testing.T) {
	t.Parallel()
	logins := map[Duty][]string{
		DutyAnalyst:   {"dbops/creds/readonly-*"},
		DutyDeveloper: {"dbops/creds/readonly-*", "dbops/creds/readwrite-*"},
	}
	for _, duty := range Duties() {
		for _, rule := range aclRules(duty, "dbops", "accessor") {
			if duty != DutyAgent {
				if strings.Contains(rule.path, "creds") {
					require.Contains(t, logins[duty], rule.path, duty)
				}
				require.NotContains(t, rule.path, "agents/*", duty)
				require.False(t, strings.HasPrefix(rule.path, "dbops/agents/") && strings.Contains(rule.path, "operations"), duty)
			}
			require.NotEqual(t, "dbops/*", rule.path, duty)
		}
	}
}

// A scraper reads one path: who steals its token learns counts.
func TestACLPolicy_MetricsReadsOnePath(t *testing.T) {
	t.Parallel()
	require.Equal(t, []aclRule{{path: "team/dbops/metrics", capabilities: []string{"read"}}}, aclRules(DutyMetrics, "team/dbops", ""))
}

// Another mount has its own policies and its own paths.
func TestACLPolicy_OtherMount(t *testing.T) {
	t.Parallel()
	text, err := ACLPolicy(DutyRequester, "/team/dbops/", "")
	require.NoError(t, err)
	require.Contains(t, text, `path "team/dbops/clone/+/+"`)
	require.Contains(t, text, "# team-dbops-requester:")
}

// An unknown duty and an agent's policy without an accessor are refused: an empty
// accessor would make a template that matches nobody, or worse.
func TestACLPolicy_Refusals(t *testing.T) {
	t.Parallel()
	_, err := ACLPolicy("root", wire.DefaultMount, "x")
	require.Equal(t, wire.CodeUsage, CodeOf(err))
	_, err = ACLPolicy(DutyAgent, wire.DefaultMount, "")
	require.Equal(t, wire.CodeUsage, CodeOf(err))
}

// Names of policies are made of the mount's and the duty's, so that those of two
// mounts can be equal. Whose a policy is, its text tells.
func TestACLPolicy_OfAnotherMount(t *testing.T) {
	t.Parallel()
	type owner struct {
		mount wire.Mount
		duty  Duty
	}
	owners := map[string][]owner{}
	for _, mount := range []wire.Mount{"dbops", "dbops-connection", "dbops-policy", "team/dbops", "team-dbops"} {
		for _, duty := range Duties() {
			name := duty.PolicyName(mount)
			owners[name] = append(owners[name], owner{mount, duty})
		}
	}
	var shared int
	for name, all := range owners {
		for _, mine := range all {
			for _, theirs := range all {
				text, err := ACLPolicy(theirs.duty, theirs.mount, "accessor")
				require.NoError(t, err)
				require.Equal(t, mine.mount != theirs.mount, ofAnotherMount(text, name, mine.mount), "%s of %v, seen by %v", name, theirs, mine)
				if mine.mount != theirs.mount {
					shared++
				}
			}
		}
	}
	require.Positive(t, shared)
	require.False(t, ofAnotherMount(`path "*" { capabilities = ["read"] }`, "dbops-agent", "dbops"), "what nobody of us wrote is put right")
}
