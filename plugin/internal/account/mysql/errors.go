package mysql

import (
	"database/sql/driver"
	"errors"
	"fmt"

	client "github.com/go-sql-driver/mysql"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Error numbers we decide on; those above 1900 and below 2000, and above 4100, are
// MariaDB's, those from 3000 to 4050 MySQL's.
const (
	errTooManyConnections = 1040
	errDatabaseDenied     = 1044
	errLoginDenied        = 1045
	errUnknownDatabase    = 1049
	errServerShutdown     = 1053
	errSyntax             = 1064
	errUnknownThread      = 1094
	errKillDenied         = 1095
	errHostBlocked        = 1129
	errHostNotAllowed     = 1130
	errTableDenied        = 1142
	errColumnDenied       = 1143
	errNoTable            = 1146
	errUserConnections    = 1203
	errLockTimeout        = 1205
	errDeadlock           = 1213
	errResources          = 1226
	errPrivilege          = 1227
	errReadOnly           = 1290
	errUnknownProcedure   = 1305
	errInterrupted        = 1317
	errRoutineDenied      = 1370
	errCannotUser         = 1396
	errGrantDenied        = 1410
	errNameTooLong        = 1470
	errNoPasswordGiven    = 1698
	errPasswordPolicy     = 1819
	errMustChangePassword = 1820
	errPasswordExpired    = 1862
	errConnectionKilled   = 1927
	errAccountLocked      = 3118
	errSessionKilled      = 3169
	errUserIsDefiner      = 4006
	errAccountLockedMaria = 4151
)

// number returns the server's error number, or 0.
func number(err error) uint16 {
	var refused *client.MySQLError
	if errors.As(err, &refused) {
		return refused.Number
	}
	return 0
}

// verdict is what an error number means.
type verdict struct {
	code   wire.Code
	reason string
	// ambiguous says that a statement may have taken effect.
	ambiguous bool
}

// verdictOf returns our words for the server's error: its own text repeats values
// and pieces of statements.
func verdictOf(number uint16) (verdict, bool) {
	v, ok := map[uint16]verdict{
		errLoginDenied:        {code: wire.CodeLoginRefused, reason: "the server refuses the user or its password"},
		errNoPasswordGiven:    {code: wire.CodeLoginRefused, reason: "the server refuses the user or its password"},
		errHostNotAllowed:     {code: wire.CodeLoginRefused, reason: "the server lets nobody in from this host"},
		errPasswordExpired:    {code: wire.CodeLoginRefused, reason: "the user's password has expired"},
		errAccountLocked:      {code: wire.CodeLoginRefused, reason: "the user is locked"},
		errAccountLockedMaria: {code: wire.CodeLoginRefused, reason: "the user is locked"},
		errDatabaseDenied:     {code: wire.CodePrivilege, reason: "the connection's user may not use the database, or not grant it"},
		errTableDenied:        {code: wire.CodePrivilege, reason: "the connection's user may not do this to a table"},
		errColumnDenied:       {code: wire.CodePrivilege, reason: "the connection's user may not do this to a column"},
		errPrivilege:          {code: wire.CodePrivilege, reason: "the connection's user lacks a privilege; it needs CREATE USER, and GRANT OPTION on what it grants"},
		errRoutineDenied:      {code: wire.CodePrivilege, reason: "the connection's user may not execute a routine"},
		errGrantDenied:        {code: wire.CodePrivilege, reason: "the user to be granted something does not exist"},
		errKillDenied:         {code: wire.CodePrivilege, reason: "the connection's user may not end sessions of others"},
		errReadOnly:           {code: wire.CodeUnavailable, reason: "the server is read-only"},
		errUnknownDatabase:    {code: wire.CodeUnavailable, reason: "the server has no such database"},
		errTooManyConnections: {code: wire.CodeUnavailable, reason: "the server has too many connections"},
		errUserConnections:    {code: wire.CodeUnavailable, reason: "the connection's user has too many sessions"},
		errResources:          {code: wire.CodeUnavailable, reason: "the connection's user has used up a limit of its own"},
		errHostBlocked:        {code: wire.CodeUnavailable, reason: "the server blocks this host after too many failed connections"},
		errServerShutdown:     {code: wire.CodeUnavailable, reason: "the server is shutting down", ambiguous: true},
		errConnectionKilled:   {code: wire.CodeUnavailable, reason: "the session was ended from outside", ambiguous: true},
		errSessionKilled:      {code: wire.CodeUnavailable, reason: "the session was ended from outside", ambiguous: true},
		errInterrupted:        {code: wire.CodeUnavailable, reason: "the statement was interrupted from outside", ambiguous: true},
		errLockTimeout:        {code: wire.CodeUnavailable, reason: "the server waited too long for a lock"},
		errDeadlock:           {code: wire.CodeUnavailable, reason: "the server ended a deadlock"},
		errSyntax:             {code: wire.CodeEngine, reason: "the server does not understand a statement"},
		errNoTable:            {code: wire.CodeEngine, reason: "a statement names a table that does not exist"},
		errUnknownProcedure:   {code: wire.CodeEngine, reason: "a statement names a routine that does not exist"},
		errCannotUser:         {code: wire.CodeEngine, reason: "the user exists already, or does not exist"},
		errNameTooLong:        {code: wire.CodeInvalid, reason: "the user name is longer than the server takes"},
		errUserIsDefiner:      {code: wire.CodePrivilege, reason: "the user made views, routines, triggers or events that run with its rights; drop them or give them another DEFINER"},
		errPasswordPolicy:     {code: wire.CodeEngine, reason: "the password does not satisfy the server's password policy"},
	}[number]
	return v, ok
}

// translate turns an error of the client library into ours.
func translate(op string, err error) error {
	if err == nil {
		return nil
	}
	var known *account.Error
	if errors.As(err, &known) {
		return err
	}
	e := &account.Error{Op: op, Code: wire.CodeEngine}
	var refused *client.MySQLError
	if errors.As(err, &refused) {
		e.State = string(refused.SQLState[:])
		v, ok := verdictOf(refused.Number)
		if !ok {
			e.Reason = fmt.Sprintf("the server refuses with error %d", refused.Number)
			return e
		}
		e.Code, e.Ambiguous = v.code, v.ambiguous
		e.Reason = fmt.Sprintf("%s (error %d)", v.reason, refused.Number)
		return e
	}
	e.Code, e.Reason = wire.CodeUnavailable, "the connection failed: "+networkReason(err)
	e.Ambiguous = !errors.Is(err, driver.ErrBadConn)
	return e
}

// networkReason is [account.NetworkReason] with what only the client library says.
func networkReason(err error) string {
	return account.NetworkReason(err, func(err error) string {
		if errors.Is(err, client.ErrNoTLS) {
			return "it does not speak TLS"
		}
		return ""
	})
}
