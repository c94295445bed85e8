package plugin

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/vault/sdk/helper/certutil"
	"github.com/hashicorp/vault/sdk/helper/template"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// credentialCertificate makes a login authenticate by a certificate that is issued
// with it.
const credentialCertificate = "client_certificate"

// Keys of a certificate's credential_config.
const (
	configCommonName    = "common_name_template"
	configCACert        = "ca_cert"
	configCAPrivateKey  = "ca_private_key"
	configKeyType       = "key_type"
	configKeyBits       = "key_bits"
	configSignatureBits = "signature_bits"
)

const (
	// defaultCommonName is what servers compare with the login's name.
	defaultCommonName = "{{.Username}}"
	// longestCommonName is X.509's own limit, in characters.
	longestCommonName = 64
	// notBeforeSlack lets clocks differ.
	notBeforeSlack = 30 * time.Second
)

// commonNameData is what a common_name_template may use: what a username_template
// may, and the login's name.
type commonNameData struct {
	usernameData
	Username string
}

// certificateIssuer issues client certificates as a credential_config says.
type certificateIssuer struct {
	authority     *certutil.CAInfoBundle
	caCert        string
	commonName    string
	keyType       string
	keyBits       int
	signatureBits int
}

// newCertificateIssuer checks a credential_config; caKey is the authority's key,
// PEM, which is kept apart from it.
func newCertificateIssuer(config map[string]string, caKey wire.Secret) (*certificateIssuer, error) {
	err := refuseKeys(config, credentialCertificate,
		configCommonName, configCACert, configCAPrivateKey, configKeyType, configKeyBits, configSignatureBits)
	if err != nil {
		return nil, err
	}
	i := &certificateIssuer{caCert: config[configCACert], commonName: config[configCommonName], keyType: config[configKeyType]}
	if i.commonName == "" {
		i.commonName = defaultCommonName
	}
	if _, err := parseCommonName(i.commonName); err != nil {
		return nil, err
	}
	sizes := map[string][]int{"rsa": {2048, 3072, 4096}, "ec": {256, 224, 384, 521}, "ed25519": {0}}
	if sizes[i.keyType] == nil {
		return nil, invalidField("credential_config", "%s is one of %s", configKeyType, strings.Join(slices.Sorted(maps.Keys(sizes)), ", "))
	}
	if i.keyBits, err = oneOf(config, configKeyBits, sizes[i.keyType]); err != nil {
		return nil, err
	}
	if i.signatureBits, err = oneOf(config, configSignatureBits, []int{256, 384, 512}); err != nil {
		return nil, err
	}
	i.authority, err = parseAuthority(i.caCert, caKey)
	return i, err
}

// oneOf reads a number; the first allowed one is the default.
func oneOf(config map[string]string, key string, allowed []int) (int, error) {
	text := config[key]
	if text == "" || text == "0" {
		return allowed[0], nil
	}
	if n, err := strconv.Atoi(text); err == nil && slices.Contains(allowed, n) {
		return n, nil
	}
	return 0, invalidField("credential_config", "%s is one of %s", key, strings.Trim(fmt.Sprint(allowed), "[]"))
}

// parseAuthority reads the certificate and key that sign. Its errors repeat
// nothing of them.
func parseAuthority(cert string, key wire.Secret) (*certutil.CAInfoBundle, error) {
	if cert == "" {
		return nil, invalidField("credential_config", "%s is required: the certificate of the authority that signs, PEM", configCACert)
	}
	if key.Empty() {
		return nil, invalidField("credential_config", "%s is required: the key of %s, PEM", configCAPrivateKey, configCACert)
	}
	parsedCert, err := certutil.ParsePEMBundle(cert)
	if err != nil || parsedCert.Certificate == nil || parsedCert.PrivateKey != nil {
		return nil, invalidField("credential_config", "%s holds no PEM certificate, or more than certificates", configCACert)
	}
	if !parsedCert.Certificate.IsCA {
		return nil, invalidField("credential_config", "%s is no authority's certificate", configCACert)
	}
	parsedKey, err := certutil.ParsePEMBundle(key.Reveal())
	if err != nil || parsedKey.PrivateKey == nil {
		return nil, invalidField("credential_config", "%s holds no PEM private key without a passphrase", configCAPrivateKey)
	}
	same, err := certutil.ComparePublicKeysAndType(parsedCert.Certificate.PublicKey, parsedKey.PrivateKey.Public())
	if err != nil || !same {
		return nil, invalidField("credential_config", "%s is not the key of %s", configCAPrivateKey, configCACert)
	}
	parsedCert.PrivateKey, parsedCert.PrivateKeyType = parsedKey.PrivateKey, parsedKey.PrivateKeyType
	parsedCert.PrivateKeyBytes, parsedCert.PrivateKeyFormat = parsedKey.PrivateKeyBytes, parsedKey.PrivateKeyFormat
	return &certutil.CAInfoBundle{ParsedCertBundle: *parsedCert}, nil
}

// parseCommonName refuses a template that can never be used.
func parseCommonName(text string) (template.StringTemplate, error) {
	parsed, err := template.NewTemplate(template.Template(text))
	if err != nil {
		return parsed, invalidField("credential_config", "%s cannot be parsed: %s", configCommonName, err)
	}
	_, err = parsed.Generate(commonNameData{usernameData: usernameData{DisplayName: "token", RoleName: "role"}, Username: "user"})
	if err != nil {
		return parsed, invalidField("credential_config", "%s cannot be used: %s", configCommonName, err)
	}
	return parsed, nil
}

// config is what is stored and shown: the settings with what they left to us. The
// authority's key is not among them.
func (i *certificateIssuer) config() map[string]string {
	return map[string]string{
		configCommonName: i.commonName, configCACert: i.caCert, configKeyType: i.keyType,
		configKeyBits: strconv.Itoa(i.keyBits), configSignatureBits: strconv.Itoa(i.signatureBits),
	}
}

// name makes the common name of one certificate.
func (i *certificateIssuer) name(data commonNameData) (string, error) {
	parsed, err := parseCommonName(i.commonName)
	if err != nil {
		return "", err
	}
	name, err := parsed.Generate(data)
	if err != nil {
		return "", invalidField("credential_config", "%s cannot be used: %s", configCommonName, err)
	}
	name = strings.ReplaceAll(name, "<no value>", "")
	if name == "" || utf8.RuneCountInString(name) > longestCommonName || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		return "", invalidField("credential_config", "%s made a name that is not of 1 to %d printable characters", configCommonName, longestCommonName)
	}
	return name, nil
}

// issue makes a key and a certificate for it that ends at notAfter.
func (i *certificateIssuer) issue(commonName string, notAfter time.Time) (leasedCredential, error) {
	if end := i.authority.Certificate.NotAfter; notAfter.After(end) {
		return leasedCredential{}, &wire.Error{
			Code: wire.CodeInvalid, Field: "credential_config",
			Reason: fmt.Sprintf("%s ends at %s, before the login would", configCACert, end.UTC().Format(time.RFC3339)),
			Hint:   "ask for a shorter ttl, or write a new authority",
		}
	}
	made, err := certutil.CreateCertificate(&certutil.CreationBundle{
		Params: &certutil.CreationParameters{
			Subject: pkix.Name{CommonName: commonName}, KeyType: i.keyType, KeyBits: i.keyBits, SignatureBits: i.signatureBits,
			NotAfter: notAfter, NotBeforeDuration: notBeforeSlack,
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: certutil.ClientAuthExtKeyUsage,
			URLs: &certutil.URLEntries{},
		},
		SigningBundle: i.authority,
	})
	if err != nil {
		return leasedCredential{}, fmt.Errorf("issue client certificate: %w", err)
	}
	encoded, err := made.ToCertBundle()
	if err != nil {
		return leasedCredential{}, fmt.Errorf("encode client certificate: %w", err)
	}
	return leasedCredential{
		PrivateKey: wire.NewSecret(encoded.PrivateKey), CommonName: commonName,
		Certificate: encoded.Certificate, KeyType: string(encoded.PrivateKeyType),
	}, nil
}

// newCertificateCredential issues the certificate of a login that ends with its
// lease's first ttl.
func (b *backend) newCertificateCredential(role *role, r accountRequest, issued issuedAccount) (leasedCredential, error) {
	issuer, err := newCertificateIssuer(role.CredentialConfig, wire.NewSecret(role.CAPrivateKey))
	if err != nil {
		return leasedCredential{}, err
	}
	data := commonNameData{usernameData: usernameData{DisplayName: r.DisplayName, RoleName: r.Role}, Username: issued.Username}
	if id := b.accounts.mountID.Load(); id != nil {
		data.MountID = *id
	}
	if err := b.usernameIdentity(issuer.commonName, r.EntityID, &data.usernameData); err != nil {
		return leasedCredential{}, err
	}
	commonName, err := issuer.name(data)
	if err != nil {
		return leasedCredential{}, err
	}
	return issuer.issue(commonName, b.now().Add(issued.TTL+expirySlack))
}
