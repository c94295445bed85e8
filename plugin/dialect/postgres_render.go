package dialect

import (
	"errors"
	"fmt"
	"strings"
)

// RenderPostgres replaces each {{name}} in statement by the value of that name,
// written so that it stays one value at the place where it stands:
//
//   - inside '…' and E'…' and "…" it is escaped for these quotes, so statements
//     that write '{{password}}' and "{{name}}" mean what they seem to mean;
//   - without quotes it is put into quotes of its kind;
//   - inside dollar quotes, comments, and strings with Unicode escapes only
//     values of harmless characters are taken, others are refused, because what
//     such text means is decided elsewhere.
//
// Names without a value stay as they are. A statement that leaves a quote or a
// comment open is refused, so rendered statements can be joined by semicolons.
// The session must have standard_conforming_strings on. Errors do not repeat
// values.
func RenderPostgres(statement string, values map[string]Value) (string, error) {
	if err := checkText(statement); err != nil {
		return "", errStatement
	}
	r := renderer{rendering: rendering{text: statement, values: values}}
	return r.render()
}

// place is the lexical context within a statement.
type place int

const (
	inPlain place = iota
	inString
	inEscapeString  // E'…'
	inUnicodeString // U&'…'
	inIdent
	inUnicodeIdent // U&"…"
	inLineComment
	inBlockComment
)

type renderer struct {
	rendering
	// nested is set within a dollar quoted body.
	nested bool

	place place
	depth int // of block comments
	// escapeEnd is the offset behind the last E'…', or -1: after white space
	// with a line break a further '…' continues it.
	escapeEnd int
}

func (r *renderer) render() (string, error) {
	r.escapeEnd = -1
	for r.at < len(r.text) {
		if done, err := r.replace(r.apart); err != nil {
			return "", err
		} else if done {
			continue
		}
		if r.place == inPlain {
			if err := r.plain(); err != nil {
				return "", err
			}
			continue
		}
		r.quoted()
	}
	if r.nested {
		// A body need not be SQL; only its closing tag ends it.
		return r.out.String(), nil
	}
	switch r.place {
	case inPlain, inLineComment:
		return r.out.String(), nil
	case inBlockComment:
		return "", errors.New("the statement leaves a comment open")
	default:
		return "", errors.New("the statement leaves a quote open")
	}
}

// apart renders value for the current place. Quotes of ours must not join with what
// stands beside them.
func (r *renderer) apart(value Value, after string) (string, error) {
	written, err := r.write(value)
	if err != nil || r.place != inPlain {
		return written, err
	}
	if r.at > 0 && (wordByte(r.text[r.at-1]) || strings.IndexByte(`&'"`, r.text[r.at-1]) >= 0) {
		written = " " + written
	}
	if strings.HasPrefix(after, "'") || strings.HasPrefix(after, `"`) {
		written += " "
	}
	return written, nil
}

var (
	errDollar  = errors.New("the value holds a character that cannot stand inside dollar quotes; take other characters or write the statement without them")
	errUnicode = errors.New("the value holds a character that cannot stand inside U& quotes")
)

func (r *renderer) write(value Value) (string, error) {
	text := value.Text
	if r.nested && !harmless(text) {
		return "", errDollar
	}
	switch r.place {
	case inString:
		return strings.ReplaceAll(text, "'", "''"), nil
	case inEscapeString:
		return strings.ReplaceAll(strings.ReplaceAll(text, `\`, `\\`), "'", "''"), nil
	case inIdent:
		return strings.ReplaceAll(text, `"`, `""`), nil
	case inUnicodeString, inUnicodeIdent:
		if !harmless(text) {
			return "", errUnicode
		}
		return text, nil
	case inLineComment, inBlockComment:
		return commented(text)
	default:
		if value.Kind == IdentifierValue {
			return PostgresIdent(text)
		}
		return PostgresLiteral(text)
	}
}

// plain moves on outside of quotes and comments.
func (r *renderer) plain() error {
	rest := r.text[r.at:]
	switch {
	case rest[0] == '\'':
		switch {
		case r.prefixed("e"), r.continuesEscape():
			r.place = inEscapeString
		case r.prefixed("u&"):
			r.place = inUnicodeString
		default:
			r.place = inString
		}
		r.take(1)
	case rest[0] == '"':
		r.place = inIdent
		if r.prefixed("u&") {
			r.place = inUnicodeIdent
		}
		r.take(1)
	case strings.HasPrefix(rest, "--"):
		r.place = inLineComment
		r.take(2)
	case strings.HasPrefix(rest, "/*"):
		r.place, r.depth = inBlockComment, 1
		r.take(2)
	case rest[0] == '$':
		return r.dollar()
	default:
		r.take(1)
	}
	return nil
}

// prefixed reports whether the word prefix (lower case) stands right before the
// quote at the current offset and is a word of its own.
func (r *renderer) prefixed(prefix string) bool {
	start := r.at - len(prefix)
	if start < 0 || !strings.EqualFold(r.text[start:r.at], prefix) {
		return false
	}
	return start == 0 || !wordByte(r.text[start-1])
}

func (r *renderer) continuesEscape() bool {
	if r.escapeEnd < 0 {
		return false
	}
	between := r.text[r.escapeEnd:r.at]
	// Comments may stand between the parts too. Taking any text with a line
	// break for a continuation would be wrong for ordinary strings, so only
	// what begins and stays as white space and comments counts.
	return strings.ContainsAny(between, "\n\r") && blank(between)
}

// blank reports whether text is white space and line comments only.
func blank(text string) bool {
	for _, line := range strings.FieldsFunc(text, func(c rune) bool { return c == '\n' || c == '\r' }) {
		line = strings.Trim(line, " \t\f\v")
		if line != "" && !strings.HasPrefix(line, "--") {
			return false
		}
	}
	return true
}

// dollar copies a dollar quoted string, or a single dollar sign.
func (r *renderer) dollar() error {
	if r.at > 0 && wordByte(r.text[r.at-1]) {
		r.take(1)
		return nil
	}
	tag := dollarTag(r.text[r.at:])
	if tag == "" {
		r.take(1)
		return nil
	}
	start := r.at + len(tag)
	length := strings.Index(r.text[start:], tag)
	if length < 0 {
		return errors.New("the statement leaves a dollar quote open")
	}
	inner := renderer{rendering: rendering{text: r.text[start : start+length], values: r.values}, nested: true}
	body, err := inner.render()
	if err != nil {
		return err
	}
	if strings.Index(body+tag, tag) != len(body) {
		return fmt.Errorf("put a value into a statement: %w", errDollar)
	}
	r.out.WriteString(tag)
	r.out.WriteString(body)
	r.out.WriteString(tag)
	r.at = start + length + len(tag)
	return nil
}

// dollarTag returns the opening tag ($$ or $word$) text begins with, or "".
func dollarTag(text string) string {
	for i := 1; i < len(text); i++ {
		c := text[i]
		if c == '$' {
			return text[:i+1]
		}
		if !wordByte(c) || i == 1 && '0' <= c && c <= '9' {
			return ""
		}
	}
	return ""
}

// quoted moves on within quotes and comments.
func (r *renderer) quoted() {
	rest := r.text[r.at:]
	switch r.place {
	case inString, inEscapeString, inUnicodeString:
		switch {
		case r.place == inEscapeString && rest[0] == '\\':
			r.take(2)
		case strings.HasPrefix(rest, "''"):
			r.take(2)
		case rest[0] == '\'':
			r.take(1)
			if r.place == inEscapeString {
				r.escapeEnd = r.at
			}
			r.place = inPlain
		default:
			r.take(1)
		}
	case inIdent, inUnicodeIdent:
		switch {
		case strings.HasPrefix(rest, `""`):
			r.take(2)
		case rest[0] == '"':
			r.take(1)
			r.place = inPlain
		default:
			r.take(1)
		}
	case inLineComment:
		if rest[0] == '\n' || rest[0] == '\r' {
			r.place = inPlain
		}
		r.take(1)
	case inBlockComment:
		switch {
		case strings.HasPrefix(rest, "/*"):
			r.depth++
			r.take(2)
		case strings.HasPrefix(rest, "*/"):
			r.depth--
			r.take(2)
			if r.depth == 0 {
				r.place = inPlain
			}
		default:
			r.take(1)
		}
	}
}
