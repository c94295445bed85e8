package dialect

import "strings"

// MySQLMode are the parts of a session's sql_mode that decide how quotes are read.
type MySQLMode struct {
	// AnsiQuotes is ANSI_QUOTES: "…" is an identifier, not a string.
	AnsiQuotes bool
	// NoBackslashEscapes is NO_BACKSLASH_ESCAPES: a backslash in a string is one.
	NoBackslashEscapes bool
}

// MySQLIdent quotes an identifier by backticks, which every mode knows.
func MySQLIdent(name string) (string, error) {
	if err := checkText(name); err != nil {
		return "", err
	}
	return "`" + strings.ReplaceAll(name, "`", "``") + "`", nil
}

// MySQLLiteral quotes a string. The session must use utf8mb4 or another character
// set in which no character holds the byte of a quote or a backslash.
func MySQLLiteral(value string, mode MySQLMode) (string, error) {
	if err := checkText(value); err != nil {
		return "", err
	}
	return "'" + mode.escape(value, '\'') + "'", nil
}

// escape writes value for the inside of quotes.
func (m MySQLMode) escape(value string, quote byte) string {
	if quote != '`' && !m.NoBackslashEscapes && (quote != '"' || !m.AnsiQuotes) {
		value = strings.ReplaceAll(value, `\`, `\\`)
	}
	return strings.ReplaceAll(value, string(quote), string(quote)+string(quote))
}

// backslash reports whether a backslash escapes within quotes of this kind.
func (m MySQLMode) backslash(quote byte) bool {
	switch quote {
	case '\'':
		return !m.NoBackslashEscapes
	case '"':
		return !m.NoBackslashEscapes && !m.AnsiQuotes
	default:
		return false
	}
}
