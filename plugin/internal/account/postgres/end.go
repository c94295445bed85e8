package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/dialect"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// login is what the server knows of a login that is to end.
type login struct {
	name, ident, literal string
	// owner takes over what the login owns: the role it acts as, else a role
	// without login it is a member of, else our own.
	owner string
	// here says that something in the current database, or something shared by
	// all databases, belongs to the login or names it in its grants.
	here bool
	// elsewhere are other databases with such things.
	elsewhere []string
}

// End shuts the login out, ends its sessions, hands over or drops what depends on
// it in every database, and drops it. Custom statements stand for the last two.
func (d *Driver) End(ctx context.Context, req account.EndRequest) error {
	const op = "end"
	return d.with(ctx, op, account.StatementTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		l, err := findLogin(ctx, conn, req.Username)
		if err != nil || l == nil {
			return err
		}
		if err := d.shutOut(ctx, conn, l, len(req.Statements) == 0); err != nil {
			return err
		}
		if len(req.Statements) > 0 {
			return d.runCustomEnd(ctx, conn, l, req.Statements)
		}
		for _, database := range l.elsewhere {
			if err := d.releaseIn(ctx, database, l); err != nil {
				return err
			}
		}
		text, err := l.dropScript()
		if err != nil {
			return err
		}
		kind := "drop"
		if l.here {
			kind = "release in " + conn.Config().Database
		}
		return gone(d.inTurn(ctx, conn, "end", kind, text))
	})
}

// gone takes a login that has vanished meanwhile for success.
func gone(err error) error {
	if sqlState(err) == stateUndefinedObject {
		return nil
	}
	return err
}

// findLogin returns nil when there is no such role.
func findLogin(ctx context.Context, conn *pgx.Conn, name string) (*login, error) {
	l := &login{name: name}
	var err error
	if l.ident, err = dialect.PostgresIdent(name); err != nil {
		return nil, account.Unrendered("end", err)
	}
	if l.literal, err = dialect.PostgresLiteral(name); err != nil {
		return nil, account.Unrendered("end", err)
	}
	err = conn.QueryRow(ctx, `
WITH r AS (SELECT oid, rolconfig FROM pg_catalog.pg_roles WHERE rolname = $1),
     deps AS (SELECT DISTINCT d.dbid FROM pg_catalog.pg_shdepend d, r
               WHERE d.refclassid = 'pg_catalog.pg_authid'::regclass AND d.refobjid = r.oid)
SELECT coalesce((SELECT g.rolname::text
                   FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles g ON g.oid = m.roleid
                  WHERE m.member = r.oid AND NOT g.rolcanlogin
                    -- Since 16 that is what handing over to it needs.
                    AND pg_catalog.pg_has_role(g.oid, CASE WHEN pg_catalog.current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'USAGE' END)
                    AND NOT starts_with(g.rolname, 'pg_')
                  ORDER BY ('role=' || g.rolname) = ANY (coalesce(r.rolconfig, '{}')) DESC, g.rolname
                  LIMIT 1), current_user::text),
       EXISTS (SELECT FROM deps WHERE dbid = 0
                  OR dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())),
       ARRAY(SELECT datname::text FROM deps JOIN pg_catalog.pg_database b ON b.oid = deps.dbid
              WHERE b.datname <> current_database() AND b.datallowconn ORDER BY 1)
  FROM r`, name).Scan(&l.owner, &l.here, &l.elsewhere)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}

// terminate is SQL that ends the login's sessions. They are found by oid too: a
// session outlives its role's name.
func (l *login) terminate() string {
	return `SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a` +
		` WHERE a.usesysid = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = ` + l.literal + `) AND a.pid <> pg_catalog.pg_backend_pid()`
}

// shutOut takes away the right to log in and then ends the sessions: in this
// order nobody slips in between. Being a member of the login, which ends with it,
// gives the right to end its sessions and to hand over what it owns; superusers
// have both anyway. That the login is dropped next, in a transaction of its own,
// spares waiting for the disk here.
func (d *Driver) shutOut(ctx context.Context, conn *pgx.Conn, l *login, dropped bool) error {
	text := &script{}
	text.limit()
	if dropped {
		// Everybody sees it at once. It reaches the disk with the drop; should
		// the server crash before, the account's record is still there and all
		// is done again.
		text.add("SET LOCAL synchronous_commit = off")
	}
	text.add("ALTER ROLE " + l.ident + " NOLOGIN VALID UNTIL 'now'")
	text.add("GRANT " + l.ident + " TO CURRENT_USER")
	err := exec(ctx, conn, text.b.String())
	if sqlState(err) == stateUndefinedObject {
		return nil
	}
	if sqlState(err) == "" && err != nil {
		return err
	}
	if err != nil {
		// The membership may be what was refused (it would be a circle, or the
		// server forbids it); without it as much is done as can be.
		if err := gone(exec(ctx, conn, "ALTER ROLE "+l.ident+" NOLOGIN VALID UNTIL 'now'")); err != nil {
			return explainRefusal(ctx, conn, "end", l.name, err)
		}
	}
	err = exec(ctx, conn, l.terminate())
	if sqlState(err) == stateInsufficientPrivilege {
		return &account.Error{
			Op: "end", Code: wire.CodePrivilege, State: stateInsufficientPrivilege,
			Reason: "the connection's user may not end the login's sessions; grant it pg_signal_backend",
		}
	}
	return err
}

// release is SQL that hands over what the login owns in the current database and
// drops the grants it has there.
func (l *login) release(text *script) error {
	owner, err := dialect.PostgresIdent(l.owner)
	if err != nil {
		return account.Unrendered("end", err)
	}
	text.add("REASSIGN OWNED BY " + l.ident + " TO " + owner)
	text.add("DROP OWNED BY " + l.ident)
	return nil
}

// releaseIn does so in another database of the server.
func (d *Driver) releaseIn(ctx context.Context, database string, l *login) error {
	config := d.pool.Config().ConnConfig
	config.Database = database
	ctx, cancel := context.WithTimeout(ctx, account.ConnectTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		if sqlState(err) == stateUnknownDatabase {
			return nil // dropped meanwhile, and with it what was in it
		}
		return err
	}
	text := &script{}
	text.limit()
	err = l.release(text)
	if err == nil {
		err = gone(d.inTurn(ctx, conn, "end", "release in "+database, text.b.String()))
	}
	return errors.Join(err, conn.Close(ctx))
}

// dropScript ends the sessions once more, for one that had passed the check
// before the login was taken away, and drops the role.
func (l *login) dropScript() (string, error) {
	text := &script{}
	text.limit()
	text.add(l.terminate())
	if l.here {
		if err := l.release(text); err != nil {
			return "", err
		}
	}
	text.add("DROP ROLE IF EXISTS " + l.ident)
	return text.b.String(), nil
}

// runCustomEnd runs the role's own revocation statements.
func (d *Driver) runCustomEnd(ctx context.Context, conn *pgx.Conn, l *login, statements []string) error {
	text, err := renderScript(statements, named(l.name))
	if err != nil {
		return account.Unrendered("end", err)
	}
	text.add("RESET ROLE")
	if err := d.inTurn(ctx, conn, "end", strings.Join(statements, "\n"), text.b.String()); err != nil {
		return fmt.Errorf("run revocation statements: %w", err)
	}
	return nil
}
