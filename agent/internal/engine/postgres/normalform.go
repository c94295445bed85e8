package postgres

import "strings"

// normalForm reduces an SQL definition to its words: white space, round brackets
// and casts are left out, constants and quoted names stay as they are.
func normalForm(text string) string {
	b := make([]byte, 0, len(text))
	apart := false // a gap since the last word
	word := func(part string) {
		// One space where two words would run together.
		if apart && len(b) > 0 && part != "" && isWord(b[len(b)-1]) && isWord(part[0]) {
			b = append(b, ' ')
		}
		apart = false
		b = append(b, part...)
	}
	for i := 0; i < len(text); {
		switch c := text[i]; {
		case c == '\'' || c == '"':
			end := quotedEnd(text, i)
			word(text[i:end])
			i = end
		case strings.HasPrefix(text[i:], "::"):
			i = castEnd(text, i+2)
			apart = true
		case c == '(' || c == ')' || c == ' ' || c == '\n' || c == '\t':
			apart = true
			i++
		default:
			word(text[i : i+1])
			i++
		}
	}
	return string(b)
}

func isWord(c byte) bool {
	return c == '_' || c == '$' || c == '"' || c == '\'' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}

// quotedEnd returns the offset after the quoted text that starts at i.
func quotedEnd(text string, i int) int {
	q := text[i]
	for i++; i < len(text); i++ {
		if text[i] != q {
			continue
		}
		if i+1 < len(text) && text[i+1] == q {
			i++
			continue
		}
		return i + 1
	}
	return len(text)
}

// castEnd returns the offset after the type name that starts at i.
func castEnd(text string, i int) int {
	i = nameEnd(text, i)
	for i < len(text) && text[i] == '.' {
		i = nameEnd(text, i+1)
	}
	for _, more := range []string{" varying", " precision"} {
		if strings.HasPrefix(text[i:], more) {
			i += len(more)
		}
	}
	i = modifierEnd(text, i)
	for _, more := range []string{" without time zone", " with time zone"} {
		if strings.HasPrefix(text[i:], more) {
			i += len(more)
		}
	}
	for strings.HasPrefix(text[i:], "[]") {
		i += 2
	}
	return i
}

func nameEnd(text string, i int) int {
	if i < len(text) && text[i] == '"' {
		return quotedEnd(text, i)
	}
	for i < len(text) && text[i] != '"' && text[i] != '\'' && isWord(text[i]) {
		i++
	}
	return i
}

// modifierEnd passes over "(10,2)".
func modifierEnd(text string, i int) int {
	if i >= len(text) || text[i] != '(' {
		return i
	}
	for end := i + 1; end < len(text); end++ {
		switch c := text[end]; {
		case c == ')':
			return end + 1
		case c >= '0' && c <= '9', c == ',', c == '-':
		default:
			return i
		}
	}
	return i
}
