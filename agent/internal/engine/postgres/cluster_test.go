package postgres_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine/postgres"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

const password = "pässwörd:with\\things"

// pair is two servers with the roles of the rights model, and logins for each
// purpose.
type pair struct {
	source, target *testenv.PostgresServer
}

func newPair(t *testing.T, source, target testenv.PostgresOptions) *pair {
	t.Helper()
	// The source is an older server where this is set.
	source.Suite = os.Getenv("DBOPS_SOURCE_SUITE")
	p := &pair{source: testenv.Postgres(t, source), target: testenv.Postgres(t, target)}
	secret := "'" + password + "'"
	readAll := "GRANT pg_read_all_data TO dbops_read"
	if p.source.Major() < 14 {
		readAll = "SELECT 1" // no such role; see letRead
	}
	p.source.Exec("postgres",
		"CREATE ROLE dbops_inspect", "CREATE ROLE dbops_read BYPASSRLS", readAll,
		"CREATE ROLE app_owner", "CREATE ROLE app_reader",
		"CREATE ROLE look LOGIN PASSWORD "+secret+" IN ROLE dbops_inspect",
		"CREATE ROLE read LOGIN PASSWORD "+secret+" IN ROLE dbops_read", "ALTER ROLE read SET role TO dbops_read",
		"ALTER ROLE read SET DateStyle TO 'SQL, DMY'", "ALTER ROLE read SET bytea_output TO 'escape'")
	p.target.Exec("postgres",
		"CREATE ROLE dbops_inspect", "CREATE ROLE dbops_owner CREATEDB IN ROLE pg_signal_backend",
		"CREATE ROLE app_owner", "CREATE ROLE app_reader",
		"CREATE ROLE look LOGIN PASSWORD "+secret+" IN ROLE dbops_inspect",
		"CREATE ROLE write LOGIN PASSWORD "+secret+" IN ROLE dbops_owner", "ALTER ROLE write SET role TO dbops_owner",
		"CREATE DATABASE shop OWNER dbops_owner")
	p.target.Exec("shop", "CREATE TABLE before (t text)", "INSERT INTO before VALUES ('as it was')")
	return p
}

func endpoint(s *testenv.PostgresServer, database, user string) engine.Endpoint {
	address := s.Address()
	return engine.Endpoint{
		Endpoint: wire.Endpoint{
			Connection: "test", Engine: wire.EnginePostgres, Host: s.Host, Port: s.Port, Database: database, SSLMode: "disable",
		},
		Username: user, Password: wire.NewSecret(password),
		Dial: func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		},
		OpenTool: func() (string, int, error) { return s.Host, s.Port, nil },
		RunTool:  runTool,
	}
}

// newEngine returns an engine that finds pg_dump: the host's, or the image's. The
// host's is of one version only.
func newEngine(t *testing.T) *postgres.Engine {
	t.Helper()
	if os.Getenv("DBOPS_SUITE") == "" && os.Getenv("DBOPS_TOOLS_SUITE") == "" {
		if found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/pg_dump"); len(found) > 0 {
			return postgres.New(postgres.Options{})
		}
		if _, err := exec.LookPath("pg_dump"); err == nil {
			return postgres.New(postgres.Options{})
		}
	}
	directory := t.TempDir()
	version, err := exec.Command("docker", "run", "--rm", testenv.Image(t, testenv.PartTools), "pg_dump", "--version").Output()
	require.NoError(t, err)
	script := fmt.Sprintf("#!/bin/sh\nif [ \"$1\" = --version ]; then echo '"+strings.TrimSpace(string(version))+"'; exit; fi\nset -- pg_dump \"$@\"\nif [ -n \"$PGSERVICEFILE\" ]; then m=\"-v $(dirname $PGSERVICEFILE):$(dirname $PGSERVICEFILE)\"; fi\n"+
		"exec docker run --rm --network host $m -e PGSERVICEFILE -e PGPASSFILE -e PGOPTIONS -e PGAPPNAME -e LC_ALL %s \"$@\"\n",
		testenv.Image(t, testenv.PartTools))
	require.NoError(t, os.WriteFile(filepath.Join(directory, "pg_dump"), []byte(script), 0o755))
	return postgres.New(postgres.Options{ToolDirs: []string{directory}})
}

// readEverySchema stands for pg_read_all_data on PostgreSQL 13, as README says.
const readEverySchema = `DO $$ DECLARE place text; BEGIN
  FOR place IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' LOOP
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO dbops_read', place);
    EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA %I TO dbops_read', place);
    EXECUTE format('GRANT SELECT ON ALL SEQUENCES IN SCHEMA %I TO dbops_read', place);
  END LOOP;
END $$`

// letRead gives the reading role what it has of pg_read_all_data elsewhere.
func (p *pair) letRead(database string) {
	if p.source.Major() < 14 {
		p.source.Exec(database, readEverySchema)
	}
}

// job inspects and plans as the planning phase does, with the inspecting
// logins, and returns what the running phase gets.
func (p *pair) job(t *testing.T, e *postgres.Engine, database string, options map[string]string) engine.Job {
	t.Helper()
	ctx := context.Background()
	p.letRead(database)
	source, err := e.Inspect(ctx, wire.Source, endpoint(p.source, database, "look"))
	require.NoError(t, err)
	target, err := e.Inspect(ctx, wire.Target, endpoint(p.target, "shop", "look"))
	require.NoError(t, err)
	plan, err := e.Plan(wire.KindClone, options, source, target)
	require.NoError(t, err)
	return engine.Job{
		OperationID: newOperation(), Options: options, Shape: plan.Shape,
		Source: endpoint(p.source, database, "read"), Target: endpoint(p.target, "shop", "write"), TempDir: t.TempDir(),
	}
}

// requireUntouched makes sure that the target is as newPair left it.
func (p *pair) requireUntouched(t *testing.T) {
	t.Helper()
	require.Equal(t, "as it was", p.target.Value("shop", "SELECT t FROM before"))
	p.requireNoTraces(t)
}

func (p *pair) requireNoTraces(t *testing.T) {
	t.Helper()
	require.Equal(t, "0", p.target.Value("postgres", "SELECT count(*)::text FROM pg_database WHERE datname LIKE 'dbops%'"))
}

func operationError(t *testing.T, err error) *operation.Error {
	t.Helper()
	var e *operation.Error
	require.ErrorAs(t, err, &e)
	return e
}

// dump is pg_dump's own text of a database, the independent witness.
func dump(t *testing.T, s *testenv.PostgresServer, database string) string {
	t.Helper()
	text := s.Run("pg_dump", "--no-owner", "--no-privileges", "--no-publications", "-d", database)
	var lines []string
	for _, line := range strings.Split(text, "\n") {
		if !strings.HasPrefix(line, "\\restrict ") && !strings.HasPrefix(line, "\\unrestrict ") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\n")
}

// requireSame compares the copy with what pg_dump and psql make of the source:
// both write and read definitions once, and some are worded differently then.
func (p *pair) requireSame(t *testing.T, reference string) {
	t.Helper()
	require.Equal(t, dump(t, p.target, reference), dump(t, p.target, "shop"))
}

// makeReference copies the source by pg_dump and psql into a database of the
// target's server, from the given snapshot when there is one.
func (p *pair) makeReference(t *testing.T, database, snapshot string) string {
	t.Helper()
	name := "reference_" + strings.ToLower(ulid.Make().String())
	p.target.CreateDatabase(name)
	option := ""
	if snapshot != "" {
		option = "--snapshot=" + snapshot
	}
	p.target.Run("bash", "-c", `set -o pipefail; pg_dump --no-owner --no-privileges --no-publications `+option+` -d "$0" | psql -q -o /dev/null -v ON_ERROR_STOP=1 -d `+name,
		p.source.DSN(database))
	return name
}

// openAs starts a session in the target database and gives its connection away.
func openAs(ctx context.Context, p *pair, user string) (net.Conn, error) {
	config, err := pgconn.ParseConfig(p.target.DSNFor(user, password, "shop"))
	if err != nil {
		return nil, err
	}
	conn, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	taken, err := conn.Hijack()
	if err != nil {
		return nil, err
	}
	return taken.Conn, nil
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(text)
}

func newOperation() string { return "clone-" + ulid.Make().String() }

// runTool runs a client program as the worker does.
func runTool(ctx context.Context, t engine.Tool) error {
	command := exec.CommandContext(ctx, t.Path, t.Args...)
	command.Env, command.Stdout, command.Stderr, command.WaitDelay = t.Env, t.Stdout, t.Stderr, time.Second
	return command.Run()
}
