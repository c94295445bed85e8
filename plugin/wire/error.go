package wire

import (
	"strconv"
	"strings"
	"time"
)

// Error is a refusal or a failure with everything a person or a program needs
// to go on. It never holds a secret, row data or an SQL literal, because its
// text stands in clear in audit devices.
type Error struct {
	Code    Code
	Reason  string // one sentence, lower case, without a final stop
	Field   string // the request field at fault, for CodeInvalid
	Policy  string // the policy that decided
	Rule    string // its rule
	Hint    string // the way out
	RetryAt time.Time
}

// Error returns the text form that [ParseError] reads back:
//
//	<code>: <reason> [key="value" …]
//
// with the keys field, policy, rule, retry_at (RFC 3339) and hint, each only
// when set.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(string(e.Code))
	b.WriteString(": ")
	b.WriteString(strings.ReplaceAll(e.Reason, "\n", " "))
	var attributes []string
	add := func(key, value string) {
		if value != "" {
			attributes = append(attributes, key+"="+strconv.Quote(value))
		}
	}
	add("field", e.Field)
	add("policy", e.Policy)
	add("rule", e.Rule)
	if !e.RetryAt.IsZero() {
		add("retry_at", e.RetryAt.UTC().Format(time.RFC3339))
	}
	add("hint", e.Hint)
	if len(attributes) > 0 {
		b.WriteString(" [")
		b.WriteString(strings.Join(attributes, " "))
		b.WriteString("]")
	}
	return b.String()
}

// ParseError finds the text form of an [Error] in an answer of Vault, which may
// have wrapped it ("1 error occurred:\n\t* …"). It returns nil when there is
// none.
func ParseError(text string) *Error {
	for _, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		line = strings.TrimSpace(strings.TrimPrefix(line, "*"))
		code, rest, ok := strings.Cut(line, ": ")
		if !ok || !Code(code).Valid() {
			continue
		}
		e := &Error{Code: Code(code)}
		e.Reason = rest
		if start := attributesStart(rest); start >= 0 && e.parseAttributes(rest[start+2:len(rest)-1]) {
			e.Reason = rest[:start]
		}
		return e
	}
	return nil
}

// attributesStart returns the offset of the " [" that opens the attributes of
// text, or -1. It is the first one after which everything up to the final "]"
// reads as attributes, so a reason may hold brackets of its own.
func attributesStart(text string) int {
	if !strings.HasSuffix(text, "]") {
		return -1
	}
	for at := 0; ; {
		next := strings.Index(text[at:], " [")
		if next < 0 {
			return -1
		}
		at += next
		if new(Error).parseAttributes(text[at+2 : len(text)-1]) {
			return at
		}
		at += 2
	}
}

func (e *Error) parseAttributes(text string) bool {
	if text == "" {
		return false
	}
	for text != "" {
		key, rest, ok := strings.Cut(text, "=")
		if !ok {
			return false
		}
		quoted, err := strconv.QuotedPrefix(rest)
		if err != nil {
			return false
		}
		value, err := strconv.Unquote(quoted)
		if err != nil {
			return false
		}
		switch key {
		case "field":
			e.Field = value
		case "policy":
			e.Policy = value
		case "rule":
			e.Rule = value
		case "hint":
			e.Hint = value
		case "retry_at":
			at, err := time.Parse(time.RFC3339, value)
			if err != nil {
				return false
			}
			e.RetryAt = at
		default:
			return false
		}
		text = strings.TrimPrefix(rest[len(quoted):], " ")
	}
	return true
}
