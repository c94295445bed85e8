package dialect

import (
	"errors"
	"strings"
	"unicode/utf8"
)

// PostgresNameBytes is the longest identifier PostgreSQL keeps; it cuts longer
// ones without an error.
const PostgresNameBytes = 63

// errNotText is returned for values that PostgreSQL cannot hold in any quoting.
var errNotText = errors.New("the value is not valid UTF-8 or holds a NUL byte")

func checkText(value string) error {
	if !utf8.ValidString(value) || strings.IndexByte(value, 0) >= 0 {
		return errNotText
	}
	return nil
}

// PostgresIdent quotes an identifier.
func PostgresIdent(name string) (string, error) {
	if err := checkText(name); err != nil {
		return "", err
	}
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`, nil
}

// PostgresLiteral quotes a string so that it means the same whatever
// standard_conforming_strings is.
func PostgresLiteral(value string) (string, error) {
	if err := checkText(value); err != nil {
		return "", err
	}
	quoted := "'" + strings.ReplaceAll(value, "'", "''") + "'"
	if strings.Contains(value, `\`) {
		// The space keeps the E apart from a word before it.
		return " E" + strings.ReplaceAll(quoted, `\`, `\\`), nil
	}
	return quoted, nil
}
