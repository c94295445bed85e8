package account

import (
	"context"
	"errors"
	"strings"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Sanitize wraps a driver so that no error of it holds one of secrets or the
// password of the request at hand, nor a piece of one. Where a message does, the
// whole message is dropped: a placeholder in its middle would show the length and
// place of what was there.
func Sanitize(driver Driver, secrets ...wire.Secret) Driver {
	return &sanitized{driver: driver, secrets: secrets}
}

type sanitized struct {
	driver  Driver
	secrets []wire.Secret
}

var (
	_ Driver   = (*sanitized)(nil)
	_ Preparer = (*sanitized)(nil)
	_ Leaver   = (*sanitized)(nil)
)

// pieceBytes is the length of a piece of a secret that may not be shown.
const pieceBytes = 6

func (s *sanitized) clean(op string, err error, more ...wire.Secret) error {
	if err == nil {
		return nil
	}
	var e *Error
	if !errors.As(err, &e) {
		// Not of our making, so nothing is known about its text.
		return &Error{Op: op, Code: wire.CodeEngine, Reason: "the database driver failed", Ambiguous: true}
	}
	for _, secret := range append(more, s.secrets...) {
		if holdsPiece(e.Reason, secret.Reveal()) {
			hidden := *e
			hidden.Reason = "the database refused; its message is withheld because it repeats a secret"
			return &hidden
		}
	}
	return e
}

// holdsPiece reports whether text holds a piece of secret.
func holdsPiece(text, secret string) bool {
	if secret == "" {
		return false
	}
	if len(secret) <= pieceBytes {
		return strings.Contains(text, secret)
	}
	for i := 0; i+pieceBytes <= len(secret); i++ {
		if strings.Contains(text, secret[i:i+pieceBytes]) {
			return true
		}
	}
	return false
}

func (s *sanitized) Type() wire.EngineType { return s.driver.Type() }

func (s *sanitized) Verify(ctx context.Context) error {
	return s.clean("verify", s.driver.Verify(ctx))
}

func (s *sanitized) Prepare(ctx context.Context, preparation Preparation) error {
	return s.clean("prepare", Prepare(ctx, s.driver, preparation))
}

func (s *sanitized) Create(ctx context.Context, req CreateRequest) error {
	return s.clean("create", s.driver.Create(ctx, req), req.Password)
}

func (s *sanitized) Renew(ctx context.Context, req RenewRequest) error {
	return s.clean("renew", s.driver.Renew(ctx, req))
}

func (s *sanitized) End(ctx context.Context, req EndRequest) error {
	return s.clean("end", s.driver.End(ctx, req))
}

func (s *sanitized) Rotate(ctx context.Context, req RotateRequest) error {
	return s.clean("rotate", s.driver.Rotate(ctx, req), req.Password)
}

func (s *sanitized) Login(ctx context.Context, username string, password wire.Secret) error {
	return s.clean("login", s.driver.Login(ctx, username, password), password)
}

func (s *sanitized) Keeps(statements []string) bool { return s.driver.Keeps(statements) }

func (s *sanitized) Logins(ctx context.Context, prefix string) ([]Login, error) {
	logins, err := s.driver.Logins(ctx, prefix)
	return logins, s.clean("list", err)
}

func (s *sanitized) Find(ctx context.Context, name string) (Login, bool, error) {
	login, ok, err := s.driver.Find(ctx, name)
	return login, ok, s.clean("find", err)
}

func (s *sanitized) Identity(ctx context.Context, database string) (wire.ServerIdentity, error) {
	identity, err := s.driver.Identity(ctx, database)
	return identity, s.clean("identify", err)
}

func (s *sanitized) Leave() { Leave(s.driver) }

func (s *sanitized) Close() { s.driver.Close() }
