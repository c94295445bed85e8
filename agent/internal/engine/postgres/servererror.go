package postgres

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// serverError is all we keep of an error of the server. Message, DETAIL, HINT
// and CONTEXT carry values of rows and literals of statements; names and
// SQLSTATE do not.
type serverError struct {
	State                             string
	Schema, Table, Column, Constraint string
}

func (e *serverError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "SQLSTATE %s", e.State)
	switch {
	case e.Constraint != "" && e.Table != "":
		fmt.Fprintf(&b, " (constraint %s of table %s)", e.Constraint, qualified(e.Schema, e.Table))
	case e.Constraint != "":
		fmt.Fprintf(&b, " (constraint %s)", e.Constraint)
	case e.Column != "":
		fmt.Fprintf(&b, " (column %s of table %s)", e.Column, qualified(e.Schema, e.Table))
	case e.Table != "":
		fmt.Fprintf(&b, " (table %s)", qualified(e.Schema, e.Table))
	}
	return b.String()
}

func qualified(schema, name string) string {
	if schema == "" {
		return name
	}
	return schema + "." + name
}

// parseServerError reads the fields of an ErrorResponse.
func parseServerError(body []byte) *serverError {
	e := &serverError{State: "XX000"}
	for len(body) > 1 && body[0] != 0 {
		field := body[0]
		value := cString(body[1:])
		body = body[min(len(body), 2+len(value)):]
		switch field {
		case 'C':
			e.State = value
		case 's':
			e.Schema = value
		case 't':
			e.Table = value
		case 'c':
			e.Column = value
		case 'n':
			e.Constraint = value
		}
	}
	return e
}

// clean reduces err to what may be shown: a serverError, or the plain words of
// a network or TLS failure without user, database or address.
func clean(err error) error {
	var known *serverError
	if errors.As(err, &known) {
		return known
	}
	var reported *pgconn.PgError
	if errors.As(err, &reported) {
		return &serverError{
			State: reported.Code, Schema: reported.SchemaName, Table: reported.TableName,
			Column: reported.ColumnName, Constraint: reported.ConstraintName,
		}
	}
	switch {
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return context.DeadlineExceeded
	case certificateRefused(err):
		return errCertificate
	case errors.Is(err, errNoTLS), strings.Contains(err.Error(), "server refused TLS connection"):
		return errNoTLS
	case errors.Is(err, errProtocol):
		return errProtocol
	case errors.Is(err, errRowCount):
		return errRowCount
	case errors.Is(err, errStuck):
		return errStuck
	}
	return errConnection
}

var (
	errConnection  = errors.New("the connection failed or was closed")
	errCertificate = errors.New("the server's certificate is not accepted")
	errNoTLS       = errors.New("the server does not offer TLS")
)

func certificateRefused(err error) bool {
	var (
		authority x509.UnknownAuthorityError
		name      x509.HostnameError
		invalid   x509.CertificateInvalidError
		verify    *tls.CertificateVerificationError
	)
	return errors.Is(err, errCertificate) || errors.As(err, &authority) || errors.As(err, &name) ||
		errors.As(err, &invalid) || errors.As(err, &verify)
}

// fault turns err, met on one side while doing something, into an error that
// may leave the worker. An *operation.Error passes through.
func fault(step wire.Step, side wire.Side, doing string, err error) *operation.Error {
	var decided *operation.Error
	if errors.As(err, &decided) {
		return decided
	}
	var mistaken *sideError
	if errors.As(err, &mistaken) {
		side, err = mistaken.side, mistaken.err
	}
	cause := clean(err)
	code, hint := codeOf(side, cause)
	return &operation.Error{Step: step, Code: code, Reason: doing + ": " + cause.Error(), Hint: hint, Err: cause}
}

// sideError says on which side of a relay err was met.
type sideError struct {
	side wire.Side
	err  error
}

func (e *sideError) Error() string { return string(e.side) + ": " + e.err.Error() }
func (e *sideError) Unwrap() error { return e.err }

func unavailable(side wire.Side) wire.Code {
	if side == wire.Source {
		return wire.CodeSourceUnavailable
	}
	return wire.CodeTargetUnavailable
}

// codeOf decides what a cleaned error means.
func codeOf(side wire.Side, err error) (wire.Code, string) {
	var server *serverError
	if !errors.As(err, &server) {
		switch {
		case errors.Is(err, context.Canceled):
			return wire.CodeCancelled, ""
		case errors.Is(err, errCertificate):
			return unavailable(side), "set the connection's root CA and host name to those of the server's certificate"
		case errors.Is(err, errNoTLS):
			return unavailable(side), "turn TLS on at the server, or choose another sslmode for the connection"
		case errors.Is(err, errProtocol):
			return wire.CodeEngine, ""
		case errors.Is(err, errRowCount):
			return wire.CodeCheckFailed, ""
		case errors.Is(err, errStuck):
			return wire.CodeInternal, ""
		}
		return unavailable(side), fmt.Sprintf("check that the %s database is running and reachable from the agent's host", side)
	}
	switch state := server.State; state {
	case "28P01", "28000":
		return wire.CodeLoginRefused, "check the role's creation statements and the server's pg_hba.conf for the agent's host"
	case "42501":
		return wire.CodePrivilege, fmt.Sprintf("grant the %s purpose's role what it lacks", side)
	case "53100":
		return wire.CodeDiskFull, fmt.Sprintf("free space on the %s server", side)
	case "3D000", "57P01", "57P02", "57P03":
		return unavailable(side), ""
	case "53300":
		return unavailable(side), fmt.Sprintf("raise max_connections at the %s, the role's connection limit, or lower jobs", side)
	case "53200":
		return wire.CodeEngine, "raise max_locks_per_transaction or the memory of the server"
	case "0A000", "58P01":
		return wire.CodeUnsupported, ""
	default:
		if strings.HasPrefix(state, "08") {
			return unavailable(side), ""
		}
	}
	return wire.CodeEngine, ""
}

// stateOf returns the SQLSTATE of err, or "".
func stateOf(err error) string {
	var known *serverError
	if errors.As(err, &known) {
		return known.State
	}
	var reported *pgconn.PgError
	if errors.As(err, &reported) {
		return reported.Code
	}
	return ""
}
