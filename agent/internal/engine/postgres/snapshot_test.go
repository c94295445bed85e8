package postgres_test

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine/enginetest"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// A clone of a database that is being written is the state at its snapshot: what
// pg_dump makes of the same snapshot is the same.
func TestRun_WhileWritten(t *testing.T) {
	p := newPair(t, testenv.PostgresOptions{}, testenv.PostgresOptions{})
	loadAllKinds(t, p, "kinds")
	e := newEngine(t)
	job := p.job(t, e, "kinds", map[string]string{wire.OptionJobs: "4"})

	ctx, stop := context.WithCancel(context.Background())
	var writers sync.WaitGroup
	defer writers.Wait()
	defer stop()
	for writer := range 2 {
		conn := p.source.Connect("kinds")
		writers.Go(func() {
			defer conn.Close(context.Background())
			for i := 0; ctx.Err() == nil; i++ {
				_, err := conn.Exec(context.Background(), strings.NewReplacer("$w", string(rune('0'+writer))).Replace(`DO $$ BEGIN
  INSERT INTO app.plain SELECT max(id) + 1, 'new' FROM app.plain WHERE id % 2 = $w;
  UPDATE app.plain SET t = t || '!' WHERE id IN (SELECT id FROM app.plain WHERE id % 2 = $w ORDER BY random() LIMIT 50);
  DELETE FROM app.plain WHERE id IN (SELECT id FROM app.plain WHERE id % 2 = $w ORDER BY random() LIMIT 20);
  UPDATE app.wide SET t = md5(random()::text) WHERE id % 2 = $w;
  UPDATE app.event SET note = note || '.' WHERE id % 2 = $w AND random() < 0.01;
EXCEPTION WHEN unique_violation THEN NULL;
END $$`))
				if err != nil {
					t.Errorf("writer: %v", err)
					return
				}
			}
		})
	}

	reference := ""
	_, err := e.Run(context.Background(), job, &enginetest.Host{AtBegin: func(s wire.Step) error {
		if s == wire.StepStage {
			snapshot := p.source.Value("kinds", "SELECT pg_ls_dir('pg_snapshots')")
			reference = p.makeReference(t, "kinds", snapshot)
		}
		return nil
	}})
	require.NoError(t, err)
	stop()
	writers.Wait()
	p.requireSame(t, reference)
	p.requireNoTraces(t)
}

// With owner=source and acl=keep the copy has owners, grants and settings too.
func TestRun_OwnersAndGrants(t *testing.T) {
	p := newPair(t, testenv.PostgresOptions{}, testenv.PostgresOptions{})
	loadAllKinds(t, p, "kinds")
	p.source.Exec("kinds",
		"ALTER DATABASE kinds OWNER TO app_owner", "REVOKE CONNECT ON DATABASE kinds FROM PUBLIC",
		"GRANT CONNECT ON DATABASE kinds TO app_reader, dbops_read, dbops_inspect",
		`ALTER DATABASE kinds SET search_path TO app, "Odd ""Schema""", "$user"`, "ALTER DATABASE kinds SET work_mem TO '7MB'",
		"COMMENT ON DATABASE kinds IS 'all kinds'", "ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT SELECT ON TABLES TO app_reader")
	p.target.Exec("postgres", "CREATE ROLE dbops_read")
	e := newEngine(t)
	job := p.job(t, e, "kinds", map[string]string{wire.OptionOwner: "source", wire.OptionACL: "keep"})
	job.Target = endpoint(p.target, "shop", p.target.User)
	job.Target.Password = wire.NewSecret(p.target.Password)
	_, err := e.Run(context.Background(), job, &enginetest.Host{})
	require.NoError(t, err)
	p.requireNoTraces(t)

	p.target.CreateDatabase("reference")
	p.target.Run("bash", "-c", `set -o pipefail; pg_dump --no-publications -d "$0" | psql -q -o /dev/null -v ON_ERROR_STOP=1 -d reference`, p.source.DSN("kinds"))
	full := func(database string) string {
		return p.target.Run("bash", "-c", `pg_dump --no-publications -d "$0" | grep -v '^.restrict\|^.unrestrict'`, database)
	}
	require.Equal(t, full("reference"), full("shop"))
	const facts = `SELECT pg_get_userbyid(datdba) || ' ' || shobj_description(oid, 'pg_database') || ' ' ||
 (SELECT string_agg(x, ',' ORDER BY x) FROM (SELECT unnest(datacl)::text x) a WHERE x !~ '^app_owner=') || ' ' ||
 (SELECT string_agg(s, ' ' ORDER BY s) FROM pg_db_role_setting r, unnest(setconfig) s WHERE setdatabase = d.oid AND setrole = 0)
 FROM pg_database d WHERE datname = `
	want := p.source.Value("kinds", facts+"'kinds'")
	got := p.target.Value("postgres", facts+"'shop'")
	require.Equal(t, want, strings.Replace(got, "dbops:"+job.OperationID+"\n", "", 1))
}

// verify-full holds through any dial; another name is refused.
func TestRun_TLS(t *testing.T) {
	p := newPair(t, testenv.PostgresOptions{ServerName: "source.example.test", RequireTLS: true}, testenv.PostgresOptions{ServerName: "target.example.test", RequireTLS: true})
	p.source.CreateDatabase("small")
	p.source.Exec("small", "CREATE TABLE t (id integer PRIMARY KEY)", "INSERT INTO t SELECT generate_series(1, 100)")
	p.letRead("small")
	e := newEngine(t)
	job := engine.Job{Source: endpoint(p.source, "small", "read"), Target: endpoint(p.target, "shop", "write"), TempDir: t.TempDir()}
	secure := func(mode string) {
		job.Source.SSLMode, job.Target.SSLMode = mode, mode
		job.Source.RootCA, job.Target.RootCA = readFile(t, p.source.CAFile), readFile(t, p.target.CAFile)
		job.Source.Host, job.Target.Host = "source.example.test", "target.example.test"
		source, target := endpoint(p.source, "small", "look"), endpoint(p.target, "shop", "look")
		source.Endpoint, target.Endpoint = job.Source.Endpoint, job.Target.Endpoint
		from, err := e.Inspect(context.Background(), wire.Source, source)
		require.NoError(t, err)
		to, err := e.Inspect(context.Background(), wire.Target, target)
		require.NoError(t, err)
		plan, err := e.Plan(wire.KindClone, nil, from, to)
		require.NoError(t, err)
		require.Contains(t, string(plan.Shape), `"tls":true`)
		job.Shape = plan.Shape
		job.OperationID = newOperation()
		// The host has no name for the server; its certificate is for the address
		// as well.
		job.Source.OpenTool = func() (string, int, error) { return p.source.Host, p.source.Port, nil }
	}
	for _, mode := range []string{"require", "verify-ca", "verify-full"} {
		secure(mode)
		_, err := e.Run(context.Background(), job, &enginetest.Host{})
		require.NoError(t, err, mode)
	}
	job.Target.Host = "other.example.test"
	_, err := e.Run(context.Background(), job, &enginetest.Host{})
	failed := operationError(t, err)
	require.Equal(t, wire.CodeTargetUnavailable, failed.Code)
	require.Contains(t, failed.Reason, "certificate")
	job.Target.SSLMode, job.Target.RootCA = "verify-ca", job.Source.RootCA
	_, err = e.Run(context.Background(), job, &enginetest.Host{})
	require.Contains(t, operationError(t, err).Reason, "certificate")
	job.Target.SSLMode = "disable"
	_, err = e.Run(context.Background(), job, &enginetest.Host{})
	require.Equal(t, wire.CodeLoginRefused, operationError(t, err).Code)
}
