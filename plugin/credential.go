package plugin

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/vault/sdk/framework"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// credentialPassword makes a login authenticate by a password, the default. The
// other types are [credentialRSA] and [credentialCertificate].
const credentialPassword = "password"

// configPasswordPolicy is the only key of a password's credential_config.
const configPasswordPolicy = "password_policy"

// credentialTypes are those a role can have, in the order of the documentation.
func credentialTypes() []string {
	return []string{credentialPassword, credentialRSA, credentialCertificate}
}

// mergeCredential applies a request's credential_type and credential_config. What
// a request does not name stays; another type begins with settings of its own.
func (r *role) mergeCredential(data *framework.FieldData) error {
	if value, ok := givenField[string](data, "credential_type"); ok {
		if value != r.CredentialType {
			r.CredentialConfig, r.CAPrivateKey = nil, ""
		}
		r.CredentialType = value
	}
	config := maps.Clone(r.CredentialConfig)
	if value, ok := givenField[map[string]string](data, "credential_config"); ok {
		config = maps.Clone(value)
		key := config[configCAPrivateKey]
		if key == "" && config[configCACert] == r.CredentialConfig[configCACert] {
			key = r.CAPrivateKey // what is never shown cannot be sent back
		}
		delete(config, configCAPrivateKey)
		r.CAPrivateKey = key
	}
	var err error
	r.CredentialConfig, err = r.checkCredential(config)
	return err
}

// checkCredential refuses settings the type does not have, and returns them with
// what they leave to us.
func (r *role) checkCredential(config map[string]string) (map[string]string, error) {
	if config == nil {
		config = map[string]string{}
	}
	switch r.CredentialType {
	case credentialPassword:
		return config, checkStaticCredential(r.CredentialType, config)
	case credentialRSA:
		if err := checkStaticCredential(r.CredentialType, config); err != nil {
			return nil, err
		}
		bits, err := keyBits(config)
		return map[string]string{"format": "pkcs8", "key_bits": fmt.Sprint(bits)}, err
	case credentialCertificate:
		issuer, err := newCertificateIssuer(config, wire.NewSecret(r.CAPrivateKey))
		if err != nil {
			return nil, err
		}
		return issuer.config(), nil
	default:
		return nil, invalidField("credential_type", "%q is not supported; supported are %s", r.CredentialType, strings.Join(credentialTypes(), ", "))
	}
}

// shownCredentialConfig is a credential_config as Vault's engine answers it: sizes
// are numbers.
func shownCredentialConfig(config map[string]string) map[string]any {
	shown := make(map[string]any, len(config))
	for key, text := range config {
		shown[key] = text
		if n, err := strconv.Atoi(text); err == nil && (key == configKeyBits || key == configSignatureBits) {
			shown[key] = n
		}
	}
	return shown
}

// refuseKeys refuses keys of credential_config other than those known.
func refuseKeys(config map[string]string, kind string, known ...string) error {
	for _, key := range slices.Sorted(maps.Keys(config)) {
		if !slices.Contains(known, key) {
			return invalidField("credential_config", "has no key %q for a %s; it may have %s", key, kind, strings.Join(known, ", "))
		}
	}
	return nil
}

// leasedCredential is what a new login authenticates with: a password, an RSA key
// or a certificate with its key.
type leasedCredential struct {
	Password wire.Secret
	// PrivateKey is PEM; PublicKey, PEM too, is set for an RSA key only.
	PrivateKey wire.Secret
	PublicKey  []byte
	// CommonName is the certificate's; KeyType its key's.
	CommonName  string
	Certificate string
	KeyType     string
}

// answer is what whoever asked for the login is told, as Vault's engine names it.
func (c leasedCredential) answer(username string) map[string]any {
	told := map[string]any{"username": username}
	switch {
	case c.Certificate != "":
		told[credentialCertificate] = c.Certificate
		told["private_key"] = c.PrivateKey.Reveal()
		told["private_key_type"] = c.KeyType
	case len(c.PublicKey) > 0:
		told[credentialRSA] = c.PrivateKey.Reveal()
	default:
		told["password"] = c.Password.Reveal()
	}
	return told
}

// newLeasedCredential makes what a login of the role authenticates with, and says
// how often a password is to be stretched. issued has the name and the life.
func (b *backend) newLeasedCredential(ctx context.Context, c *connection, role *role, r accountRequest, issued issuedAccount) (leasedCredential, int, error) {
	if r.OperationID != "" && role.CredentialType != credentialPassword {
		return leasedCredential{}, 0, &wire.Error{
			Code:   wire.CodeConflict,
			Reason: fmt.Sprintf("role %q makes logins with a %s; operations need one with a password", role.Name, role.CredentialType),
			Hint:   "give the connection's purposes a role with credential_type=" + credentialPassword,
		}
	}
	switch role.CredentialType {
	case credentialRSA:
		credential, err := newRSACredential(role.CredentialConfig)
		return credential, 0, err
	case credentialCertificate:
		credential, err := b.newCertificateCredential(role, r, issued)
		return credential, 0, err
	}
	policy := c.PasswordPolicy
	if own := role.CredentialConfig[configPasswordPolicy]; own != "" {
		policy = own
	}
	iterations, err := b.iterations(ctx, c, policy, r.OperationID)
	if err != nil {
		return leasedCredential{}, 0, err
	}
	password, err := b.newPassword(ctx, policy)
	return leasedCredential{Password: password}, iterations, err
}

// newRSACredential makes a key pair.
func newRSACredential(config map[string]string) (leasedCredential, error) {
	made, err := newPrivateKey(config)
	if err != nil {
		return leasedCredential{}, err
	}
	pair, err := made.request("", nil)
	return leasedCredential{PrivateKey: wire.NewSecret(made.PrivateKey), PublicKey: pair.PublicKey}, err
}
