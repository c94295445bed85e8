package postgres

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/text/secure/precis"
	"golang.org/x/text/unicode/norm"
)

func TestOneSpelling(t *testing.T) {
	t.Parallel()
	for _, password := range []string{
		"", " ", "A1a-0123", "a\tb\x7f", "ä", "Ω", "😀", "密码", "пароль", `;'😀\`, "א1", // the last is one SASLprep forbids: taken as it is
	} {
		require.True(t, oneSpelling(password), "%q", password)
	}
	for _, password := range []string{
		";'😀\\\xff", "\xff", "a\u0308" /* ä, taken apart */, "ﬁ", "①", "Ａ", "ª", "\u212b", // an Ångström
		"\u00a0", "\u2003", "\u3000", "\u1680", // spaces
		"\u00ad", "\u034f", "\u1806", "\u180b", "\u180c", "\u180d", "\u200b", "\u200c", "\u200d", "\u2060", "\ufe00", "\ufe0f", "\ufeff", // RFC 3454, table B.1
	} {
		require.False(t, oneSpelling("secret"+password), "%q", password)
	}
}

// What is of one spelling is what PRECIS and the normalisation of SASLprep leave as it is.
func FuzzOneSpelling(f *testing.F) {
	for _, password := range []string{"pencil", "ä😀", "a\u0308", "ﬁ", "\u00a0", "\xff", "가", "\u1100\u1161"} {
		f.Add(password)
	}
	f.Fuzz(func(t *testing.T, password string) {
		if !oneSpelling(password) {
			return
		}
		require.Equal(t, password, norm.NFKC.String(password))
		if prepared, err := precis.OpaqueString.String(password); err == nil {
			require.Equal(t, password, prepared)
		}
	})
}
