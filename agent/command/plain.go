package command

import (
	"strconv"
	"strings"
	"unicode"
)

// plain makes a text harmless that somebody else chose, such as a reason or the
// name of a table: what does not print, like escape sequences that rewrite a
// terminal or characters that turn the direction of writing, is shown escaped.
func plain(text string) string {
	var b strings.Builder
	for _, r := range text {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		quoted := strconv.QuoteRune(r)
		b.WriteString(quoted[1 : len(quoted)-1])
	}
	return b.String()
}

// plainLines is plain for a text of several lines.
func plainLines(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		lines[i] = plain(line)
	}
	return strings.Join(lines, "\n")
}
