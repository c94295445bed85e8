package stack

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/vault/api"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// setup lets dbops setup make the ACL policies and the agent's identity, and
// writes the agent's configuration.
func (s *Stack) setup() {
	s.T.Helper()
	stdout, stderr, status := s.CLI(s.Vault.RootToken, "setup", "-mount="+string(s.mount), "-agent="+AgentName, "-out="+s.Dir)
	if status != 0 {
		s.T.Fatalf("dbops setup ended with %d:\n%s%s", status, stdout, stderr)
	}
	s.AgentConfig = s.WriteAgentConfig(AgentName, s.opts.MaxOperations, s.opts.AgentConfig)
}

// WriteAgentConfig writes the configuration of an agent whose identity dbops
// setup put into s.Dir, and returns its path.
func (s *Stack) WriteAgentConfig(name string, maxOperations int, more string) string {
	s.T.Helper()
	if maxOperations == 0 {
		maxOperations = 1
	}
	s.agents = append(s.agents, name)
	path := filepath.Join(s.Dir, name+".hcl")
	text := fmt.Sprintf(`name           = %q
state_dir      = %q
run_dir        = %q
max_operations = %d
log_level      = "debug"

vault {
  address = %q
  mount   = %q

  approle {
    mount          = "approle"
    role_id_file   = %q
    secret_id_file = %q
    wrapped        = true
    keep_token     = true
  }
}

sandbox {
  tools_image = %q
}
%s
`, name, filepath.Join(s.Dir, name, "state"), s.agentRunDir(name), maxOperations, s.Vault.Address, s.mount,
		filepath.Join(s.Dir, name+".role-id"), filepath.Join(s.Dir, name+".wrapped-secret-id"),
		testenv.Image(s.T, testenv.PartTools), more)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.T.Fatalf("write agent.hcl: %v", err)
	}
	return path
}

// StartAgent starts the agent.
func (s *Stack) StartAgent(env ...string) {
	s.T.Helper()
	binary := testenv.Agent(s.T)
	if s.opts.Faults {
		binary = testenv.FaultAgent(s.T)
	}
	s.Agent = testenv.StartAgent(s.T, binary, s.AgentConfig, append(append([]string{}, s.opts.AgentEnv...), env...)...)
}

// AgentIdentity makes the identity of another agent and logs in as it, for tests
// that speak the work protocol by hand.
func (s *Stack) AgentIdentity(name string) *api.Client {
	s.T.Helper()
	stdout, stderr, status := s.CLI(s.Vault.RootToken, "setup", "-mount="+string(s.mount), "-agent="+name, "-out="+s.Dir)
	if status != 0 {
		s.T.Fatalf("dbops setup ended with %d:\n%s%s", status, stdout, stderr)
	}
	role := "auth/approle/role/" + name
	roleID, err := s.Vault.Client.Logical().Read(role + "/role-id")
	if err != nil {
		s.T.Fatalf("role-id of %s: %v", name, err)
	}
	secretID, err := s.Vault.Client.Logical().Write(role+"/secret-id", nil)
	if err != nil {
		s.T.Fatalf("secret-id of %s: %v", name, err)
	}
	login, err := s.Vault.NewClient("").Logical().Write("auth/approle/login", map[string]any{
		"role_id": roleID.Data["role_id"], "secret_id": secretID.Data["secret_id"],
	})
	if err != nil {
		s.T.Fatalf("log in as %s: %v", name, err)
	}
	return s.Vault.NewClient(login.Auth.ClientToken)
}
