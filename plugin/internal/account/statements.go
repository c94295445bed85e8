package account

import (
	"strings"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// CheckBinding refuses creation statements that make a login nobody, or anybody,
// could use: those of a public key that do not put it where the server looks, and,
// where emptyPassword says that the server lets in whoever gives no password,
// those of a certificate that do not name it.
func CheckBinding(req CreateRequest, emptyPassword bool) error {
	refusal := func(reason string) error {
		return &Error{Op: "create", Code: wire.CodeInvalid, Reason: "the creation statements " + reason}
	}
	switch {
	case !req.Password.Empty():
		return nil
	case len(req.PublicKey) > 0:
		if !uses(req.Statements, "public_key") {
			return refusal("of a login with a key do not hold {{public_key}}, so nobody could log in with it")
		}
	case req.CommonName == "":
		return refusal("are for a login with neither password, key nor certificate")
	case emptyPassword && !uses(req.Statements, "common_name"):
		return refusal("of a login with a certificate do not name it, so anybody could log in; write REQUIRE SUBJECT '/CN={{common_name}}'")
	}
	if emptyPassword && uses(req.Statements, "password") {
		return refusal("hold {{password}}, which a login with a key or a certificate does not have")
	}
	return nil
}

// uses reports whether a placeholder stands in one of the statements.
func uses(statements []string, name string) bool {
	for _, statement := range statements {
		if strings.Contains(statement, "{{"+name+"}}") {
			return true
		}
	}
	return false
}

// Timestamp is how {{expiration}} is written; sessions are set to UTC.
func Timestamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05-0700") }

// Unrendered is the error of a statement that cannot take its values.
func Unrendered(op string, err error) error {
	return &Error{Op: op, Code: wire.CodeInvalid, Reason: err.Error()}
}
