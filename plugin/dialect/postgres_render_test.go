package dialect

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func values(name, password string) map[string]Value {
	return map[string]Value{"name": {Text: name, Kind: IdentifierValue}, "password": {Text: password}}
}

func TestRenderPostgres(t *testing.T) {
	t.Parallel()
	const verifier = "SCRAM-SHA-256$4096:c2FsdA==$a+b/c=:d+e/f="
	for _, test := range []struct{ name, password, statement, want string }{
		{`n`, `p`, `CREATE ROLE "{{name}}" PASSWORD '{{password}}'`, `CREATE ROLE "n" PASSWORD 'p'`},
		{`a"b`, `c'd`, `CREATE ROLE "{{name}}" PASSWORD '{{password}}'`, `CREATE ROLE "a""b" PASSWORD 'c''d'`},
		{`a"b`, `c'd\`, `CREATE ROLE {{name}} PASSWORD {{password}}`, `CREATE ROLE "a""b" PASSWORD  E'c''d\\'`},
		{`n`, `a\'b`, `SELECT E'{{password}}'`, `SELECT E'a\\''b'`},
		{`n`, `a\b`, `SELECT '{{password}}'`, `SELECT 'a\b'`},
		{`n`, `a\b`, "SELECT E'x'\n '{{password}}'", "SELECT E'x'\n 'a\\\\b'"},
		{`n`, `p`, `SELECT '{{unknown}} {{name}}'`, `SELECT '{{unknown}} n'`},
		{
			`n`, verifier, `DO $$ BEGIN EXECUTE 'CREATE ROLE "{{name}}" PASSWORD ''{{password}}'''; END $$`,
			`DO $$ BEGIN EXECUTE 'CREATE ROLE "n" PASSWORD ''` + verifier + `'''; END $$`,
		},
		{`n`, `p`, `DO $x$ {{name}} {{password}} -- don't $x$`, `DO $x$ "n" 'p' -- don't $x$`},
		{`n`, `p`, `SELECT 1 -- {{name}}`, `SELECT 1 -- n`},
		{`n`, `p`, `SELECT /* /* {{name}} */ ' */ '{{password}}'`, `SELECT /* /* n */ ' */ 'p'`},
		{`n`, `it's`, `SELECT a$b$, '{{password}}'`, `SELECT a$b$, 'it''s'`},
		{`n`, `p`, `SELECT $1, '{{password}}'`, `SELECT $1, 'p'`},
		{`n`, `a\b`, `SELECT U&{{password}}`, `SELECT U&  E'a\\b'`},
		{`n`, `{{name}}`, `SELECT '{{password}}'`, `SELECT '{{name}}'`},
	} {
		got, err := RenderPostgres(test.statement, values(test.name, test.password))
		require.NoError(t, err, test.statement)
		require.Equal(t, test.want, got)
	}
}

func TestRenderPostgres_Refuses(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ password, statement string }{
		"quote in dollar quotes":     {`planted'`, `DO $$ '{{password}}' $$`},
		"backslash in dollar quotes": {`planted\`, `DO $$ '{{password}}' $$`},
		"the tag in dollar quotes":   {`planted$$x`, `DO $$ '{{password}}' $$`},
		"half the tag":               {`planted$`, `DO $$ '{{password}}$' $$`},
		"line break in a comment":    {"planted\nx", `SELECT 1 -- {{password}}`},
		"end of a comment":           {`planted*/x`, `SELECT /* {{password}} */ 1`},
		"end of a comment, joined":   {`/planted`, `SELECT /* *{{password}} */ 1`},
		"backslash in U&":            {`planted\0027`, `SELECT U&'{{password}}'`},
		"NUL":                        {"planted\x00", `SELECT '{{password}}'`},
		"not UTF-8":                  {"planted\xff", `SELECT '{{password}}'`},
		"open string":                {"planted", `SELECT '{{password}}`},
		"open identifier":            {"planted", `SELECT "{{password}}`},
		"open comment":               {"planted", `SELECT /* {{password}}`},
		"open dollar quote":          {"planted", `SELECT $x$ {{password}} $y$`},
	} {
		_, err := RenderPostgres(test.statement, values("n", test.password))
		require.Error(t, err, name)
		require.NotContains(t, err.Error(), "planted", name)
	}
}

func TestPostgresIdentAndLiteral(t *testing.T) {
	t.Parallel()
	for value, want := range map[string][2]string{
		`a`:    {`"a"`, `'a'`},
		`a"b`:  {`"a""b"`, `'a"b'`},
		`a'b`:  {`"a'b"`, `'a''b'`},
		`a\'b`: {`"a\'b"`, ` E'a\\''b'`},
		``:     {`""`, `''`},
	} {
		ident, err := PostgresIdent(value)
		require.NoError(t, err)
		literal, err := PostgresLiteral(value)
		require.NoError(t, err)
		require.Equal(t, want, [2]string{ident, literal})
	}
	_, err := PostgresIdent("a\x00")
	require.Error(t, err)
	_, err = PostgresLiteral("a\xff")
	require.Error(t, err)
}

// token is a lexical element of PostgreSQL: its kind and, for quoted ones, what
// it means.
type token struct{ kind, value string }

// tokens is a second, independent reading of PostgreSQL's lexical rules, for
// statements whose quotes are closed. Words and signs are single bytes.
func tokens(text string) []token {
	var out []token
	for i := 0; i < len(text); {
		rest := text[i:]
		word := i > 0 && wordByte(text[i-1])
		switch {
		case strings.HasPrefix(rest, "--"):
			end := strings.IndexAny(rest, "\n\r")
			if end < 0 {
				end = len(rest)
			}
			out = append(out, token{kind: "comment"})
			i += end
		case strings.HasPrefix(rest, "/*"):
			depth, j := 1, 2
			for depth > 0 && j < len(rest) {
				switch {
				case strings.HasPrefix(rest[j:], "/*"):
					depth, j = depth+1, j+2
				case strings.HasPrefix(rest[j:], "*/"):
					depth, j = depth-1, j+2
				default:
					j++
				}
			}
			out = append(out, token{kind: "comment"})
			i += j
		case rest[0] == '\'' || rest[0] == '"':
			escapes := rest[0] == '\'' && i > 0 && (text[i-1] == 'E' || text[i-1] == 'e') && (i == 1 || !wordByte(text[i-2]))
			var value strings.Builder
			j := 1
			for j < len(rest) {
				if escapes && rest[j] == '\\' && j+1 < len(rest) {
					value.WriteByte(rest[j+1])
					j += 2
					continue
				}
				if rest[j] == rest[0] {
					if j+1 < len(rest) && rest[j+1] == rest[0] {
						value.WriteByte(rest[0])
						j += 2
						continue
					}
					break
				}
				value.WriteByte(rest[j])
				j++
			}
			out = append(out, token{kind: string(rest[0]), value: value.String()})
			i += j + 1
		case rest[0] == '$' && !word && dollarTag(rest) != "":
			tag := dollarTag(rest)
			end := strings.Index(rest[len(tag):], tag)
			if end < 0 {
				return append(out, token{kind: "open"})
			}
			out = append(out, token{kind: tag})
			i += end + 2*len(tag)
		case strings.IndexByte(" \t\n\r\f\v", rest[0]) >= 0:
			i++
		default:
			out = append(out, token{kind: rest[:1]})
			i++
		}
	}
	return out
}

// Whatever the value, the statement has the same elements as with a harmless one,
// and the element with the value means the value.
func FuzzRenderPostgres(f *testing.F) {
	for _, value := range []string{`a'b`, `a"b`, `a\`, `$$`, `*/`, "\n", `'; DROP ROLE x; --`, `{{name}}`, `E'`, `\'`} {
		f.Add(value)
	}
	statements := []string{
		`CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL 'x'`,
		`CREATE ROLE {{name}} PASSWORD {{password}};`,
		`SELECT E'{{password}}', E'a\'{{password}}', "x{{name}}y" FROM t`,
		`DO $body$ BEGIN EXECUTE 'x "{{name}}" ''{{password}}'''; END $body$; SELECT '{{password}}'`,
		"SELECT 1 -- {{password}}\n, 2 /* {{name}} */, $${{password}}$$",
	}
	f.Fuzz(func(t *testing.T, value string) {
		for _, statement := range statements {
			plain, err := RenderPostgres(statement, values("name", "password"))
			if err != nil {
				t.Fatal(err)
			}
			got, err := RenderPostgres(statement, values(value, value))
			if err != nil {
				if len(value) > 3 && strings.Contains(err.Error(), value) && !strings.Contains(plainErrors, value) {
					t.Fatalf("the error repeats the value: %v", err)
				}
				continue
			}
			want, have := tokens(plain), tokens(got)
			// E'…' is written for a backslash where nothing is quoted.
			want, have = withoutE(want), withoutE(have)
			if len(want) != len(have) {
				t.Fatalf("%d elements instead of %d: %s", len(have), len(want), got)
			}
			for i := range want {
				if want[i].kind != have[i].kind {
					t.Fatalf("element %d is %q instead of %q: %s", i, have[i].kind, want[i].kind, got)
				}
				expected := strings.NewReplacer("password", value, "name", value).Replace(want[i].value)
				if want[i].kind == "'" || want[i].kind == `"` {
					if have[i].value != expected {
						t.Fatalf("element %d means %q instead of %q", i, have[i].value, expected)
					}
				}
			}
		}
	})
}

// plainErrors are the words of our own errors, which a short value may equal.
var plainErrors = strings.Join([]string{errNotText.Error(), errDollar.Error(), errComment.Error(), errUnicode.Error(), "put {{name}} {{password}} into a statement: "}, " ")

func withoutE(list []token) []token {
	var out []token
	for _, one := range list {
		if one.kind != "E" {
			out = append(out, one)
		}
	}
	return out
}
