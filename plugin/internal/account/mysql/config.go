// Package mysql manages logins on MySQL 5.7.8 and newer and MariaDB 10.2 and newer.
package mysql

import (
	"context"
	"crypto/tls"
	"database/sql/driver"
	"encoding/pem"
	"strings"
	"time"

	client "github.com/go-sql-driver/mysql"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/dialect"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// idleTime is how long a session nobody uses is kept.
const idleTime = 30 * time.Second

// DefaultHost is the host part of accounts that stands for every host.
const DefaultHost = "%"

// sqlMode is the mode of our sessions, whatever the server's is: it decides how
// statements are read, and rendering relies on it. A connection string may set
// another one.
const sqlMode = "STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION"

// Config says how to reach a server.
type Config struct {
	// URL is a connection string of the Go driver for MySQL, with placeholders
	// for the login, which are filled in unescaped.
	URL      string
	Username string
	Password wire.Secret

	MaxSessions int           // 0: 4
	MaxLifetime time.Duration // of a session; 0: no limit
	// NoIdle closes each session right after use.
	NoIdle bool

	CA string // PEM
	// CertificateKey is a client certificate and its key, both PEM.
	CertificateKey wire.Secret
	ServerName     string // empty: the host of URL
	SkipVerify     bool

	// Host is the host part of the accounts that default statements touch, and
	// what {{host}} stands for; empty: every host.
	Host string
}

// wantsTLS reports whether TLS is set up by c rather than by the parameter tls.
func (c Config) wantsTLS() bool {
	return c.CA != "" || !c.CertificateKey.Empty() || c.ServerName != "" || c.SkipVerify
}

// clientConfig checks c and turns it into what the client library needs.
func (c Config) clientConfig() (*client.Config, dialect.MySQLMode, error) {
	var mode dialect.MySQLMode
	if _, err := dialect.ParseMySQLDSN(c.URL); err != nil {
		return nil, mode, &account.FieldError{Field: "connection_url", Reason: err.Error()}
	}
	config, err := client.ParseDSN(c.URL)
	if err != nil {
		// The library's error repeats parts of the string.
		return nil, mode, &account.FieldError{Field: "connection_url", Reason: "a setting in it has no valid value"}
	}
	// Filled in after parsing, so that no character of theirs is taken for syntax.
	fill := strings.NewReplacer("{{username}}", c.Username, "{{password}}", c.Password.Reveal())
	config.User, config.Passwd = fill.Replace(config.User), fill.Replace(config.Passwd)
	if config.User == "" {
		config.User = c.Username
	}
	if config.Passwd == "" {
		config.Passwd = c.Password.Reveal()
	}
	// A server could ask for any file of this host.
	config.AllowAllFiles = false
	// Statements are sent one by one: a value that got out of its quotes after
	// all could not begin another.
	config.MultiStatements = false
	config.InterpolateParams = false
	config.Timeout = account.ConnectTimeout
	config.Logger = &client.NopLogger{}
	if mode, err = setSession(config); err != nil {
		return nil, mode, err
	}
	return config, mode, c.configureTLS(config)
}

// setSession fixes what rendering relies on.
func setSession(config *client.Config) (dialect.MySQLMode, error) {
	var mode dialect.MySQLMode
	if config.Params == nil {
		config.Params = make(map[string]string)
	}
	text := "'" + sqlMode + "'"
	for name, value := range config.Params {
		plain := strings.ToLower(strings.TrimPrefix(strings.ToLower(name), "@@session."))
		switch {
		case plain == "sql_mode":
			text = value
			delete(config.Params, name)
		case strings.HasPrefix(plain, "character_set"), strings.HasPrefix(plain, "collation_"), strings.HasPrefix(plain, "@@"):
			return mode, &account.FieldError{Field: "connection_url", Reason: "the character set cannot be chosen; it is utf8mb4"}
		}
	}
	names, quoted := strings.CutPrefix(text, "'")
	names, closed := strings.CutSuffix(names, "'")
	if !quoted || !closed || strings.ContainsFunc(names, notModeByte) {
		return mode, &account.FieldError{Field: "connection_url", Reason: "sql_mode is not a list of modes in single quotes"}
	}
	for name := range strings.SplitSeq(strings.ToUpper(names), ",") {
		switch name {
		case "ANSI_QUOTES", "ANSI":
			mode.AnsiQuotes = true
		case "NO_BACKSLASH_ESCAPES":
			mode.NoBackslashEscapes = true
		case "DB2", "MAXDB", "MSSQL", "ORACLE", "POSTGRESQL":
			return mode, &account.FieldError{Field: "connection_url", Reason: "sql_mode " + name + " is not supported"}
		}
	}
	config.Params["sql_mode"] = text
	config.Params["time_zone"] = "'+00:00'"
	config.Params["autocommit"] = "1"
	// By default a server waits a day for the lock on a table.
	config.Params["lock_wait_timeout"] = "10"
	config.Params["character_set_client"] = "utf8mb4"
	config.Params["character_set_connection"] = "utf8mb4"
	config.Params["character_set_results"] = "utf8mb4"
	if err := config.Apply(client.Charset("utf8mb4", "")); err != nil {
		return mode, &account.FieldError{Field: "connection_url", Reason: "cannot be used"}
	}
	return mode, nil
}

func notModeByte(c rune) bool {
	return c != '_' && c != ',' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z')
}

// configureTLS replaces the TLS settings of the connection string by c's.
func (c Config) configureTLS(config *client.Config) error {
	if !c.wantsTLS() {
		return nil
	}
	settings := &tls.Config{ServerName: c.ServerName, InsecureSkipVerify: c.SkipVerify, MinVersion: tls.VersionTLS12} //nolint:gosec // the operator's tls_skip_verify
	if c.CA != "" {
		var err error
		if settings.RootCAs, err = account.Authorities("tls_ca", c.CA); err != nil {
			return err
		}
	}
	if !c.CertificateKey.Empty() {
		pair, err := keyPair([]byte(c.CertificateKey.Reveal()))
		if err != nil {
			return &account.FieldError{Field: "tls_certificate_key", Reason: "is not a PEM certificate and its key"}
		}
		settings.Certificates = []tls.Certificate{pair}
	}
	config.TLS, config.TLSConfig, config.AllowFallbackToPlaintext = settings, "", false
	return nil
}

// keyPair reads certificates and a key that stand in one text, in any order.
func keyPair(text []byte) (tls.Certificate, error) {
	var certificates, key []byte
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type == "CERTIFICATE" {
			certificates = append(certificates, pem.EncodeToMemory(block)...)
		} else if key == nil {
			key = pem.EncodeToMemory(block)
		}
	}
	return tls.X509KeyPair(certificates, key)
}

// boundedConnector gives the whole log-in a time limit; the library's own covers
// dialling only.
type boundedConnector struct{ driver.Connector }

var _ driver.Connector = boundedConnector{}

// Connect logs in.
func (b boundedConnector) Connect(ctx context.Context) (driver.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, account.ConnectTimeout)
	defer cancel()
	return b.Connector.Connect(ctx)
}
