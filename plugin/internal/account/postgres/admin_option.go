package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Since PostgreSQL 16 CREATEROLE alone lets nobody change a role: who made it has
// the ADMIN OPTION on it, others must be granted that. The server's message does
// not say so.

// grantsRole is the server's function that refuses to make a role a member of
// another.
const grantsRole = "check_role_membership_authorization"

// explainRefusal says which ADMIN OPTION is missing, where that is why the server
// refused to change the login.
func explainRefusal(ctx context.Context, conn *pgx.Conn, op, username string, err error) error {
	if sqlState(err) != stateInsufficientPrivilege || conn.IsClosed() {
		return err
	}
	var own string
	missing := false
	question := conn.QueryRow(ctx, `
SELECT current_user::text, NOT pg_catalog.pg_has_role(r.oid, 'MEMBER WITH ADMIN OPTION')
  FROM pg_catalog.pg_roles r
 WHERE r.rolname = $1 AND pg_catalog.current_setting('server_version_num')::int >= 160000`, username)
	if scanned := question.Scan(&own, &missing); scanned != nil || !missing {
		return err // not our finding; the server's own answer stands
	}
	return &account.Error{
		Op: op, Code: wire.CodePrivilege, State: stateInsufficientPrivilege,
		Reason: "since PostgreSQL 16 the connection's user may change a login that it did not make only with the ADMIN OPTION on it: GRANT " +
			pgx.Identifier{username}.Sanitize() + " TO " + pgx.Identifier{own}.Sanitize() + " WITH ADMIN OPTION",
	}
}

// refusedMembership reports whether a server since 16 refused to make a login the
// member of a role. Servers before have another function for it.
func refusedMembership(pg *pgconn.PgError) bool {
	return pg.Code == stateInsufficientPrivilege && pg.Routine == grantsRole
}
