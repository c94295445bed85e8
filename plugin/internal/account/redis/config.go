// Package redis manages logins (ACL users) on Redis 6 and newer and on Valkey.
//
// A login is one ACL user. Its password goes to the server as a hash, so neither
// MONITOR nor ACL LOG nor the server's files ever hold it. Where the server keeps
// its users in a file, each change is saved there; see [Driver].
package redis

import (
	"crypto/tls"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// idleTime is how long a session nobody needs is kept.
const idleTime = 5 * time.Minute

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
	sessions := account.Sessions(c.MaxSessions)
	return &redis.Options{
		Addr:     net.JoinHostPort(c.Host, strconv.Itoa(c.Port)),
		Username: c.Username, Password: c.Password.Reveal(), TLSConfig: secure,
		Protocol: 2, DisableIdentity: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		// Whether a command is sent again is decided here, by what it does.
		MaxRetries: -1, DialerRetries: 1,
		DialTimeout: account.ConnectTimeout, ReadTimeout: account.StatementTimeout, WriteTimeout: account.StatementTimeout, PoolTimeout: account.ConnectTimeout,
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
	var err error
	if c.CA != "" {
		if config.RootCAs, err = account.Authorities("ca_cert", c.CA); err != nil {
			return nil, err
		}
	}
	config.Certificates, err = account.ClientCertificates(c.Certificate, c.PrivateKey)
	if err != nil {
		return nil, err
	}
	return config, nil
}
