package postgres

import (
	"crypto/tls"
	"crypto/x509"
	"net"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// useTLS gives config what sslmode asks for, with libpq's meaning of each word.
// Host stays the name of the real server: the certificate is checked against it
// whatever the connection is carried by.
func useTLS(config *pgconn.Config, e wire.Endpoint) error {
	mode := e.SSLMode
	if mode == "" {
		mode = "prefer"
	}
	config.TLSConfig, config.Fallbacks = nil, nil
	if mode == "disable" {
		return nil
	}
	secure, err := tlsConfig(mode, e)
	if err != nil {
		return err
	}
	fallback := &pgconn.FallbackConfig{Host: config.Host, Port: config.Port}
	switch mode {
	case "allow":
		fallback.TLSConfig = secure
		config.Fallbacks = []*pgconn.FallbackConfig{fallback}
	case "prefer":
		config.TLSConfig = secure
		config.Fallbacks = []*pgconn.FallbackConfig{fallback}
	default:
		config.TLSConfig = secure
	}
	return nil
}

func tlsConfig(mode string, e wire.Endpoint) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if net.ParseIP(e.Host) == nil {
		config.ServerName = e.Host
	}
	if e.RootCA != "" {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM([]byte(e.RootCA)) {
			return nil, &operation.Error{
				Code: wire.CodeInvalid, Reason: "the root CA of connection " + e.Connection + " holds no certificate",
				Hint: "give it as PEM",
			}
		}
	}
	switch mode {
	case "verify-full":
		config.ServerName = e.Host
	case "verify-ca":
		checkChainOnly(config)
	case "require":
		// As libpq: with a root at hand, require verifies the chain.
		if e.RootCA != "" {
			checkChainOnly(config)
			break
		}
		config.InsecureSkipVerify = true
	case "allow", "prefer":
		config.InsecureSkipVerify = true
	default:
		return nil, &operation.Error{
			Code: wire.CodeInvalid, Reason: "connection " + e.Connection + " has an unknown sslmode",
			Hint: "use disable, allow, prefer, require, verify-ca or verify-full",
		}
	}
	return config, nil
}

// checkChainOnly verifies the chain and not the name.
func checkChainOnly(config *tls.Config) {
	roots := config.RootCAs
	config.InsecureSkipVerify = true
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return errCertificate
		}
		options := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
		for _, certificate := range state.PeerCertificates[1:] {
			options.Intermediates.AddCert(certificate)
		}
		if _, err := state.PeerCertificates[0].Verify(options); err != nil {
			return errCertificate
		}
		return nil
	}
}
