package postgres

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/dialect"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// The server reads back every value from every kind of quotes.
func TestRender_ThroughARealServer(t *testing.T) {
	t.Parallel()
	p := testenv.Postgres(t, testenv.PostgresOptions{})
	config, err := Config{URL: p.ConnectionURL("postgres"), Username: p.User}.poolConfig()
	require.NoError(t, err)
	config.ConnConfig.Password = p.Password
	conn, err := pgx.ConnectConfig(t.Context(), config.ConnConfig)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(t.Context())) }()

	const statement = `SELECT '{{value}}', E'{{value}}', {{value}}, 'x{{value}}y'; SELECT 1 AS "{{value}}"`
	pieces := []string{`'`, `''`, `"`, `\`, `\'`, `$$`, `$a$`, `;`, `--`, `/*`, `*/`, "\n", "\r", ` `, `E'`, `U&'`, `{{value}}`, `ä`, `€`, `😀`, `a`, `0`, `%`, "\t", "\x01"}
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var b strings.Builder
		for range 1 + random.IntN(8) {
			b.WriteString(pieces[random.IntN(len(pieces))])
		}
		value := b.String()
		if len(value) > dialect.PostgresNameBytes {
			continue
		}
		text, err := dialect.RenderPostgres(statement, map[string]dialect.Value{"value": {Text: value}})
		require.NoError(t, err)
		results, err := conn.PgConn().Exec(t.Context(), text).ReadAll()
		require.NoError(t, err, "%q", value)
		require.Len(t, results, 2)
		row := results[0].Rows[0]
		require.Equal(t, []string{value, value, value, "x" + value + "y"}, []string{string(row[0]), string(row[1]), string(row[2]), string(row[3])})
		require.Equal(t, value, results[1].FieldDescriptions[0].Name)
	}
}

// What we tell an agent of a connection string must be where pgx goes.
func TestParsePostgresDSN_AgreesWithPGX(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"postgresql://u:p@db.example.test:5433/shop?sslmode=disable",
		"postgres://u@localhost/a%20b",
		"postgres://u:p@[::1]:5434/d",
		"postgres://u:p@h1:1,h2:2/d?sslmode=require",
		"postgres://u:p@h/d?host=other&port=77",
		"postgres://u:p@h/d?dbname=e",
		"postgres:///d?host=/var/run/postgresql&port=99&user=u",
		"postgres://%2Fvar%2Frun/d",
		"host=h port=5 dbname='a b' user=u",
		`host = h user=u password='it\'s' dbname=x`,
	} {
		ours, err := dialect.ParsePostgresDSN(text)
		require.NoError(t, err, text)
		theirs, err := pgconn.ParseConfig(text)
		require.NoError(t, err, text)
		require.Equal(t, theirs.Host, ours.Host, text)
		require.Equal(t, int(theirs.Port), ours.Port, text)
		require.Equal(t, theirs.Database, ours.Database, text)
	}
}
