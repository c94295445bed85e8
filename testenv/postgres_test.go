package testenv_test

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// A server keeps its data, port and identity over a stop and over a crash, and
// two servers never share an identity: our refusal of "source is target" rests on it.
func TestPostgres_KeepsDataAndIdentity(t *testing.T) {
	t.Parallel()
	p := testenv.Postgres(t, testenv.PostgresOptions{Durable: true, Conf: []string{"max_connections = 23"}})
	other := testenv.Postgres(t, testenv.PostgresOptions{})

	identity := "SELECT system_identifier FROM pg_control_system()"
	before := p.Value("postgres", identity)
	require.NotEqual(t, before, other.Value("postgres", identity))
	require.Equal(t, "23", p.Value("postgres", "SHOW max_connections"))

	p.CreateDatabase(`odd "name`)
	p.Exec(`odd "name`, "CREATE TABLE t (id int); INSERT INTO t SELECT generate_series(1, 1000)")

	p.Stop()
	_, err := pgx.Connect(context.Background(), p.DSN("postgres"))
	require.Error(t, err)
	p.Start()
	require.Equal(t, "1000", p.Value(`odd "name`, "SELECT count(*) FROM t"))
	p.Kill()
	p.Start()
	require.Equal(t, "1000", p.Value(`odd "name`, "SELECT count(*) FROM t"))
	require.Equal(t, before, p.Value("postgres", identity))
	require.Contains(t, p.Logs(), "database system was not properly shut down")
}

// The certificate is good for its name and refused for another one, and with
// RequireTLS there is no way in without it.
func TestPostgres_TLS(t *testing.T) {
	t.Parallel()
	p := testenv.Postgres(t, testenv.PostgresOptions{ServerName: "db.example.test", RequireTLS: true})

	conn := p.Connect("postgres")
	var encrypted bool
	require.NoError(t, conn.QueryRow(context.Background(),
		"SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").Scan(&encrypted))
	require.True(t, encrypted)

	wrong := p.ConnConfig("postgres")
	wrong.TLSConfig.ServerName = "other.example.test"
	_, err := pgx.ConnectConfig(context.Background(), wrong)
	require.ErrorContains(t, err, "db.example.test")

	plain := p.ConnConfig("postgres")
	plain.TLSConfig = nil
	_, err = pgx.ConnectConfig(context.Background(), plain)
	require.ErrorContains(t, err, "no pg_hba.conf entry")

	conn, err = pgx.Connect(context.Background(), p.DSN("postgres"))
	require.NoError(t, err)
	require.NoError(t, conn.Close(context.Background()))
}

// A server with its data in memory runs out of room, which tests of a full disk need.
func TestPostgres_DiskFull(t *testing.T) {
	t.Parallel()
	p := testenv.Postgres(t, testenv.PostgresOptions{TmpfsMiB: 96})
	_, err := p.Connect("postgres").Exec(context.Background(),
		"CREATE TABLE big AS SELECT repeat(md5(i::text), 8) FROM generate_series(1, 1000000) i")
	require.ErrorContains(t, err, "No space left on device")
	require.Equal(t, "1", p.Value("postgres", "SELECT 1"))
	p.Stop()
	p.Start()
}

// Client tools run in the server's container, and pgbench is among them. The server is
// of the version that is told.
func TestPostgres_Run(t *testing.T) {
	t.Parallel()
	p := testenv.Postgres(t, testenv.PostgresOptions{})
	requireTold(t, testenv.PartPostgres, "PostgreSQL", p.Value("postgres", "SELECT split_part(current_setting('server_version'), ' ', 1)"))
	p.Run("pgbench", "-i", "-s", "1", "-q", "postgres")
	require.Equal(t, "100000", strings.TrimSpace(p.Run("psql", "-At", "-c", "SELECT count(*) FROM pgbench_accounts", "postgres")))
}
