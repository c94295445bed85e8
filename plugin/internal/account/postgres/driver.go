package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/dialect"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Driver manages logins on one PostgreSQL server. Sessions are opened when they
// are needed and kept for a minute.
type Driver struct {
	config Config
	pool   *pgxpool.Pool
	turns  *turns
}

var (
	_ account.Driver = (*Driver)(nil)
	_ account.Leaver = (*Driver)(nil)
)

// New checks the configuration and makes a driver; it does not connect. A wrong
// configuration is a [account.FieldError].
func New(config Config) (*Driver, error) {
	parsed, err := config.poolConfig()
	if err != nil {
		return nil, err
	}
	// The context is not kept: with no minimum of sessions nothing is opened.
	pool, err := pgxpool.NewWithConfig(context.Background(), parsed)
	if err != nil {
		return nil, &account.FieldError{Field: "connection_url", Reason: "cannot be used"}
	}
	return &Driver{config: config, pool: pool, turns: newTurns()}, nil
}

// Type is PostgreSQL.
func (d *Driver) Type() wire.EngineType { return wire.EnginePostgres }

// Close ends the idle sessions and waits for those in use, which end within the
// timeouts of a call.
func (d *Driver) Close() { d.pool.Close() }

// Leave ends the idle sessions at once, those in use when they are not any more.
func (d *Driver) Leave() { d.pool.Reset() }

// with runs f on a session. A pooled session that turns out dead before anything
// was sent is replaced once.
func (d *Driver) with(ctx context.Context, op string, timeout time.Duration, f func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for attempt := 0; ; attempt++ {
		err := d.once(ctx, op, f)
		if err == nil {
			return nil
		}
		if attempt == 0 && pgconn.SafeToRetry(err) && ctx.Err() == nil {
			continue
		}
		return translate(op, err)
	}
}

func (d *Driver) once(ctx context.Context, op string, f func(context.Context, *pgx.Conn) error) error {
	acquire, cancel := context.WithTimeout(ctx, account.ConnectTimeout)
	defer cancel()
	session, err := d.pool.Acquire(acquire)
	if err != nil {
		return account.Unsent(translate(op, err))
	}
	defer session.Release()
	return f(ctx, session.Conn())
}

// Verify logs in and asks nothing.
func (d *Driver) Verify(ctx context.Context) error {
	return d.with(ctx, "verify", account.ConnectTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.Ping(ctx)
	})
}

// script is SQL sent in one simple query message, hence one round trip and one
// transaction, without the statements being taken apart here.
type script struct{ b strings.Builder }

func (s *script) add(statement string) {
	// The line break ends a comment at the end of the statement.
	s.b.WriteString(statement)
	s.b.WriteString("\n;\n")
}

// limit makes the server give up by itself, so that a call that timed out here
// does not take effect much later.
func (s *script) limit() {
	s.add(fmt.Sprintf("SET LOCAL statement_timeout = %d", account.StatementTimeout.Milliseconds()))
}

// tries is how often a script is run that meets others.
const tries = 8

// exec runs a script. Errors that PostgreSQL gives to one of two that touch the
// same catalog row at once are retried: the script is one transaction, so
// nothing of it has happened.
func exec(ctx context.Context, conn *pgx.Conn, text string) error {
	return account.Retry(ctx, tries, retryable, func() error { return execOnce(ctx, conn, text) })
}

func execOnce(ctx context.Context, conn *pgx.Conn, text string) error {
	return conn.PgConn().Exec(ctx, text).Close()
}

func retryable(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	switch pg.Code {
	case stateSerialization, stateDeadlock:
		return true
	case stateInternal:
		return strings.Contains(pg.Message, "concurrently updated") || strings.Contains(pg.Message, "concurrently deleted")
	}
	return false
}

// named are what every kind of statement may use.
func named(username string) map[string]dialect.Value {
	name := dialect.Value{Text: username, Kind: dialect.IdentifierValue}
	return map[string]dialect.Value{"name": name, "username": name}
}

// Create renders and runs the creation statements in one transaction and one
// round trip.
func (d *Driver) Create(ctx context.Context, req account.CreateRequest) error {
	const op = "create"
	if len(req.Username) == 0 || len(req.Username) > dialect.PostgresNameBytes {
		return &account.Error{Op: op, Code: wire.CodeInvalid, Reason: fmt.Sprintf("the user name is not 1 to %d bytes long, and PostgreSQL would cut it", dialect.PostgresNameBytes)}
	}
	if err := account.CheckBinding(req, false); err != nil {
		return err
	}
	// Before a session is taken: it costs a millisecond of processor time.
	password, err := d.sent(op, req.Password, req.Iterations)
	if err != nil {
		return err
	}
	values := named(req.Username)
	values["password"] = dialect.Value{Text: password} // PostgreSQL lets nobody in by an empty one
	values["public_key"] = dialect.Value{Text: string(req.PublicKey)}
	values["common_name"] = dialect.Value{Text: req.CommonName}
	values["expiration"] = dialect.Value{Text: account.Timestamp(req.Expiration)}
	text, err := renderScript(req.Statements, values)
	if err != nil {
		return account.Unrendered(op, err)
	}
	if req.ConnectionLimit > 0 {
		ident, err := dialect.PostgresIdent(req.Username)
		if err != nil {
			return account.Unrendered(op, err)
		}
		text.add(fmt.Sprintf("ALTER ROLE %s CONNECTION LIMIT %d", ident, req.ConnectionLimit))
	}
	if req.Note != "" {
		comment, err := noteStatement(req.Username, req.Note)
		if err != nil {
			return account.Unrendered(op, err)
		}
		text.add(comment)
	}
	// Statements may have set a role; the session is used again.
	text.add("RESET ROLE")
	return d.with(ctx, op, account.StatementTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		return d.inTurn(ctx, conn, op, strings.Join(req.Statements, "\n"), text.b.String())
	})
}

// renderScript renders statements into one script.
func renderScript(statements []string, values map[string]dialect.Value) (*script, error) {
	text := &script{}
	text.limit()
	for _, statement := range statements {
		rendered, err := dialect.RenderPostgres(statement, values)
		if err != nil {
			return nil, err
		}
		text.add(rendered)
	}
	return text, nil
}

// DefaultRenewal is how a login is renewed unless its role says otherwise.
const DefaultRenewal = `ALTER ROLE "{{name}}" VALID UNTIL '{{expiration}}'`

// Renew runs the renew statements, by default ALTER ROLE … VALID UNTIL.
func (d *Driver) Renew(ctx context.Context, req account.RenewRequest) error {
	const op = "renew"
	statements := req.Statements
	if len(statements) == 0 {
		statements = []string{DefaultRenewal}
	}
	values := named(req.Username)
	values["expiration"] = dialect.Value{Text: account.Timestamp(req.Expiration)}
	text, err := renderScript(statements, values)
	if err != nil {
		return account.Unrendered(op, err)
	}
	text.add("RESET ROLE")
	return d.with(ctx, op, account.StatementTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		return explainRefusal(ctx, conn, op, req.Username, exec(ctx, conn, text.b.String()))
	})
}

// Identity asks for the system identifier and the database's oid.
func (d *Driver) Identity(ctx context.Context, database string) (wire.ServerIdentity, error) {
	identity := wire.ServerIdentity{Engine: wire.EnginePostgres, Database: database}
	err := d.with(ctx, "identify", account.IdentityTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		row := conn.QueryRow(ctx, `
SELECT s.system_identifier::text, w.name,
       coalesce((SELECT d.oid::text FROM pg_catalog.pg_database d WHERE d.datname = w.name), ''),
       pg_catalog.current_setting('server_version')
  FROM pg_catalog.pg_control_system() s,
       (SELECT coalesce(nullif($1::text, ''), pg_catalog.current_database()::text) AS name) w`, database)
		if err := row.Scan(&identity.Server, &identity.Database, &identity.DatabaseID, &identity.Version); err != nil {
			return err
		}
		_, identity.TLS = conn.PgConn().Conn().(*tls.Conn)
		return nil
	})
	if err != nil {
		return wire.ServerIdentity{}, err
	}
	identity.Version, _, _ = strings.Cut(identity.Version, " ")
	return identity, nil
}
