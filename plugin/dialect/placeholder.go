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

// rendering is a statement whose placeholders are being replaced, whatever the
// product.
type rendering struct {
	text   string
	values map[string]Value

	out strings.Builder
	at  int // how much of text is done
}

// take copies n bytes.
func (r *rendering) take(n int) {
	end := min(r.at+n, len(r.text))
	r.out.WriteString(r.text[r.at:end])
	r.at = end
}

// replace replaces the {{name}} at the current offset, if there is one, by what write
// makes of its value, which is told what comes after it.
func (r *rendering) replace(write func(value Value, after string) (string, error)) (bool, error) {
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
	err := checkText(value.Text)
	var written string
	if err == nil {
		written, err = write(value, rest[end+2:])
	}
	if err != nil {
		return false, fmt.Errorf("put {{%s}} into a statement: %w", name, err)
	}
	r.out.WriteString(written)
	r.at += end + 2
	return true, nil
}

var (
	errStatement = errors.New("the statement is not valid UTF-8 or holds a NUL byte")
	errComment   = errors.New("the value holds a character that cannot stand inside a comment")
)

// commented is a value within a comment.
func commented(text string) (string, error) {
	// A slash could end a comment together with a star before it.
	if !harmless(text) || strings.Contains(text, "/") {
		return "", errComment
	}
	return text, nil
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

func wordByte(c byte) bool {
	return c == '_' || c == '$' || c >= 0x80 ||
		'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}
