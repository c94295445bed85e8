package vault

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// DialUser makes a client for a person: configured as the vault program is, with
// VAULT_TOKEN or, without that, the token that vault login leaves in the file
// .vault-token of the home directory.
func DialUser(config Config, home string) (*Client, error) {
	client, err := Dial(config)
	if err != nil {
		return nil, &wire.Error{Code: wire.CodeConfig, Reason: oneLine(err.Error())}
	}
	if client.token.Load().Empty() {
		token, err := savedToken(home)
		if err != nil {
			return nil, err
		}
		client.SetToken(token)
	}
	return client, nil
}

func savedToken(home string) (wire.Secret, error) {
	const hint = "log in with: vault login"
	if home == "" {
		return wire.Secret{}, &wire.Error{Code: wire.CodeConfig, Reason: "no token: VAULT_TOKEN is not set and there is no home directory", Hint: hint}
	}
	content, err := os.ReadFile(filepath.Join(home, ".vault-token"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return wire.Secret{}, &wire.Error{Code: wire.CodeConfig, Reason: fmt.Sprintf("read saved token: %v", err), Hint: hint}
	}
	token := strings.TrimSpace(string(content))
	if token == "" {
		return wire.Secret{}, &wire.Error{Code: wire.CodeConfig, Reason: "no token: neither VAULT_TOKEN nor ~/.vault-token", Hint: hint}
	}
	return wire.NewSecret(token), nil
}

// doAs is [Client.do] for a person. An agent that Vault itself refuses waits until
// it has logged in again; for a person such a refusal stands.
func (c *Client) doAs(ctx context.Context, r request, out any) (answer, error) {
	a, err := c.do(ctx, r, out)
	var refused *Error
	if errors.As(err, &refused) && refused.bare && refused.Status == http.StatusForbidden {
		refused.Wire = &wire.Error{
			Code: wire.CodeDenied, Reason: "Vault does not let this token " + r.do,
			Hint: "the token has ended (vault token lookup), or its ACL policies do not grant " + r.path,
		}
	}
	return a, err
}
