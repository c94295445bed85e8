package mysql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	client "github.com/go-sql-driver/mysql"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/dialect"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Driver manages logins on one MySQL or MariaDB server. Sessions are opened when
// they are needed and closed a while after.
type Driver struct {
	config Config
	parsed *client.Config
	mode   dialect.MySQLMode
	pool   *sql.DB
	// seesSessions is set once the server has shown that our user sees the
	// sessions of others.
	seesSessions atomic.Bool
}

var _ account.Driver = (*Driver)(nil)

// New checks the configuration and makes a driver; it does not connect. A wrong
// configuration is an [account.FieldError].
func New(config Config) (*Driver, error) {
	if config.Host == "" {
		config.Host = DefaultHost
	}
	parsed, mode, err := config.clientConfig()
	if err != nil {
		return nil, err
	}
	connector, err := client.NewConnector(parsed)
	if err != nil {
		return nil, &account.FieldError{Field: "connection_url", Reason: "cannot be used"}
	}
	pool := sql.OpenDB(boundedConnector{connector})
	sessions := account.Sessions(config.MaxSessions)
	pool.SetMaxOpenConns(sessions)
	pool.SetMaxIdleConns(sessions)
	if config.NoIdle {
		pool.SetMaxIdleConns(-1)
	}
	pool.SetConnMaxIdleTime(idleTime)
	pool.SetConnMaxLifetime(config.MaxLifetime)
	return &Driver{config: config, parsed: parsed, mode: mode, pool: pool}, nil
}

// Type is MySQL.
func (d *Driver) Type() wire.EngineType { return wire.EngineMySQL }

// Close ends the idle sessions; those in use end with their call.
func (d *Driver) Close() {
	_ = d.pool.Close() // an idle session that does not close well is closed all the same
}

// session is one of the pool's, for one call.
type session struct {
	conn *sql.Conn
	mode dialect.MySQLMode
	// spent says that statements may have changed the session, so it is not used
	// again.
	spent bool
}

// with runs f on a session. A pooled session that turns out dead before anything
// was sent is replaced once.
func (d *Driver) with(ctx context.Context, op string, timeout time.Duration, f func(context.Context, *session) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for attempt := 0; ; attempt++ {
		err := d.once(ctx, op, f)
		if attempt == 0 && errors.Is(err, driver.ErrBadConn) && ctx.Err() == nil {
			continue
		}
		return translate(op, err)
	}
}

func (d *Driver) once(ctx context.Context, op string, f func(context.Context, *session) error) (err error) {
	acquire, cancel := context.WithTimeout(ctx, account.ConnectTimeout)
	defer cancel()
	conn, err := d.pool.Conn(acquire)
	if err != nil {
		return account.Unsent(translate(op, err))
	}
	s := &session{conn: conn, mode: d.mode}
	defer func() { s.release() }()
	return f(ctx, s)
}

// release gives the session back to the pool or ends it.
func (s *session) release() {
	if s.spent {
		// Raw answers with the error it is given.
		_ = s.conn.Raw(func(any) error { return driver.ErrBadConn })
	}
	_ = s.conn.Close() // a session that is gone needs no closing
}

// exec runs one statement. What a server gives to one of two that change grants at
// once is tried again: nothing of the statement has happened.
func (s *session) exec(ctx context.Context, statement string) error {
	err := account.Retry(ctx, 6, retryable, func() error {
		_, err := s.conn.ExecContext(ctx, statement)
		return err
	})
	if number(err) == errLoginDenied {
		// Within a session the server means a privilege by it.
		err = &client.MySQLError{Number: errPrivilege, SQLState: [5]byte{'4', '2', '0', '0', '0'}}
	}
	return err
}

func retryable(err error) bool {
	n := number(err)
	return n == errDeadlock || n == errLockTimeout
}

// rows runs a query and has each of its rows read.
func (s *session) rows(ctx context.Context, query string, read func(row *sql.Rows) error) (err error) {
	rows, err := s.conn.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err := read(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// column runs a query of one column and returns its rows.
func (s *session) column(ctx context.Context, query string) (values []string, err error) {
	err = s.rows(ctx, query, func(row *sql.Rows) error {
		var value string
		err := row.Scan(&value)
		values = append(values, value)
		return err
	})
	return values, err
}

// literal quotes for the session.
func (s *session) literal(op, text string) (string, error) {
	quoted, err := dialect.MySQLLiteral(text, s.mode)
	if err != nil {
		return "", account.Unrendered(op, err)
	}
	return quoted, nil
}

// render makes single statements of a role's statements.
func (d *Driver) render(op string, statements []string, values map[string]dialect.Value) ([]string, error) {
	var rendered []string
	for _, statement := range statements {
		parts, err := dialect.RenderMySQL(statement, values, d.mode)
		if err != nil {
			return nil, account.Unrendered(op, err)
		}
		rendered = append(rendered, parts...)
	}
	return rendered, nil
}

// values are what every kind of statement may use.
func (d *Driver) values(username string) map[string]dialect.Value {
	return map[string]dialect.Value{
		"name":     {Text: username, Kind: dialect.IdentifierValue},
		"username": {Text: username, Kind: dialect.IdentifierValue},
		"host":     {Text: d.config.Host, Kind: dialect.IdentifierValue},
	}
}

// lasting reports whether a statement changes nothing of the session it runs in.
// Every word not listed may.
func lasting(statement string) bool {
	word, _, _ := strings.Cut(strings.ReplaceAll(statement, "\n", " "), " ")
	switch strings.ToUpper(word) {
	case "CREATE", "ALTER", "DROP", "GRANT", "REVOKE", "INSERT", "UPDATE", "DELETE", "FLUSH":
		return true
	}
	return false
}

// run runs a role's statements in order and returns how many took effect.
func (s *session) run(ctx context.Context, statements []string) (int, error) {
	for i, statement := range statements {
		if !lasting(statement) {
			s.spent = true
		}
		if err := s.exec(ctx, statement); err != nil {
			return i, err
		}
	}
	return len(statements), nil
}

// accounts are the accounts of a user: MySQL has one for each host part.
type accounts struct {
	hosts []string
	// guessed says that our user may not read the list, so that hosts is the one
	// host of the configuration.
	guessed bool
}

// missing reports whether the user is known not to exist.
func (a accounts) missing() bool { return len(a.hosts) == 0 }

// accountsOf asks for the accounts of a user.
func (d *Driver) accountsOf(ctx context.Context, s *session, op, username string) (accounts, error) {
	hosts, err := s.hostsOf(ctx, op, username)
	if n := number(err); n == errTableDenied || n == errDatabaseDenied {
		return accounts{hosts: []string{d.config.Host}, guessed: true}, nil
	}
	return accounts{hosts: hosts}, err
}

// hostsOf asks for the host parts of a user.
func (s *session) hostsOf(ctx context.Context, op, username string) ([]string, error) {
	name, err := s.literal(op, username)
	if err != nil {
		return nil, err
	}
	// Roles have no host. The comparison is exact: names are case sensitive, and
	// white space at the end counts.
	return s.column(ctx, "SELECT Host FROM mysql.user WHERE Host <> '' AND User = "+name+" AND HEX(User) = HEX("+name+") ORDER BY Host")
}

// list writes accounts for a statement.
func (a accounts) list(s *session, op, username, suffix string) (string, error) {
	name, err := s.literal(op, username)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for i, host := range a.hosts {
		quoted, err := s.literal(op, host)
		if err != nil {
			return "", err
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(name + "@" + quoted + suffix)
	}
	return b.String(), nil
}

// Verify logs in and asks nothing.
func (d *Driver) Verify(ctx context.Context) error {
	return d.with(ctx, "verify", account.ConnectTimeout, func(ctx context.Context, s *session) error {
		return s.conn.PingContext(ctx)
	})
}

// Create runs the creation statements one by one. The server cannot undo them, so
// after a failure the user is dropped again; if not even that works, the error
// says Ambiguous. A user that exists already is refused and left alone.
func (d *Driver) Create(ctx context.Context, req account.CreateRequest) error {
	const op = "create"
	if err := checkName(op, req.Username); err != nil {
		return err
	}
	if err := account.CheckBinding(req, true); err != nil {
		return err
	}
	values := d.values(req.Username)
	values["password"] = dialect.Value{Text: req.Password.Reveal()}
	values["public_key"] = dialect.Value{Text: string(req.PublicKey)}
	values["common_name"] = dialect.Value{Text: req.CommonName}
	values["expiration"] = dialect.Value{Text: account.Timestamp(req.Expiration)}
	statements, err := d.render(op, req.Statements, values)
	if err != nil {
		return err
	}
	return d.with(ctx, op, account.StatementTimeout, func(ctx context.Context, s *session) error {
		found, err := d.accountsOf(ctx, s, op, req.Username)
		if err != nil {
			return unsent(op, err)
		}
		if !found.missing() && !found.guessed {
			return &account.Error{Op: op, Code: wire.CodeConflict, Reason: "a user of that name exists already"}
		}
		done, err := s.run(ctx, statements)
		if err == nil && req.ConnectionLimit > 0 {
			err = d.limitSessions(ctx, s, op, req.Username, req.ConnectionLimit)
		}
		if err == nil || done == 0 || account.Ambiguous(translate(op, err)) {
			return err
		}
		return d.undo(ctx, op, req.Username, err)
	})
}

// checkName refuses names the server would not keep as they are. MariaDB cuts off
// blanks at the end, MySQL white space at both ends, so the user would have another
// name and not be found to be ended; and their tables of users take no character
// above U+FFFF.
func checkName(op, name string) error {
	reason := ""
	switch {
	case name == "":
		reason = "the user name is empty"
	case strings.Trim(name, " \t\n\v\f\r") != name:
		reason = "the user name begins or ends with white space, which the server cuts off"
	case strings.ContainsFunc(name, func(c rune) bool { return c > 0xffff }):
		reason = "the user name holds a character above U+FFFF, which the server's table of users cannot"
	default:
		return nil
	}
	return &account.Error{Op: op, Code: wire.CodeInvalid, Reason: reason}
}

// unsent marks a failure before anything was changed.
func unsent(op string, err error) error {
	if errors.Is(err, driver.ErrBadConn) {
		return err // tried again
	}
	return account.Unsent(translate(op, err))
}

// undo drops a user whose creation failed with cause. It takes a session of its
// own, since the statements may have changed theirs.
func (d *Driver) undo(ctx context.Context, op, username string, cause error) error {
	cause = translate(op, cause)
	err := d.once(ctx, op, func(ctx context.Context, s *session) error {
		found, err := d.accountsOf(ctx, s, op, username)
		if err != nil || found.missing() {
			return err
		}
		return d.drop(ctx, s, op, username, found)
	})
	var e *account.Error
	if err != nil && errors.As(cause, &e) {
		e.Ambiguous = true
	}
	return cause
}

// limitSessions caps the sessions of a new user.
func (d *Driver) limitSessions(ctx context.Context, s *session, op, username string, limit int) error {
	found, err := d.accountsOf(ctx, s, op, username)
	if err != nil || found.missing() {
		return err
	}
	list, err := found.list(s, op, username, "")
	if err != nil {
		return err
	}
	return s.exec(ctx, fmt.Sprintf("ALTER USER %s WITH MAX_USER_CONNECTIONS %d", list, limit))
}

// Renew runs the renew statements. By default there is nothing to do: the server
// knows no instant at which a user ends.
func (d *Driver) Renew(ctx context.Context, req account.RenewRequest) error {
	const op = "renew"
	values := d.values(req.Username)
	values["expiration"] = dialect.Value{Text: account.Timestamp(req.Expiration)}
	statements, err := d.render(op, req.Statements, values)
	if err != nil {
		return err
	}
	return d.with(ctx, op, account.StatementTimeout, func(ctx context.Context, s *session) error {
		found, err := d.accountsOf(ctx, s, op, req.Username)
		if err != nil {
			return err
		}
		if found.missing() {
			return missing(op)
		}
		_, err = s.run(ctx, statements)
		return err
	})
}

// missing is the error for a user that does not exist.
func missing(op string) error {
	return &account.Error{Op: op, Code: wire.CodeNotFound, Reason: "there is no such user"}
}

// Logins lists the users whose names begin with prefix. Roles of MySQL, which are
// users that cannot log in, are among them. Without the right to read mysql.user
// it is an error with code privilege.
func (d *Driver) Logins(ctx context.Context, prefix string) ([]account.Login, error) {
	const op = "list"
	var names []string
	err := d.with(ctx, op, account.StatementTimeout, func(ctx context.Context, s *session) error {
		quoted, err := s.literal(op, prefix)
		if err != nil {
			return err
		}
		names, err = s.column(ctx, "SELECT DISTINCT User FROM mysql.user WHERE Host <> '' AND HEX(LEFT(User, CHAR_LENGTH("+quoted+"))) = HEX("+quoted+") ORDER BY User")
		return err
	})
	return account.Named(names), err
}

// Find looks for a user as [Driver.Logins] does.
func (d *Driver) Find(ctx context.Context, name string) (account.Login, bool, error) {
	const op = "find"
	if _, err := dialect.MySQLLiteral(name, d.mode); err != nil || checkName(op, name) != nil {
		return account.Login{}, false, nil //nolint:nilerr // no user has such a name
	}
	var found accounts
	err := d.with(ctx, op, account.StatementTimeout, func(ctx context.Context, s *session) (err error) {
		found.hosts, err = s.hostsOf(ctx, op, name)
		return err
	})
	if err != nil || found.missing() {
		return account.Login{}, false, err
	}
	return account.Login{Name: name, CanLogin: true}, true, nil
}

// Keeps is false: users know no time from which they are not let in.
func (d *Driver) Keeps([]string) bool { return false }

// Identity asks for the server's UUID, which MySQL has; MariaDB is known by its
// host name, port and data directory. A database's id is its name.
func (d *Driver) Identity(ctx context.Context, database string) (wire.ServerIdentity, error) {
	const op = "identify"
	if database == "" {
		database = d.parsed.DBName
	}
	identity := wire.ServerIdentity{Engine: wire.EngineMySQL, Database: database}
	err := d.with(ctx, op, account.IdentityTimeout, func(ctx context.Context, s *session) error {
		variables, err := s.pairs(ctx, "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('server_uuid', 'hostname', 'port', 'datadir', 'version')")
		if err != nil {
			return err
		}
		status, err := s.pairs(ctx, "SHOW SESSION STATUS LIKE 'Ssl_cipher'")
		if err != nil {
			return err
		}
		identity.TLS = status["Ssl_cipher"] != ""
		identity.Version, _, _ = strings.Cut(variables["version"], " ")
		identity.Server = variables["server_uuid"]
		if identity.Server == "" {
			identity.Server = variables["hostname"] + ":" + variables["port"] + ":" + variables["datadir"]
		}
		quoted, err := s.literal(op, database)
		if err != nil {
			return err
		}
		found, err := s.column(ctx, "SELECT SCHEMA_NAME FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = "+quoted)
		if err == nil && len(found) > 0 {
			identity.DatabaseID = found[0]
		}
		return err
	})
	if err != nil {
		return wire.ServerIdentity{}, err
	}
	return identity, nil
}

// pairs runs a query of two columns, a key and its value.
func (s *session) pairs(ctx context.Context, query string) (values map[string]string, err error) {
	values = make(map[string]string)
	err = s.rows(ctx, query, func(row *sql.Rows) error {
		var key string
		var value sql.NullString
		err := row.Scan(&key, &value)
		values[key] = value.String
		return err
	})
	return values, err
}
