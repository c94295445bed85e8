// Package postgres manages logins on PostgreSQL 11 and newer.
package postgres

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/dialect"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Sessions are kept for the next login, for a new one costs more processor time
// than the login itself. Whoever wants to rename their database has them ended by
// [Driver.Leave].
const (
	idleTime   = time.Minute
	idleChecks = 5 * time.Second
)

// PasswordAuthentication is in which form a new password goes to the server.
type PasswordAuthentication string

// The forms. A SCRAM verifier is computed here, so the server (and its log)
// never sees the password.
const (
	SCRAM PasswordAuthentication = "scram-sha-256"
	Plain PasswordAuthentication = "password"
)

// Config says how to reach a server.
type Config struct {
	// URL is the connection string, with placeholders for the login.
	URL      string
	Username string
	Password wire.Secret
	// RawLogin puts the login into URL as it is, already escaped by the caller.
	RawLogin bool

	MaxSessions int           // 0: 4
	MaxLifetime time.Duration // of a session; 0: no limit
	// NoIdle closes each session right after use.
	NoIdle bool

	CA          string // PEM
	Certificate string // PEM, with PrivateKey
	PrivateKey  wire.Secret

	PasswordAuthentication PasswordAuthentication // empty: SCRAM
}

// poolConfig checks c and turns it into what pgx needs.
func (c Config) poolConfig() (*pgxpool.Config, error) {
	built, err := dialect.BuildPostgresDSN(c.URL, c.Username, c.Password.Reveal(), c.RawLogin)
	if err != nil {
		return nil, &account.FieldError{Field: "connection_url", Reason: err.Error()}
	}
	pool, err := pgxpool.ParseConfig(built)
	if err != nil {
		// pgx's error repeats the string, and its redaction is best effort.
		return nil, &account.FieldError{Field: "connection_url", Reason: "a setting in it has no valid value"}
	}
	conn := pool.ConnConfig
	conn.ConnectTimeout = account.ConnectTimeout
	// One round trip per query, and no prepared statements left in a pooler.
	conn.DefaultQueryExecMode = pgx.QueryExecModeExec
	if conn.User == "" {
		conn.User = c.Username
	}
	if conn.Password == "" {
		conn.Password = c.Password.Reveal()
	}
	if conn.RuntimeParams["application_name"] == "" {
		conn.RuntimeParams["application_name"] = "dbops"
	}
	conn.RuntimeParams["timezone"] = "UTC"
	// Rendering relies on it.
	conn.RuntimeParams["standard_conforming_strings"] = "on"
	// A warning of the server is nothing a caller can act on.
	conn.OnNotice = func(*pgconn.PgConn, *pgconn.Notice) {}
	if err := c.configureTLS(&conn.Config); err != nil {
		return nil, err
	}

	pool.MinConns, pool.MinIdleConns = 0, 0
	pool.MaxConns = int32(account.Sessions(c.MaxSessions))
	pool.MaxConnIdleTime, pool.HealthCheckPeriod = idleTime, idleChecks
	if c.MaxLifetime > 0 {
		pool.MaxConnLifetime = c.MaxLifetime
	}
	if c.NoIdle {
		pool.AfterRelease = func(*pgx.Conn) bool { return false }
	}
	return pool, nil
}

// configureTLS puts the inline certificates into the TLS settings that the URL's
// sslmode led to.
func (c Config) configureTLS(conn *pgconn.Config) error {
	if c.CA == "" && c.Certificate == "" && c.PrivateKey.Empty() {
		return nil
	}
	if conn.TLSConfig == nil && len(conn.Fallbacks) == 0 {
		return &account.FieldError{Field: "connection_url", Reason: "sslmode is disable although certificates are configured"}
	}
	var roots *x509.CertPool
	if c.CA != "" {
		var err error
		if roots, err = account.Authorities("tls_ca", c.CA); err != nil {
			return err
		}
	}
	certificates, err := account.ClientCertificates(c.Certificate, c.PrivateKey)
	if err != nil {
		return err
	}
	configs := []*tls.Config{conn.TLSConfig}
	for _, fallback := range conn.Fallbacks {
		configs = append(configs, fallback.TLSConfig)
	}
	for _, config := range configs {
		if config == nil {
			continue
		}
		config.Certificates = certificates
		if roots == nil {
			continue
		}
		config.RootCAs = roots
		if config.InsecureSkipVerify {
			// As libpq: with a root certificate at hand, require means
			// verify-ca. The server's name is not looked at.
			config.VerifyConnection = func(state tls.ConnectionState) error { return verifyChain(state, roots) }
		}
	}
	return nil
}

func verifyChain(state tls.ConnectionState, roots *x509.CertPool) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("the server sent no certificate")
	}
	options := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
	for _, certificate := range state.PeerCertificates[1:] {
		options.Intermediates.AddCert(certificate)
	}
	if _, err := state.PeerCertificates[0].Verify(options); err != nil {
		return fmt.Errorf("verify the server's certificate: %w", err)
	}
	return nil
}
