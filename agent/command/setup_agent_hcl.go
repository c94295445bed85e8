package command

import (
	"fmt"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/vault"
)

// agentHCL is the configuration an agent of this setup needs.
func agentHCL(client *vault.Client, s vault.Setup, files agentFiles) (string, error) {
	return fmt.Sprintf("name = %q\n", s.Agent.Name), nil
}
