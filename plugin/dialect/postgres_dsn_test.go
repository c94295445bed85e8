package dialect

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParsePostgresDSN(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]PostgresDSN{
		"postgresql://{{username}}:{{password}}@db.example.test:5433/shop?sslmode=verify-full": {"db.example.test", 5433, "shop", "verify-full", false},
		"postgres://localhost":                             {"localhost", 5432, "", "prefer", false},
		"postgres://u:p%40ss@h/a%20b":                      {"h", 5432, "a b", "prefer", true},
		"postgres://u:p@[::1]:5434/d":                      {"::1", 5434, "d", "prefer", true},
		"postgres://h1:1,h2:2/d":                           {"h1", 1, "d", "prefer", false},
		"postgres:///d?host=/var/run/postgresql&port=99":   {"/var/run/postgresql", 99, "d", "prefer", false},
		"postgres://%2Fvar%2Frun/d":                        {"/var/run", 5432, "d", "prefer", false},
		"host=h port=5 dbname='a b' password={{password}}": {"h", 5, "a b", "prefer", false},
		`host = h user=u password='it\'s'`:                 {"h", 5432, "", "prefer", true},
	} {
		got, err := ParsePostgresDSN(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{
		"", "planted", "mysql://planted@h", "postgres://u:planted@h:x/d", "postgres://u:planted@h:0/d", "postgres://u:planted@h/d?sslmode=on",
		"postgres://u:plan/ted@h/d", "postgres://u:%zzplanted@h/d", "host=h password='planted", "host", "=planted", "postgres://u:plan#ted@h/d",
	} {
		_, err := ParsePostgresDSN(text)
		require.Error(t, err, text)
		require.NotContains(t, err.Error(), "planted")
	}
}

func TestRedactPostgresDSN(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"postgresql://{{username}}:{{password}}@h/d":       "postgresql://{{username}}:{{password}}@h/d",
		"postgresql://u:planted@h:1/d?x=1":                 "postgresql://u:xxxxx@h:1/d?x=1",
		"postgresql://u:planted@with@at@h/d":               "postgresql://u:xxxxx@h/d",
		"postgresql://h/d?user=u&password=planted":         "postgresql://h/d?user=u&password=xxxxx",
		"postgresql://h/d?pass%77ord=planted&sslmode=x":    "postgresql://h/d?pass%77ord=xxxxx&sslmode=x",
		"postgresql://h/d?sslpassword=planted":             "postgresql://h/d?sslpassword=xxxxx",
		"host=h password=planted dbname=d":                 "host=h password=xxxxx dbname=d",
		`host=h password='pl\'anted planted' dbname=d`:     "host=h password=xxxxx dbname=d",
		"host=h password='planted":                         "xxxxx",
		"postgresql://u:plan#ted@h":                        "postgresql://xxxxx",
		"planted":                                          "xxxxx",
		"postgresql://u:planted/x@h/d":                     "postgresql://xxxxx",
		"host=h password={{password}} user='{{username}}'": "host=h password={{password}} user='{{username}}'",
	} {
		require.Equal(t, want, RedactPostgresDSN(text), text)
	}
}

// What is put into a connection string comes out of it again.
func TestBuildPostgresDSN(t *testing.T) {
	t.Parallel()
	for _, form := range []string{
		"postgresql://{{username}}:{{password}}@h/d", "host=h user={{username}} password={{password}} dbname=d",
		"host=h user='{{username}}' password='{{password}}' dbname=d",
	} {
		for _, password := range []string{`p`, `p@/?#:%&= `, `'`, `\`, `a b='c'`, `{{username}}`} {
			built, err := BuildPostgresDSN(form, "user@x", password, false)
			require.NoError(t, err)
			settings, err := postgresSettings(built)
			require.NoError(t, err)
			require.Equal(t, "user@x", settings["user"])
			require.Equal(t, password, settings["password"], built)
			require.Equal(t, "h", settings["host"])
			require.Equal(t, "d", settings["dbname"])
		}
	}
	built, err := BuildPostgresDSN("postgresql://{{username}}:{{password}}@h/d", "u", "p%40", true)
	require.NoError(t, err)
	require.Equal(t, "postgresql://u:p%40@h/d", built)
}

func FuzzPostgresDSN(f *testing.F) {
	f.Add("postgresql://{{username}}:{{password}}@h/d", "it's")
	f.Add("host=h password='x' user={{username}}", "a b")
	f.Add("postgres://u:p@h,h2:1/d?password=x", `\`)
	f.Fuzz(func(t *testing.T, text, password string) {
		_, parseErr := ParsePostgresDSN(text)
		if redacted := RedactPostgresDSN(text); parseErr == nil && !strings.Contains(text, "xxxxx") {
			settings, err := postgresSettings(redacted)
			if err != nil {
				t.Fatalf("redacted string %q cannot be read: %v", redacted, err)
			}
			if secret := settings["password"]; secret != "" && secret != redactedPassword && secret != PasswordPlaceholder {
				t.Fatalf("%q shows a password", redacted)
			}
		}
		if strings.ContainsAny(password, "\x00") {
			return
		}
		for _, form := range []string{"postgresql://{{username}}:{{password}}@h/d", "user={{username}} password={{password}}"} {
			built, err := BuildPostgresDSN(form, password, password, false)
			if err != nil {
				t.Fatal(err)
			}
			settings, err := postgresSettings(built)
			if err != nil || settings["password"] != password || settings["user"] != password {
				t.Fatalf("password %q became %q: %v", password, settings["password"], err)
			}
		}
	})
}
