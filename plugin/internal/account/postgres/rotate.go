package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/dialect"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// defaultRotation is how Vault's own engine changes a password.
const defaultRotation = `ALTER ROLE "{{username}}" WITH PASSWORD '{{password}}'`

// Rotate runs the rotation statements in one transaction, by default ALTER ROLE …
// PASSWORD. The server gets a verifier, as in [Driver.Create].
func (d *Driver) Rotate(ctx context.Context, req account.RotateRequest) error {
	const op = "rotate"
	statements, own := req.Statements, len(req.Statements) > 0
	if !own {
		if len(req.PublicKey) > 0 {
			return &account.Error{Op: op, Code: wire.CodeUnsupported, Reason: "PostgreSQL knows no public keys of logins; give rotation_statements that put {{public_key}} where it belongs"}
		}
		statements = []string{defaultRotation}
	}
	password, err := d.sent(op, req.Password, req.Iterations)
	if err != nil {
		return err
	}
	values := named(req.Username)
	values["password"] = dialect.Value{Text: password}
	values["public_key"] = dialect.Value{Text: string(req.PublicKey)}
	text, err := renderScript(statements, values)
	if err != nil {
		return account.Unrendered(op, err)
	}
	text.add("RESET ROLE")
	return d.with(ctx, op, account.StatementTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		// Statements of a role need not fail when the login is missing.
		if own {
			if err := exists(ctx, conn, op, req.Username); err != nil {
				return err
			}
		}
		return explainRefusal(ctx, conn, op, req.Username, exec(ctx, conn, text.b.String()))
	})
}

// exists refuses a missing login.
func exists(ctx context.Context, conn *pgx.Conn, op, username string) error {
	var found bool
	row := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $1)`, username)
	if err := row.Scan(&found); err != nil {
		return account.Unsent(translate(op, err))
	}
	if !found {
		return &account.Error{Op: op, Code: wire.CodeNotFound, Reason: "the server has no such login"}
	}
	return nil
}

// Login opens a session as the user. A login that is let in but may not use the
// database has shown its password too.
func (d *Driver) Login(ctx context.Context, username string, password wire.Secret) error {
	const op = "login"
	ctx, cancel := context.WithTimeout(ctx, account.ConnectTimeout)
	defer cancel()
	config := d.pool.Config().ConnConfig
	config.User, config.Password = username, password.Reveal()
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		if sqlState(err) == stateInsufficientPrivilege {
			return nil
		}
		return account.Unsent(translate(op, err)) // a login changes nothing
	}
	_ = conn.Close(ctx) // the login worked, whatever becomes of the session
	return nil
}
