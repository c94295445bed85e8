package wire

import (
	"io"
	"regexp"
	"strings"
)

// Words that stand for a value that looked personal.
const (
	RedactedEmail      = "[email]"
	RedactedPhone      = "[phone]"
	RedactedCard       = "[card]"
	RedactedNationalID = "[national-id]"
)

// personalPattern finds candidates; sure decides about one.
type personalPattern struct {
	word string
	// needs is a quick look: without these bytes and so many digits in the text
	// the pattern is not tried.
	needs   string
	digits  int
	pattern *regexp.Regexp
	sure    func(candidate string) bool
}

// personalPatterns are tried in this order. A bare run of digits is never a phone
// number or a national id, since counts and sequence numbers look the same; of
// cards the issuer's prefix, length and check digit must fit.
var personalPatterns = []personalPattern{
	{RedactedEmail, "@", 0, regexp.MustCompile(`[A-Za-z0-9._%+\-]+@(?:[A-Za-z0-9\-]+\.)+[A-Za-z]+`), func(string) bool { return true }},
	{RedactedCard, "", 14, regexp.MustCompile(`[3-6]\d{13,15}|[3-6]\d{3}([ -])\d{4}([ -])\d{4}([ -])\d{4}|3\d{3}([ -])\d{6}([ -])\d{4,5}`), isCard},
	// United States, with the numbers that were never given left out.
	{RedactedNationalID, "-", 9, regexp.MustCompile(`\d{3}-\d{2}-\d{4}`), isSSN},
	// United Kingdom, with or without spaces.
	{RedactedNationalID, "", 6, regexp.MustCompile(`[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z](?: ?\d{2}){3} ?[A-D]`), func(string) bool { return true }},
	// Spain: eight digits, or a letter and seven, and a check letter.
	{RedactedNationalID, "", 7, regexp.MustCompile(`[XYZ]-?\d{7}-?[A-Z]|\d{8}-?[A-Z]`), isDNI},
	// Italy's tax code.
	{RedactedNationalID, "", 7, regexp.MustCompile(`[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]`), func(string) bool { return true }},
	// France, in its usual groups.
	{RedactedNationalID, " ", 13, regexp.MustCompile(`[12] \d{2} (?:0[1-9]|1[0-2]) (?:\d{2}|2[AB]) \d{3} \d{3}(?: \d{2})?`), func(string) bool { return true }},
	// With a country code.
	{RedactedPhone, "+", 8, regexp.MustCompile(`\+[1-9]\d{0,2}(?:[ .\-/]?\(?\d{1,5}\)?){2,6}`), isPhone},
	// As dialled within a country: North America, then those with a leading zero.
	{RedactedPhone, "", 10, regexp.MustCompile(`\([2-9]\d{2}\) ?[2-9]\d{2}[ .\-]\d{4}|[2-9]\d{2}([ .\-])[2-9]\d{2}([ .\-])\d{4}`), isPhone},
	{RedactedPhone, "", 9, regexp.MustCompile(`0[1-9](?:[ .\-]\d{2}){4}|\(?0[1-9]\d{1,4}\)?[ /\-]\d{3,4}[ \-]?\d{3,5}`), isPhone},
}

// RedactPersonal replaces each value in text that looks personal (an e-mail
// address, a phone number, a payment card, a national id) by a word in brackets.
// It is for free text and log lines. Ids, digests, time stamps, addresses and
// counts stay: a candidate counts only where no letter, digit or other part of a
// longer word stands beside it. Applying it twice changes nothing more.
func RedactPersonal(text string) string {
	digits := 0
	for i := range len(text) {
		if c := text[i]; c >= '0' && c <= '9' {
			digits++
		}
	}
	for {
		before := text
		for _, p := range personalPatterns {
			if digits >= p.digits && (p.needs == "" || strings.Contains(text, p.needs)) {
				text = p.replace(text)
			}
		}
		if text == before {
			return text
		}
		// What was replaced may have stood beside another.
	}
}

func (p personalPattern) replace(text string) string {
	var b strings.Builder
	kept, from := 0, 0
	for from < len(text) {
		at := p.pattern.FindStringIndex(text[from:])
		if at == nil {
			break
		}
		start, end := from+at[0], from+at[1]
		if n := escapeBefore(text, start); n > 0 {
			from = start + n // an escape of JSON is no part of what follows it
			continue
		}
		if !alone(text, start, end) || !p.sure(text[start:end]) {
			if p.word == RedactedEmail {
				from = nextAddress(text, start, end)
				continue
			}
			from = start + 1 // what was found may hide another that begins later
			if word := wordEnd(text, start); start > 0 && wordByte(text[start-1]) && word > from {
				from = word // nothing within a longer word counts
			}
			continue
		}
		b.WriteString(text[kept:start])
		b.WriteString(p.word)
		kept, from = end, end
	}
	if kept == 0 {
		return text
	}
	b.WriteString(text[kept:])
	return b.String()
}

// nextAddress is where the next e-mail address may begin after text[start:end],
// which looks like one and is none. Its part before the sign may be as long as the
// text, and whatever begins within it ends where it ends: so it is passed over,
// but for what begins after a percent sign, which may stand beside an address.
func nextAddress(text string, start, end int) int {
	sign := start + strings.IndexByte(text[start:end], '@')
	if !ends(text, end) {
		return sign + 1
	}
	if at := strings.IndexByte(text[start:sign], '%'); at >= 0 {
		return start + at + 1
	}
	return sign + 1
}

// alone reports whether text[start:end] is a word of its own.
func alone(text string, start, end int) bool {
	if start > 0 {
		if before := text[start-1]; wordByte(before) && !escaped(text, start) || strings.IndexByte("+/=-.#$@", before) >= 0 {
			return false
		}
		// A number of JSON, as counts are in log lines.
		if start > 1 && text[start-1] == ':' && text[start-2] == '"' {
			return false
		}
	}
	return ends(text, end)
}

// ends reports whether no longer word goes on at end.
func ends(text string, end int) bool {
	if end < len(text) {
		if wordByte(text[end]) || strings.IndexByte("=@+", text[end]) >= 0 {
			return false
		}
		// A separator counts as part of a longer word when the word goes on.
		if strings.IndexByte("-./:", text[end]) >= 0 && end+1 < len(text) && wordByte(text[end+1]) {
			return false
		}
	}
	return true
}

// escapeBefore is how many bytes at start belong to an escape of JSON (\n, \u00e9)
// whose backslash stands before them.
func escapeBefore(text string, start int) int {
	for back := 1; back <= 5 && back <= start; back++ {
		if text[start-back] == '\\' {
			length := 1
			if at := start - back + 1; at < len(text) && text[at] == 'u' {
				length = 5
			}
			return max(0, length-back+1)
		}
	}
	return 0
}

// escaped reports whether an escape of JSON ends right before start.
func escaped(text string, start int) bool {
	return start >= 2 && text[start-2] == '\\' || start >= 6 && text[start-6:start-4] == `\u`
}

func wordByte(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' || c >= 0x80
}

// wordEnd is the end of the word that goes on at i.
func wordEnd(text string, i int) int {
	for i < len(text) && wordByte(text[i]) {
		i++
	}
	return i
}

func digitsOf(text string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, text)
}

// isCard checks issuer, length and the check digit of Luhn.
func isCard(candidate string) bool {
	d := digitsOf(candidate)
	two, four := d[:2], d[:4]
	switch {
	case d[0] == '4' && len(d) == 16,
		two >= "51" && two <= "55" && len(d) == 16,
		two == "35" && len(d) == 16,
		(four == "6011" || two == "65") && len(d) == 16,
		(two == "34" || two == "37") && len(d) == 15,
		(two == "36" || two == "38" || two == "30") && len(d) == 14:
	default:
		return false
	}
	sum := 0
	for i := range len(d) {
		n := int(d[len(d)-1-i] - '0')
		if i%2 == 1 {
			if n *= 2; n > 9 {
				n -= 9
			}
		}
		sum += n
	}
	return sum%10 == 0
}

func isSSN(candidate string) bool {
	area, group, serial := candidate[:3], candidate[4:6], candidate[7:]
	return area != "000" && area != "666" && area < "900" && group != "00" && serial != "0000"
}

// isDNI checks the letter: the number modulo 23.
func isDNI(candidate string) bool {
	const letters = "TRWAGMYFPDXBNJZSQVHLCKE"
	number := 0
	if at := strings.IndexByte("XYZ", candidate[0]); at >= 0 {
		number = at
	}
	for _, r := range digitsOf(candidate) {
		number = number*10 + int(r-'0')
	}
	return letters[number%23] == candidate[len(candidate)-1]
}

// isPhone checks the number of digits: E.164 allows 15, and fewer than eight are
// some other number.
func isPhone(candidate string) bool {
	n := len(digitsOf(candidate))
	return n >= 8 && n <= 15
}

// redactingWriter is what [NewRedactingWriter] returns.
type redactingWriter struct{ out io.Writer }

// NewRedactingWriter returns a writer that applies [RedactPersonal] to each Write,
// which must be one whole log line, and passes it on.
func NewRedactingWriter(out io.Writer) io.Writer { return redactingWriter{out} }

func (w redactingWriter) Write(line []byte) (int, error) {
	text := string(line)
	clean := RedactPersonal(text)
	if _, err := io.WriteString(w.out, clean); err != nil {
		return 0, err //nolint:wrapcheck // the writer's own words
	}
	return len(line), nil
}
