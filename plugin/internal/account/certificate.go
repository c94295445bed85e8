package account

import (
	"crypto/tls"
	"crypto/x509"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Authorities reads the PEM certificates of a field of the configuration.
func Authorities(field, text string) (*x509.CertPool, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(text)) {
		return nil, &FieldError{Field: field, Reason: "holds no PEM certificate"}
	}
	return roots, nil
}

// ClientCertificates reads the fields tls_certificate and private_key, both PEM: one
// certificate, or none when neither is set.
func ClientCertificates(certificate string, key wire.Secret) ([]tls.Certificate, error) {
	if certificate == "" && key.Empty() {
		return nil, nil
	}
	if certificate == "" || key.Empty() {
		return nil, &FieldError{Field: "tls_certificate", Reason: "tls_certificate and private_key are needed together"}
	}
	pair, err := tls.X509KeyPair([]byte(certificate), []byte(key.Reveal()))
	if err != nil {
		return nil, &FieldError{Field: "tls_certificate", Reason: "tls_certificate and private_key are not a PEM key pair"}
	}
	return []tls.Certificate{pair}, nil
}
