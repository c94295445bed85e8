package dialect

import (
	"errors"
	"strings"
)

// RenderMySQL takes text apart at the semicolons outside quotes and comments,
// replaces each {{name}} by the value of that name as [RenderPostgres] does, and
// returns the statements; empty ones are left out. A value can neither end its
// quotes nor begin a statement.
//
// Within comments only values of harmless characters are taken. Comments that the
// server executes (/*! and /*M!), and quotes or comments that are left open, are
// refused. Errors do not repeat values. MySQL and MariaDB read the result the same.
func RenderMySQL(text string, values map[string]Value, mode MySQLMode) ([]string, error) {
	if err := checkText(text); err != nil {
		return nil, errStatement
	}
	r := mysqlRenderer{rendering: rendering{text: text, values: values}, mode: mode}
	return r.render()
}

type mysqlRenderer struct {
	rendering  // out is of the statement at hand
	mode       MySQLMode
	statements []string
	// code says that the statement holds more than white space and comments.
	code bool
	// quote is the open quote, '#' within a comment up to the line's end, '*'
	// within a block comment, else 0.
	quote byte
}

func (r *mysqlRenderer) render() ([]string, error) {
	for r.at < len(r.text) {
		if done, err := r.replace(r.apart); err != nil {
			return nil, err
		} else if done {
			continue
		}
		if r.quote != 0 {
			r.quoted()
			continue
		}
		if err := r.plain(); err != nil {
			return nil, err
		}
	}
	switch r.quote {
	case 0, '#':
	case '*':
		return nil, errors.New("the statement leaves a comment open")
	default:
		return nil, errors.New("the statement leaves a quote open")
	}
	r.end()
	return r.statements, nil
}

// end closes the statement at hand.
func (r *mysqlRenderer) end() {
	if r.code {
		r.statements = append(r.statements, strings.TrimSpace(r.out.String()))
	}
	r.out.Reset()
	r.code = false
}

// apart renders value for the current place. Quotes of ours must not join with what
// stands beside them: two equal quotes are one character, and a word before a quote
// says how it is read.
func (r *mysqlRenderer) apart(value Value, after string) (string, error) {
	written, err := r.write(value)
	if err != nil || r.quote != 0 {
		return written, err
	}
	r.code = true
	if before := r.out.String(); before != "" {
		if last := before[len(before)-1]; wordByte(last) || strings.IndexByte("'\"`", last) >= 0 {
			written = " " + written
		}
	}
	if after != "" && strings.IndexByte("'\"`", after[0]) >= 0 {
		written += " "
	}
	return written, nil
}

func (r *mysqlRenderer) write(value Value) (string, error) {
	switch r.quote {
	case 0:
		if value.Kind == IdentifierValue {
			return MySQLIdent(value.Text)
		}
		return MySQLLiteral(value.Text, r.mode)
	case '#', '*':
		return commented(value.Text)
	default:
		return r.mode.escape(value.Text, r.quote), nil
	}
}

// plain moves on outside of quotes and comments.
func (r *mysqlRenderer) plain() error {
	rest := r.text[r.at:]
	switch {
	case rest[0] == ';':
		r.at++
		r.end()
	case rest[0] == '\'' || rest[0] == '"' || rest[0] == '`':
		r.quote, r.code = rest[0], true
		r.take(1)
	case rest[0] == '#', dashComment(rest):
		r.quote = '#'
		r.take(1)
	case strings.HasPrefix(rest, "/*!"), strings.HasPrefix(rest, "/*M!"):
		return errors.New("the statement holds a comment that the server executes; write it without /*! … */")
	case strings.HasPrefix(rest, "/*"):
		r.quote = '*'
		r.take(2)
	default:
		if strings.IndexByte(" \t\r\n\f\v", rest[0]) < 0 {
			r.code = true
		}
		r.take(1)
	}
	return nil
}

// dashComment reports whether text begins a comment: two dashes that white space
// or the end follows, otherwise they are two signs.
func dashComment(text string) bool {
	return strings.HasPrefix(text, "--") && (len(text) == 2 || text[2] <= ' ' || text[2] == 0x7f)
}

// quoted moves on within quotes and comments.
func (r *mysqlRenderer) quoted() {
	rest := r.text[r.at:]
	switch {
	case r.quote == '#':
		// Only a line feed ends it.
		if rest[0] == '\n' {
			r.quote = 0
		}
		r.take(1)
	case r.quote == '*':
		if strings.HasPrefix(rest, "*/") {
			r.quote = 0
			r.take(2)
			return
		}
		r.take(1)
	case rest[0] == '\\' && r.mode.backslash(r.quote):
		r.escaped()
	case len(rest) > 1 && rest[0] == r.quote && rest[1] == r.quote:
		r.take(2)
	case rest[0] == r.quote:
		r.quote = 0
		r.take(1)
	default:
		r.take(1)
	}
}

// escaped copies a backslash and the character it escapes. A placeholder is not
// taken apart: its value is escaped by itself, and the backslash would then escape
// the value's first character, so the backslash stands for itself there.
func (r *mysqlRenderer) escaped() {
	if strings.HasPrefix(r.text[r.at+1:], "{{") {
		r.out.WriteString(`\\`)
		r.at++
		return
	}
	r.take(2)
}
