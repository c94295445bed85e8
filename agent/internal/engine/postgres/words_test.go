package postgres

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Two ways the server writes one expression are equal, two expressions are not.
func TestNormalForm(t *testing.T) {
	for _, same := range [][2]string{
		{"((status)::text = ANY ((ARRAY['new'::character varying, 'old'::character varying])::text[]))", "((status)::text = ANY (ARRAY[('new'::character varying)::text, ('old'::character varying)::text]))"},
		{"(a + (b))", "a + b"},
		{"x::timestamp(3) without time zone", "x"},
		{"(1)::numeric(10,2)", "1"},
		{`v::"Odd ""Schema""".t[]`, "v"},
		{"a\n   AND b", "a AND b"},
	} {
		require.Equal(t, normalForm(same[0]), normalForm(same[1]))
	}
	for _, other := range [][2]string{
		{"a = 'x y'", "a = 'x  y'"}, {"a = 'x(y)'", "a = 'xy'"}, {`"a b"`, `"a  b"`}, {"ab", "a b"}, {"'a'::text", "'b'::text"}, {"a AND b", "a OR b"},
	} {
		require.NotEqual(t, normalForm(other[0]), normalForm(other[1]))
	}
}

func FuzzNormalForm(f *testing.F) {
	f.Add("a::numeric(1,2)[] = 'x''y'")
	f.Add(`::"`)
	f.Fuzz(func(t *testing.T, text string) {
		// Reducing what is reduced changes nothing more, but for casts that only
		// then come to stand together; it must not grow or panic.
		if once := normalForm(text); len(once) > len(text) {
			t.Fatal("grew")
		}
	})
}

func TestSettingValue(t *testing.T) {
	for _, c := range []struct{ name, value, want string }{
		{"work_mem", "7MB", "'7MB'"},
		{"app.x", "it's, so", "'it''s, so'"},
		{"search_path", `"$user", public`, `'$user', 'public'`},
		{"search_path", `"a""b,c", d`, `'a"b,c', 'd'`},
		{"search_path", `""`, `''`},
		{"search_path", "", "''"},
	} {
		require.Equal(t, c.want, settingValue(c.name, c.value))
	}
	require.Equal(t, `"app"."x"`, settingName("app.x"))
}

func TestNamesOf(t *testing.T) {
	n, err := namesOf("clone-01JABCDEFGHJKMNPQRSTVWXYZ0")
	require.NoError(t, err)
	require.Equal(t, "dbops_staging_01jabcdefghjkmnpqrstvwxyz0", n.staging)
	require.Equal(t, "dbops_old_01jabcdefghjkmnpqrstvwxyz0", n.old)
	require.Equal(t, "dbops:clone-01JABCDEFGHJKMNPQRSTVWXYZ0", n.marker)
	for _, bad := range []string{"", "clone-", `clone-"; DROP`, "a-b-c", "clone-01J/.."} {
		_, err := namesOf(bad)
		require.Error(t, err, bad)
	}
}

func TestDumpMajor(t *testing.T) {
	require.Equal(t, 15, dumpMajor("pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"))
	require.Equal(t, 18, dumpMajor("pg_dump (PostgreSQL) 18beta1\n"))
	require.Equal(t, 0, dumpMajor("pg_dump from elsewhere"))
}

func TestSingle(t *testing.T) {
	require.True(t, single("ALTER TABLE x ADD PRIMARY KEY (id);\n"))
	require.False(t, single("ALTER TABLE x; ALTER TABLE y;"))
	require.False(t, single(`ALTER TABLE "a;b" ADD PRIMARY KEY (id);`))
}
