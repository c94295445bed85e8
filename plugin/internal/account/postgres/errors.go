package postgres

import (
	"errors"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// SQLSTATEs we decide on.
const (
	stateUndefinedObject       = "42704"
	stateInsufficientPrivilege = "42501"
	stateInternal              = "XX000"
	stateSerialization         = "40001"
	stateDeadlock              = "40P01"
	stateInvalidPassword       = "28P01"
	stateInvalidAuthorization  = "28000"
	stateUnknownDatabase       = "3D000"
	stateReadOnly              = "25006" // a standby, or a server set to be read-only
	stateDependentObjects      = "2BP01"
)

// sqlState returns the server's error code, or "".
func sqlState(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// translate turns an error of pgx into ours; only the server's primary message
// is kept, since DETAIL, CONTEXT and WHERE carry values.
func translate(op string, err error) error {
	if err == nil {
		return nil
	}
	var known *account.Error
	if errors.As(err, &known) {
		return err
	}
	e := &account.Error{Op: op, Code: wire.CodeEngine}
	var pg *pgconn.PgError
	var connect *pgconn.ConnectError
	switch {
	case errors.As(err, &pg):
		e.State, e.Reason = pg.Code, pg.Message
		switch {
		case pg.Code == stateInvalidPassword || pg.Code == stateInvalidAuthorization:
			e.Code = wire.CodeLoginRefused
		case pg.Code == stateUnknownDatabase, pg.Code == stateReadOnly, strings.HasPrefix(pg.Code, "53"), strings.HasPrefix(pg.Code, "08"):
			e.Code = wire.CodeUnavailable
		case strings.HasPrefix(pg.Code, "57P"):
			// The session was ended from outside; a commit may have been in flight.
			e.Code, e.Ambiguous = wire.CodeUnavailable, true
		case refusedMembership(pg) && op == "create":
			e.Code = wire.CodePrivilege
			e.Reason += "; since PostgreSQL 16 the connection's user needs the roles that logins become members of WITH ADMIN OPTION"
		case pg.Code == stateInsufficientPrivilege:
			e.Code = wire.CodePrivilege
		case pg.Code == stateDependentObjects && op == "end":
			e.Code = wire.CodePrivilege
			e.Reason = "the login has grants or objects that the connection's user may not take back; make it a member of the roles that own them"
		case pg.Code == stateUndefinedObject:
			e.Code = wire.CodeNotFound
		}
	case errors.As(err, &connect):
		e.Code, e.Reason = wire.CodeUnavailable, "the server cannot be reached: "+networkReason(err)
	default:
		e.Code, e.Reason = wire.CodeUnavailable, "the connection failed: "+networkReason(err)
		e.Ambiguous = !pgconn.SafeToRetry(err)
	}
	return e
}

// networkReason is [account.NetworkReason] with what only pgx says.
func networkReason(err error) string {
	return account.NetworkReason(err, func(err error) string {
		switch {
		case pgconn.Timeout(err):
			return "it did not answer in time"
		case strings.Contains(err.Error(), "server refused TLS connection"):
			return "it does not speak TLS"
		}
		return ""
	})
}
