package mysql

import (
	"context"
	"errors"
	"slices"
	"strings"

	client "github.com/go-sql-driver/mysql"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/dialect"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Rotate runs the rotation statements, by default ALTER USER … IDENTIFIED BY for
// the account of the configured host or, when the user has none there, for all it
// has. The driver's own user is changed only where it is logged in.
func (d *Driver) Rotate(ctx context.Context, req account.RotateRequest) error {
	const op = "rotate"
	if len(req.PublicKey) > 0 && len(req.Statements) == 0 {
		return &account.Error{Op: op, Code: wire.CodeUnsupported, Reason: "MySQL knows no public keys of logins; give rotation_statements that put {{public_key}} where it belongs"}
	}
	values := d.values(req.Username)
	values["password"] = dialect.Value{Text: req.Password.Reveal()}
	values["public_key"] = dialect.Value{Text: string(req.PublicKey)}
	statements, err := d.render(op, req.Statements, values)
	if err != nil {
		return err
	}
	return d.with(ctx, op, account.StatementTimeout, func(ctx context.Context, s *session) error {
		found, err := d.accountsOf(ctx, s, op, req.Username)
		if err != nil {
			return unsent(op, err)
		}
		if found.missing() {
			return missing(op)
		}
		if len(statements) > 0 {
			done, err := s.run(ctx, statements)
			return halfway(op, done, err)
		}
		if err := d.chooseAccounts(ctx, s, req.Username, &found); err != nil {
			return unsent(op, err)
		}
		password, err := s.literal(op, req.Password.Reveal())
		if err != nil {
			return err
		}
		list, err := found.list(s, op, req.Username, " IDENTIFIED BY "+password)
		if err != nil {
			return err
		}
		err = s.exec(ctx, "ALTER USER "+list)
		switch {
		case number(err) == errPrivilege && req.Username == d.parsed.User:
			// MariaDB lets a user without the right to change users change its own
			// password in this way only; MySQL let it above.
			return s.exec(ctx, "SET PASSWORD = PASSWORD("+password+")")
		case number(err) == errCannotUser:
			return missing(op)
		}
		return err
	})
}

// halfway marks a failure after done statements: one of them may have changed the
// credential, which the server cannot undo.
func halfway(op string, done int, err error) error {
	var e *account.Error
	if done == 0 || !errors.As(translate(op, err), &e) {
		return err
	}
	known := *e
	known.Ambiguous = true
	return &known
}

// chooseAccounts narrows found to the accounts whose password is changed.
func (d *Driver) chooseAccounts(ctx context.Context, s *session, username string, found *accounts) error {
	host := d.config.Host
	if username == d.parsed.User {
		current, err := s.column(ctx, "SELECT CURRENT_USER()")
		if err != nil {
			return err
		}
		if len(current) == 1 {
			if at := strings.LastIndexByte(current[0], '@'); at >= 0 && current[0][:at] == username {
				host = current[0][at+1:]
			}
		}
		if found.guessed {
			found.hosts = []string{host}
		}
	}
	if slices.Contains(found.hosts, host) {
		found.hosts = []string{host}
	}
	return nil
}

// Login opens a session as the user, without a database. A login that is let in
// but has to change its password has shown it too.
func (d *Driver) Login(ctx context.Context, username string, password wire.Secret) error {
	const op = "login"
	config := d.parsed.Clone()
	config.User, config.Passwd, config.DBName = username, password.Reveal(), ""
	connector, err := client.NewConnector(config)
	if err != nil {
		return &account.Error{Op: op, Code: wire.CodeInternal, Reason: "the connection string cannot be used"}
	}
	conn, err := boundedConnector{connector}.Connect(ctx)
	if number(err) == errMustChangePassword {
		return nil
	}
	if err != nil {
		return account.Unsent(translate(op, err)) // a login changes nothing
	}
	if err := conn.Close(); err != nil {
		return nil //nolint:nilerr // the login worked
	}
	return nil
}
