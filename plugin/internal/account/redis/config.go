// Package redis manages logins (ACL users) on Redis 6 and newer and on Valkey.
//
// A login is one ACL user. Its password goes to the server as a hash, so neither
// MONITOR nor ACL LOG nor the server's files ever hold it. Where the server keeps
// its users in a file, each change is saved there; see [Driver].
package redis

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Timeouts of every call. They are generous for a healthy server; what is dead
// is found out by them.
const (
	connectTimeout   = 5 * time.Second
	statementTimeout = 10 * time.Second // a save rewrites a file and syncs it
	identityTimeout  = 2 * time.Second
)

const (
	// defaultSessions is how many sessions a driver opens at most.
	defaultSessions = 4
	// idleTime is how long a session nobody needs is kept.
	idleTime = 5 * time.Minute
)

// Config says how to reach a server.
type Config struct {
	Host     string
	Port     int
	Username string // empty: the user default
	Password wire.Secret

	TLS bool
	// InsecureTLS takes any certificate of the server.
	InsecureTLS bool
	// CA is PEM; without it the system's authorities are trusted.
	CA          string
	Certificate string // PEM, with PrivateKey
	PrivateKey  wire.Secret
	// ServerName is what the server's certificate must be for; empty: Host.
	ServerName string

	MaxSessions int // 0: 4
}

// options checks c and turns it into what go-redis needs.
func (c Config) options() (*redis.Options, error) {
	switch {
	case c.Host == "":
		return nil, &account.FieldError{Field: "host", Reason: "is required"}
	case strings.ContainsAny(c.Host, "/@ \t\r\n"):
		return nil, &account.FieldError{Field: "host", Reason: "is not a host name or address"}
	case c.Port < 1 || c.Port > 65535:
		return nil, &account.FieldError{Field: "port", Reason: "is not between 1 and 65535"}
	case c.Password.Empty() && c.Username != "":
		// The client library would log in as default without one.
		return nil, &account.FieldError{Field: "password", Reason: "is required"}
	}
	secure, err := c.tlsConfig()
	if err != nil {
		return nil, err
	}
	sessions := defaultSessions
	if c.MaxSessions > 0 {
		sessions = min(c.MaxSessions, 1000)
	}
	return &redis.Options{
		Addr:     net.JoinHostPort(c.Host, strconv.Itoa(c.Port)),
		Username: c.Username, Password: c.Password.Reveal(), TLSConfig: secure,
		Protocol: 2, DisableIdentity: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		// Whether a command is sent again is decided here, by what it does.
		MaxRetries: -1, DialerRetries: 1,
		DialTimeout: connectTimeout, ReadTimeout: statementTimeout, WriteTimeout: statementTimeout, PoolTimeout: connectTimeout,
		ContextTimeoutEnabled: true,
		PoolSize:              sessions, MaxActiveConns: sessions,
		// One pool for everything: the limit is one limit.
		PipelinePoolSize: -1,
		ConnMaxIdleTime:  idleTime,
	}, nil
}

// tlsConfig is nil without TLS.
func (c Config) tlsConfig() (*tls.Config, error) {
	if !c.TLS {
		if c.CA != "" || c.Certificate != "" || !c.PrivateKey.Empty() || c.InsecureTLS {
			return nil, &account.FieldError{Field: "tls", Reason: "is not set although TLS settings are; the password would travel in clear"}
		}
		return nil, nil
	}
	config := &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: c.ServerName,
		InsecureSkipVerify: c.InsecureTLS, //nolint:gosec // asked for by insecure_tls
	}
	if config.ServerName == "" {
		config.ServerName = c.Host
	}
	if c.CA != "" {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM([]byte(c.CA)) {
			return nil, &account.FieldError{Field: "ca_cert", Reason: "holds no PEM certificate"}
		}
	}
	if c.Certificate != "" || !c.PrivateKey.Empty() {
		if c.Certificate == "" || c.PrivateKey.Empty() {
			return nil, &account.FieldError{Field: "tls_certificate", Reason: "tls_certificate and private_key are needed together"}
		}
		pair, err := tls.X509KeyPair([]byte(c.Certificate), []byte(c.PrivateKey.Reveal()))
		if err != nil {
			return nil, &account.FieldError{Field: "tls_certificate", Reason: "tls_certificate and private_key are not a PEM key pair"}
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}
