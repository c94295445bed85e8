package postgres

import (
	"context"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/dialect"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
)

// A role can hold the record of a login by itself: VALID UNTIL is when it ends and
// COMMENT ON ROLE takes the note, both written by the transaction that makes it
// and gone with the one that drops it.
var (
	makesRole  = regexp.MustCompile(`(?i)\bCREATE\s+(ROLE|USER)\s+"\{\{(name|username)\}\}"`)
	validUntil = regexp.MustCompile(`(?i)\bVALID\s+UNTIL\s+'\{\{expiration\}\}'`)
	// commentsOn leaves a comment of the statements alone.
	commentsOn = regexp.MustCompile(`(?i)\bCOMMENT\s+ON\s+ROLE\b`)
)

// Keeps reports whether the statements make a role of the login's name with its
// expiry and leave its comment to us.
func (d *Driver) Keeps(statements []string) bool {
	text := strings.Join(statements, ";")
	return makesRole.MatchString(text) && validUntil.MatchString(text) && !commentsOn.MatchString(text)
}

// noteStatement is SQL that keeps a note beside a role.
func noteStatement(username, note string) (string, error) {
	ident, err := dialect.PostgresIdent(username)
	if err != nil {
		return "", err
	}
	literal, err := dialect.PostgresLiteral(note)
	if err != nil {
		return "", err
	}
	return "COMMENT ON ROLE " + ident + " IS " + literal, nil
}

// loginColumns are what is asked of roles r that can log in or have a comment.
const loginColumns = `
SELECT r.rolname, r.rolcanlogin, CASE WHEN pg_catalog.isfinite(r.rolvaliduntil) THEN r.rolvaliduntil END, coalesce(d.description, '')
  FROM pg_catalog.pg_roles r
  LEFT JOIN pg_catalog.pg_shdescription d ON d.objoid = r.oid AND d.classoid = 'pg_catalog.pg_authid'::pg_catalog.regclass
 WHERE (r.rolcanlogin OR d.description IS NOT NULL) AND `

// Logins lists the roles whose names begin with prefix and that can log in or
// have a comment.
func (d *Driver) Logins(ctx context.Context, prefix string) ([]account.Login, error) {
	return d.logins(ctx, "list", loginColumns+`pg_catalog.starts_with(r.rolname, $1) ORDER BY r.rolname`, prefix)
}

// Find looks a role up by the index of their names.
func (d *Driver) Find(ctx context.Context, name string) (account.Login, bool, error) {
	if _, err := dialect.PostgresIdent(name); err != nil {
		return account.Login{}, false, nil //nolint:nilerr // no role has such a name
	}
	found, err := d.logins(ctx, "find", loginColumns+`r.rolname = $1::pg_catalog.name`, name)
	// The server cuts names off where they are too long, so a longer one would find
	// the login whose name is its beginning.
	if err != nil || len(found) == 0 || found[0].Name != name {
		return account.Login{}, false, err
	}
	return found[0], true, nil
}

// logins runs a query of loginColumns.
func (d *Driver) logins(ctx context.Context, op, query, name string) ([]account.Login, error) {
	var logins []account.Login
	err := d.with(ctx, op, account.StatementTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, query, name)
		if err != nil {
			return err
		}
		logins, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (account.Login, error) {
			var l account.Login
			var expires *time.Time
			err := row.Scan(&l.Name, &l.CanLogin, &expires, &l.Note)
			if expires != nil {
				l.Expires = *expires
			}
			return l, err
		})
		return err
	})
	return logins, err
}
