package plugin

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strconv"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// credentialRSA makes a login authenticate by a key pair.
const credentialRSA = "rsa_private_key"

// storedCredential is what a login authenticates with, as it stands in storage.
type storedCredential struct {
	Password   string `json:"password,omitempty"`
	PrivateKey string `json:"rsa_private_key,omitempty"` // PEM, PKCS #8
}

func (s storedCredential) empty() bool { return s == storedCredential{} }

func (s storedCredential) password() wire.Secret { return wire.NewSecret(s.Password) }

// request asks a driver to make s the credential of username.
func (s storedCredential) request(username string, statements []string) (account.RotateRequest, error) {
	request := account.RotateRequest{Username: username, Password: s.password(), Statements: statements}
	if s.PrivateKey == "" {
		return request, nil
	}
	block, _ := pem.Decode([]byte(s.PrivateKey))
	if block == nil {
		return request, errors.New("the stored private key is not PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return request, errors.New("the stored private key cannot be read")
	}
	pair, ok := key.(*rsa.PrivateKey)
	if !ok {
		return request, errors.New("the stored private key is not an RSA key")
	}
	public, err := x509.MarshalPKIXPublicKey(&pair.PublicKey)
	if err != nil {
		return request, fmt.Errorf("encode public key: %w", err)
	}
	request.PublicKey = pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})
	return request, nil
}

// newCredential makes a credential of the role's type.
func (b *backend) newCredential(ctx context.Context, c *connection, r *staticRole) (storedCredential, error) {
	if r.CredentialType == credentialRSA {
		return newPrivateKey(r.CredentialConfig)
	}
	password, err := b.newPassword(ctx, r.passwordPolicy(c))
	return storedCredential{Password: password.Reveal()}, err
}

// passwordPolicy is the role's own or its connection's.
func (r *staticRole) passwordPolicy(c *connection) string {
	if own := r.CredentialConfig[configPasswordPolicy]; own != "" {
		return own
	}
	return c.PasswordPolicy
}

func newPrivateKey(config map[string]string) (storedCredential, error) {
	bits, err := keyBits(config)
	if err != nil {
		return storedCredential{}, err
	}
	pair, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		return storedCredential{}, fmt.Errorf("make key: %w", err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(pair)
	if err != nil {
		return storedCredential{}, fmt.Errorf("encode key: %w", err)
	}
	return storedCredential{PrivateKey: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}))}, nil
}

// keyBits is the length of a role's key.
func keyBits(config map[string]string) (int, error) {
	switch text := config["key_bits"]; text {
	case "":
		return 2048, nil
	case "2048", "3072", "4096":
		return strconv.Atoi(text)
	default:
		return 0, invalidField("credential_config", "key_bits is 2048, 3072 or 4096")
	}
}

// checkStaticCredential refuses a type or settings that a static role cannot have.
func checkStaticCredential(kind string, config map[string]string) error {
	allowed := map[string][]string{credentialPassword: {configPasswordPolicy}, credentialRSA: {"key_bits", "format"}}[kind]
	if allowed == nil {
		return invalidField("credential_type", "%q is not supported; supported are %s and %s", kind, credentialPassword, credentialRSA)
	}
	for key := range config {
		known := false
		for _, name := range allowed {
			known = known || name == key
		}
		if !known {
			return invalidField("credential_config", "has no key %q for %s", key, kind)
		}
	}
	if kind == credentialRSA {
		if format := config["format"]; format != "" && format != "pkcs8" {
			return invalidField("credential_config", "format is pkcs8")
		}
		if _, err := keyBits(config); err != nil {
			return err
		}
	}
	return nil
}
