package postgres

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// sent is what the server gets for a password: a verifier, unless the connection
// says otherwise. A password that no client could send is refused: a verifier can be
// made of one, but a NUL byte ends it on the way. So is one that clients send
// differently, see [oneSpelling].
func (d *Driver) sent(op string, password wire.Secret, iterations int) (string, error) {
	text := password.Reveal()
	if strings.Contains(text, "\x00") {
		return "", &account.Error{Op: op, Code: wire.CodeInvalid, Reason: "the password holds a NUL byte"}
	}
	if !oneSpelling(text) {
		return "", &account.Error{Op: op, Code: wire.CodeInvalid, Reason: "the password holds characters that clients of PostgreSQL normalise, not all in the same way, or is not UTF-8; use a password policy with ASCII characters"}
	}
	if text == "" || d.config.PasswordAuthentication == Plain {
		return text, nil
	}
	verifier, err := scramVerifierOf(text, iterationsOf(iterations))
	if err != nil {
		return "", &account.Error{Op: op, Code: wire.CodeInternal, Reason: "the password's verifier could not be computed"}
	}
	return verifier, nil
}

// oneSpelling says whether every client makes the same bytes of a password before
// it hashes them. RFC 5802 asks for SASLprep (RFC 4013: NFKC, other spaces become a
// space, what is not seen is left out), which libpq and the server do with Unicode's
// tables of 3.2; pgx uses PRECIS (RFC 8265: NFC) instead, for some passwords; other
// clients do nothing. What one cannot normalise it takes as it is, and which those
// are differs, too. So nobody can say what a verifier of a password should be that
// any of them would change.
func oneSpelling(password string) bool {
	if !utf8.ValidString(password) || !norm.NFKC.IsNormalString(password) {
		return false
	}
	return !strings.ContainsFunc(password, func(r rune) bool {
		return r != ' ' && unicode.Is(unicode.Zs, r) || // RFC 3454, table C.1.2
			r == '\u1806' || unicode.In(r, unicode.Cf, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point) // all of table B.1, and more
	})
}
