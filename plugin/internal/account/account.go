// Package account makes, renews and ends logins on database servers. [Driver] is
// the seam; there is one package per database product below this one, and
// package accounttest checks each of them against the contract.
//
// Guarantees: no error of a wrapped driver ([Sanitize]) holds a secret, End can
// be repeated, and Create tells when it does not know whether it took effect.
package account

import (
	"context"
	"errors"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Driver manages logins on one database server. It is safe for concurrent use;
// calls do not wait for each other but for a connection slot. Every call ends
// within the driver's own timeouts, whatever the context.
type Driver interface {
	// Type is the database product.
	Type() wire.EngineType
	// Verify logs in with the driver's own account.
	Verify(ctx context.Context) error
	// Create makes a login. It is atomic: on an error nothing was made, unless
	// the error says Ambiguous.
	Create(ctx context.Context, req CreateRequest) error
	// Renew moves the login's own expiry, where the server knows one. A missing
	// login is an error with code not_found.
	Renew(ctx context.Context, req RenewRequest) error
	// End shuts the login out, ends its sessions and removes it. A login that
	// is gone already is success. After an error the login can no longer log in
	// if the server could be reached and allowed that much.
	End(ctx context.Context, req EndRequest) error
	// Rotate changes the credential of an existing login: its password or, for
	// rsa_private_key, its public key. Repeating it with the same credential is
	// fine. A missing login is an error with code not_found.
	Rotate(ctx context.Context, req RotateRequest) error
	// Login checks that username and password log in: nil when they do, an
	// [Error] with code login_refused when they do not.
	Login(ctx context.Context, username string, password wire.Secret) error
	// Keeps reports whether the server itself keeps the record of a login that
	// these creation statements make: when it expires, which Renew's default
	// moves, and the request's Note. It does not ask the server.
	Keeps(statements []string) bool
	// Logins lists the logins whose names begin with prefix and that can log in
	// or have a note.
	Logins(ctx context.Context, prefix string) ([]Login, error)
	// Find is Logins for the login of exactly this name: ok is false when there is
	// none, also because the product can hold no such name. The server hands over no
	// other for it, however many it has.
	Find(ctx context.Context, name string) (login Login, ok bool, err error)
	// Identity tells which server this is and, if it has the named database,
	// which one. An empty name is the driver's own database. It answers or
	// fails within 2 s.
	Identity(ctx context.Context, database string) (wire.ServerIdentity, error)
	// Close ends the driver's sessions; calls in flight end with an error or on
	// their own. The driver cannot be used afterwards.
	Close()
}

// CreateRequest asks for a login. One of Password, PublicKey and CommonName is set;
// a product that knows no logins of that kind, or statements that would not bind
// the login to it, are an error.
type CreateRequest struct {
	Username   string
	Password   wire.Secret
	PublicKey  []byte    // PEM
	CommonName string    // of the certificate the login will show
	Expiration time.Time // when the server itself may refuse the login
	// Statements are the role's creation statements with their placeholders.
	Statements []string
	// ConnectionLimit caps the login's sessions; 0 leaves it to the statements.
	ConnectionLimit int
	// Note is kept by the server beside the login, where anybody may read it, and
	// is gone with the login. It is "" unless the driver [Driver.Keeps].
	Note string
	// Iterations is how often the password is stretched, where the product has a
	// verifier (SCRAM); 0 is the product's default.
	Iterations int
}

// Login is what a server knows of a login.
type Login struct {
	Name     string
	CanLogin bool
	// Expires is from when the server lets it in no more; zero when it does not
	// know such a time.
	Expires time.Time
	// Note is the one of [CreateRequest], "" when there is none.
	Note string
}

// Named are logins of which no more than the names is known.
func Named(names []string) []Login {
	var logins []Login
	for _, name := range names {
		logins = append(logins, Login{Name: name, CanLogin: true})
	}
	return logins
}

// RenewRequest moves a login's expiry.
type RenewRequest struct {
	Username   string
	Expiration time.Time
	Statements []string // empty: the driver's default
}

// EndRequest removes a login.
type EndRequest struct {
	Username   string
	Statements []string // empty: the driver's default
}

// RotateRequest changes the credential of a login; one of Password and PublicKey
// is set.
type RotateRequest struct {
	Username   string
	Password   wire.Secret
	PublicKey  []byte   // PEM
	Statements []string // empty: the driver's default
	// Iterations is as in [CreateRequest].
	Iterations int
}

// Error is what a driver reports: what was tried, what went wrong in our words,
// and the server's own code. It never wraps an error of the database's client
// library, because those hold connection strings and values.
type Error struct {
	Op   string // connect, prepare, create, renew, end, rotate, login, list, find, identify, verify, render
	Code wire.Code
	// Reason is one sentence without secrets.
	Reason string
	// State is the server's error code (SQLSTATE), empty for our own findings.
	State string
	// Ambiguous says that the call may have taken effect.
	Ambiguous bool
}

// Error returns "<op>: <reason> (SQLSTATE <state>)".
func (e *Error) Error() string {
	text := e.Op + ": " + e.Reason
	if e.State != "" {
		text += " (SQLSTATE " + e.State + ")"
	}
	return text
}

// FieldError says which part of a driver's configuration is wrong; Field is the
// name used in config/. The text holds no secret.
type FieldError struct {
	Field  string
	Reason string
}

// Error returns "<field>: <reason>".
func (e *FieldError) Error() string { return e.Field + ": " + e.Reason }

// Unreachable reports whether err says that the server could not be asked at all.
func Unreachable(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == wire.CodeUnavailable
}

// Ambiguous reports whether err leaves open if the call took effect. Errors of
// unknown kind do.
func Ambiguous(err error) bool {
	if err == nil {
		return false
	}
	var e *Error
	return !errors.As(err, &e) || e.Ambiguous
}
