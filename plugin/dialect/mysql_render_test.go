package dialect_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/dialect"
)

func TestRenderMySQL(t *testing.T) {
	t.Parallel()
	values := map[string]dialect.Value{
		"name": {Text: "a`'b", Kind: dialect.IdentifierValue}, "password": {Text: `p;'"\`}, "one": {Text: "1"},
	}
	ansi := dialect.MySQLMode{AnsiQuotes: true, NoBackslashEscapes: true}
	for text, want := range map[string][]string{
		"":                                nil,
		" ; -- nothing\n ; /* ; */ ; # ;": nil,
		"CREATE USER '{{name}}'@'%' IDENTIFIED BY '{{password}}'; GRANT x": {"CREATE USER 'a`''b'@'%' IDENTIFIED BY 'p;''\"\\\\'", "GRANT x"},
		"a {{name}}@'%';b {{password}}":                                    {"a `a``'b`@'%'", `b 'p;''"\\'`},
		"{{one}}{{one}}":                                                   {"'1' '1'"},
		"N{{one}}'x'":                                                      {"N '1' 'x'"},
		"`{{name}}` \"{{password}}\"":                                      {"`a``'b` \"p;'\"\"\\\\\""},
		`SELECT 'a\';b', ';', "';", 1--1; x`:                               {`SELECT 'a\';b', ';', "';", 1--1`, "x"},
		`'\{{one}}'`:                                                       {`'\\1'`},
		"{{unknown}} -- {{one}}":                                           {"{{unknown}} -- 1"},
	} {
		got, err := dialect.RenderMySQL(text, values, dialect.MySQLMode{})
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	got, err := dialect.RenderMySQL(`'{{password}}' "{{password}}" '\'; x`, values, ansi)
	require.NoError(t, err)
	require.Equal(t, []string{`'p;''"\' "p;'""\" '\'`, "x"}, got)

	for _, text := range []string{"'a", `"a`, "`a", `'a\'`, "/* a", "/*! x */", "/*M!100100 x */", "-- {{password}}", "/* {{password}} */", "a\x00b", "\xff"} {
		_, err := dialect.RenderMySQL(text, values, dialect.MySQLMode{})
		require.Error(t, err, text)
		require.NotContains(t, err.Error(), "p;")
	}
}

func TestMySQLDSN(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]dialect.MySQLDSN{
		"{{username}}:{{password}}@tcp(db.example.test:3307)/shop?tls=true": {Host: "db.example.test", Port: 3307, Database: "shop", SSLMode: "verify-full"},
		"root:planted@tcp([::1]:3306)/":                                     {Host: "::1", Port: 3306, SSLMode: "disable", HasPassword: true},
		"root:p/l@nted@unix(/tmp/x)/?tls=skip-verify":                       {Host: "/tmp/x", SSLMode: "require", HasPassword: true},
		"/a%2Fb?tls=preferred":                                              {Host: "127.0.0.1", Port: 3306, Database: "a/b", SSLMode: "prefer"},
	} {
		got, err := dialect.ParseMySQLDSN(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for text, want := range map[string]string{
		"root:planted@tcp(h)/":              "root:xxxxx@tcp(h)/",
		"root:pla/nted@x@tcp(h)/":           "root:xxxxx@tcp(h)/",
		"root:planted@h":                    "root:xxxxx@h",
		"{{username}}:{{password}}@tcp(h)/": "{{username}}:{{password}}@tcp(h)/",
		"root@tcp(h:1)/x":                   "root@tcp(h:1)/x",
	} {
		require.Equal(t, want, dialect.RedactMySQLDSN(text))
	}
}
