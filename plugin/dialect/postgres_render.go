package dialect

import (
	"errors"
	"fmt"
	"strings"
)

// ValueKind says how a value is quoted where the statement does not quote it.
type ValueKind int

// The kinds.
const (
	LiteralValue ValueKind = iota
	IdentifierValue
)

// Value is what stands for one {{name}} of a statement.
type Value struct {
	Text string
	Kind ValueKind
}

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
		return "", errors.New("the statement is not valid UTF-8 or holds a NUL byte")
	}
	r := renderer{text: statement, values: values}
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
	text   string
	values map[string]Value
	// nested is set within a dollar quoted body.
	nested bool

	out   strings.Builder
	at    int
	place place
	depth int // of block comments
	// escapeEnd is the offset behind the last E'…', or -1: after white space
	// with a line break a further '…' continues it.
	escapeEnd int
}

func (r *renderer) render() (string, error) {
	r.escapeEnd = -1
	for r.at < len(r.text) {
		if done, err := r.placeholder(); err != nil {
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

// take copies n bytes.
func (r *renderer) take(n int) {
	end := min(r.at+n, len(r.text))
	r.out.WriteString(r.text[r.at:end])
	r.at = end
}

// placeholder replaces the {{name}} at the current offset, if there is one.
func (r *renderer) placeholder() (bool, error) {
	rest := r.text[r.at:]
	if !strings.HasPrefix(rest, "{{") {
		return false, nil
	}
	end := strings.Index(rest, "}}")
	if end < 0 {
		return false, nil
	}
	name := rest[2:end]
	value, ok := r.values[name]
	if !ok {
		return false, nil
	}
	written, err := r.write(value)
	if err != nil {
		return false, fmt.Errorf("put {{%s}} into a statement: %w", name, err)
	}
	after := rest[end+2:]
	if r.place == inPlain {
		// Quotes of ours must not join with what stands beside them.
		if r.at > 0 && (wordByte(r.text[r.at-1]) || strings.IndexByte(`&'"`, r.text[r.at-1]) >= 0) {
			written = " " + written
		}
		if strings.HasPrefix(after, "'") || strings.HasPrefix(after, `"`) {
			written += " "
		}
	}
	r.out.WriteString(written)
	r.at += end + 2
	return true, nil
}

var (
	errDollar  = errors.New("the value holds a character that cannot stand inside dollar quotes; take other characters or write the statement without them")
	errComment = errors.New("the value holds a character that cannot stand inside a comment")
	errUnicode = errors.New("the value holds a character that cannot stand inside U& quotes")
)

// write renders value for the current place.
func (r *renderer) write(value Value) (string, error) {
	text := value.Text
	if err := checkText(text); err != nil {
		return "", err
	}
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
		// A slash could end a comment together with a star before it.
		if !harmless(text) || strings.Contains(text, "/") {
			return "", errComment
		}
		return text, nil
	default:
		if value.Kind == IdentifierValue {
			return PostgresIdent(text)
		}
		return PostgresLiteral(text)
	}
}

// harmless reports whether text holds only characters that mean nothing in any
// quoting: no quotes, no backslash, no semicolon, no line break. SCRAM verifiers
// are harmless; their dollar signs are looked at where they matter.
func harmless(text string) bool {
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte("_-.,:@+/=$ ", c) >= 0:
		default:
			return false
		}
	}
	return true
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

func wordByte(c byte) bool {
	return c == '_' || c == '$' || c >= 0x80 ||
		'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
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
	inner := renderer{text: r.text[start : start+length], values: r.values, nested: true}
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
