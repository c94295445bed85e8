package command

import (
	"fmt"
	"path/filepath"

	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/config"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/vault"
)

// agentHCL is the configuration an agent of this setup needs. It is read back by
// the agent's own parser, so what is printed works.
func agentHCL(client *vault.Client, s *setupCommand, files agentFiles) (string, error) {
	roleID, err := filepath.Abs(files.roleID())
	if err != nil {
		return "", fmt.Errorf("name role-id file: %w", err)
	}
	secretID, err := filepath.Abs(files.secretID())
	if err != nil {
		return "", fmt.Errorf("name secret-id file: %w", err)
	}
	file := hclwrite.NewEmptyFile()
	top := file.Body()
	top.SetAttributeValue("name", cty.StringVal(s.setup.Agent.Name))
	top.AppendNewline()
	v := top.AppendNewBlock("vault", nil).Body()
	v.SetAttributeValue("address", cty.StringVal(client.Address()))
	if s.agentCACert != "" {
		v.SetAttributeValue("ca_cert", cty.StringVal(s.agentCACert))
	}
	if s.vault.namespace != "" {
		v.SetAttributeValue("namespace", cty.StringVal(s.vault.namespace))
	}
	v.SetAttributeValue("mount", cty.StringVal(string(client.Mount())))
	v.AppendNewline()
	a := v.AppendNewBlock("approle", nil).Body()
	a.SetAttributeValue("mount", cty.StringVal(s.setup.AppRolePath))
	a.SetAttributeValue("role_id_file", cty.StringVal(roleID))
	a.SetAttributeValue("secret_id_file", cty.StringVal(secretID))
	a.SetAttributeValue("wrapped", cty.True)
	a.SetAttributeValue("remove_secret_id_after_read", cty.True)
	a.SetAttributeValue("keep_token", cty.BoolVal(s.keepToken))
	top.AppendNewline()
	top.AppendNewBlock("sandbox", nil).Body().SetAttributeValue("tools_image", cty.StringVal(s.toolsImage))

	text := file.Bytes()
	if _, err := config.Parse("agent.hcl", text); err != nil {
		return "", usageError("these options make no configuration an agent can use: %v", err)
	}
	return string(text), nil
}
