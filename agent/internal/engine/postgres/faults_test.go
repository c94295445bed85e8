package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine/enginetest"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

const planted = "planted.person@example.test"

// everything an error shows, its cause included.
func shown(err error) string {
	var b strings.Builder
	for err != nil {
		fmt.Fprintf(&b, "%v %+v\n", err, err)
		err = errors.Unwrap(err)
	}
	return b.String()
}

// Each way to fail has its code, leaves the target as it was and shows no value
// of a row.
func TestRun_Faults(t *testing.T) {
	p := newPair(t, testenv.PostgresOptions{}, testenv.PostgresOptions{})
	p.source.CreateDatabase("faulty")
	p.source.Exec("faulty",
		"CREATE TABLE people (id integer PRIMARY KEY, mail text)",
		"INSERT INTO people SELECT i, 'p' || i || '@example.test' FROM generate_series(1, 1000) i",
		"INSERT INTO people VALUES (0, '"+planted+"')",
		"CREATE UNIQUE INDEX people_mail ON people (mail)",
		"CREATE SEQUENCE counter", "SELECT lo_from_bytea(777, 'x')", "GRANT SELECT ON LARGE OBJECT 777 TO dbops_read")
	e := newEngine(t)
	ctx := context.Background()
	staging := func() string {
		return p.target.Value("postgres", "SELECT datname::text FROM pg_database WHERE datname LIKE 'dbops_staging_%'")
	}

	for _, c := range []struct {
		name string
		step wire.Step
		end  bool
		sql  string
		code wire.Code
		says string
	}{
		{"changed row", wire.StepVerify, false, "UPDATE people SET mail = 'other' WHERE id = 5", wire.CodeCheckFailed, "public.people"},
		{"lost row", wire.StepVerify, false, "DELETE FROM people WHERE id = 5", wire.CodeCheckFailed, "public.people"},
		{"additional row", wire.StepVerify, false, "INSERT INTO people VALUES (5000, 'more')", wire.CodeCheckFailed, "public.people"},
		{"additional column", wire.StepIndex, true, "ALTER TABLE people ADD COLUMN more integer", wire.CodeCheckFailed, "more"},
		{"sequence moved", wire.StepIndex, true, "SELECT nextval('counter')", wire.CodeCheckFailed, "public.counter"},
		{"lost index", wire.StepIndex, true, "DROP INDEX people_mail", wire.CodeCheckFailed, "people_mail"},
		{"additional function", wire.StepIndex, true, "CREATE FUNCTION f() RETURNS integer LANGUAGE sql AS 'SELECT 1'", wire.CodeCheckFailed, "public.f()"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := &enginetest.Host{}
			step := func(at bool) func(wire.Step) error {
				return func(s wire.Step) error {
					if s == c.step && at == c.end {
						// Begun by whatever is checked first; the rows may still be coming.
						testenv.Await(t, "the rows", 30*time.Second, func() error {
							if n := p.target.Value(staging(), "SELECT count(*)::text FROM people"); n != "1001" {
								return errors.New(n + " rows")
							}
							return nil
						})
						p.target.Exec(staging(), c.sql)
					}
					return nil
				}
			}
			h.AtBegin, h.AtEnd = step(false), step(true)
			_, err := e.Run(ctx, p.job(t, e, "faulty", nil), h)
			failed := operationError(t, err)
			require.Equal(t, c.code, failed.Code, failed)
			require.Contains(t, failed.Reason, c.says)
			require.NotContains(t, shown(err), planted)
			p.requireUntouched(t)
		})
	}

	t.Run("large object changed", func(t *testing.T) {
		_, err := e.Run(ctx, p.job(t, e, "faulty", nil), &enginetest.Host{AtBegin: func(s wire.Step) error {
			if s == wire.StepIndex {
				// Begun by the first table's indexes; wait until the object is there.
				require.Eventually(t, func() bool {
					return p.target.Value(staging(), "SELECT count(*)::text FROM pg_largeobject_metadata") == "1"
				}, 30*time.Second, 50*time.Millisecond)
				p.target.Exec(staging(), "SELECT lo_put(777, 0, 'y')")
			}
			return nil
		}})
		require.Equal(t, wire.CodeCheckFailed, operationError(t, err).Code)
		p.requireUntouched(t)
	})

	t.Run("unique violation with a person's address", func(t *testing.T) {
		// An index over a function that has changed since: what was unique is not.
		p.source.Exec("faulty", "CREATE FUNCTION key(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT $1'",
			"CREATE UNIQUE INDEX people_key ON people (key(mail))",
			"CREATE OR REPLACE FUNCTION key(text) RETURNS text LANGUAGE sql IMMUTABLE AS $$SELECT '"+planted+"'$$")
		_, err := e.Run(ctx, p.job(t, e, "faulty", nil), &enginetest.Host{})
		failed := operationError(t, err)
		require.Equal(t, wire.CodeEngine, failed.Code)
		require.Contains(t, failed.Reason, "people_key")
		require.Contains(t, failed.Reason, "23505")
		require.NotContains(t, shown(err), planted)
		p.source.Exec("faulty", "DROP INDEX people_key", "DROP FUNCTION key(text)")
		p.requireUntouched(t)
	})

	t.Run("limits", func(t *testing.T) {
		job := p.job(t, e, "faulty", nil)
		job.MaxRows = 100
		_, err := e.Run(ctx, job, &enginetest.Host{})
		require.Equal(t, wire.CodeLimitExceeded, operationError(t, err).Code)
		p.requireUntouched(t)
		job = p.job(t, e, "faulty", nil)
		job.MaxBytes = 1000
		_, err = e.Run(ctx, job, &enginetest.Host{})
		require.Equal(t, wire.CodeLimitExceeded, operationError(t, err).Code)
		p.requireUntouched(t)
	})

	t.Run("changed since the plan", func(t *testing.T) {
		for _, change := range []string{"ALTER TABLE people ADD COLUMN late integer", "CREATE TABLE late ()", "DROP TABLE late", "ALTER TABLE people ALTER COLUMN mail SET DEFAULT 'x'"} {
			job := p.job(t, e, "faulty", nil)
			p.source.Exec("faulty", change)
			_, err := e.Run(ctx, job, &enginetest.Host{})
			require.Equal(t, wire.CodePlanChanged, operationError(t, err).Code, change)
			p.requireUntouched(t)
		}
	})

	t.Run("wrong password", func(t *testing.T) {
		for _, side := range []wire.Side{wire.Source, wire.Target} {
			job := p.job(t, e, "faulty", nil)
			end := &job.Source
			if side == wire.Target {
				end = &job.Target
			}
			end.Password = wire.NewSecret("not-the-password-" + planted)
			_, err := e.Run(ctx, job, &enginetest.Host{})
			require.Equal(t, wire.CodeLoginRefused, operationError(t, err).Code)
			require.NotContains(t, shown(err), planted)
			p.requireUntouched(t)
		}
	})

	t.Run("nobody listens", func(t *testing.T) {
		closed, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		address := closed.Addr().String()
		require.NoError(t, closed.Close())
		dial := func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "tcp", address) }
		job := p.job(t, e, "faulty", nil)
		job.Source.Dial = dial
		_, err = e.Run(ctx, job, &enginetest.Host{})
		require.Equal(t, wire.CodeSourceUnavailable, operationError(t, err).Code)
		job = p.job(t, e, "faulty", nil)
		job.Target.Dial = dial
		_, err = e.Run(ctx, job, &enginetest.Host{})
		require.Equal(t, wire.CodeTargetUnavailable, operationError(t, err).Code)
		p.requireUntouched(t)
		_, err = e.Inspect(ctx, wire.Source, job.Target)
		require.Equal(t, wire.CodeSourceUnavailable, operationError(t, err).Code)
	})

	t.Run("rows hidden by row security", func(t *testing.T) {
		p.source.Exec("faulty", "ALTER TABLE people ENABLE ROW LEVEL SECURITY", "ALTER ROLE dbops_read NOBYPASSRLS")
		_, err := e.Run(ctx, p.job(t, e, "faulty", nil), &enginetest.Host{})
		failed := operationError(t, err)
		require.Equal(t, wire.CodePrivilege, failed.Code)
		require.Contains(t, failed.Hint, "BYPASSRLS")
		p.source.Exec("faulty", "ALTER TABLE people DISABLE ROW LEVEL SECURITY", "ALTER ROLE dbops_read BYPASSRLS")
		p.requireUntouched(t)
	})

	t.Run("no right to read", func(t *testing.T) {
		job, everything := p.job(t, e, "faulty", nil), "pg_read_all_data"
		if p.source.Major() < 14 {
			everything = "SELECT ON people"
		}
		p.source.Exec("faulty", "REVOKE "+everything+" FROM dbops_read")
		_, err := e.Run(ctx, job, &enginetest.Host{})
		require.Equal(t, wire.CodePrivilege, operationError(t, err).Code)
		p.source.Exec("faulty", "GRANT "+everything+" TO dbops_read")
		p.requireUntouched(t)
	})

	t.Run("no right to create or replace", func(t *testing.T) {
		p.target.Exec("postgres", "ALTER ROLE dbops_owner NOCREATEDB")
		_, err := e.Run(ctx, p.job(t, e, "faulty", nil), &enginetest.Host{})
		require.Equal(t, wire.CodePrivilege, operationError(t, err).Code)
		p.target.Exec("postgres", "ALTER ROLE dbops_owner CREATEDB", "ALTER DATABASE shop OWNER TO postgres")
		_, err = e.Run(ctx, p.job(t, e, "faulty", nil), &enginetest.Host{})
		require.Equal(t, wire.CodePrivilege, operationError(t, err).Code)
		p.target.Exec("postgres", "ALTER DATABASE shop OWNER TO dbops_owner")
		p.requireUntouched(t)
	})

	t.Run("a superuser sits in the target", func(t *testing.T) {
		conn := p.target.Connect("shop")
		defer conn.Close(ctx)
		_, err := e.Run(ctx, p.job(t, e, "faulty", nil), &enginetest.Host{})
		failed := operationError(t, err)
		require.Equal(t, wire.CodePrivilege, failed.Code)
		require.Contains(t, failed.Hint, "pg_signal_backend")
		require.NoError(t, conn.Close(ctx))
		p.requireUntouched(t)
	})

	t.Run("the target dies while rows come in", func(t *testing.T) {
		job := p.job(t, e, "faulty", nil)
		var killed atomic.Bool
		_, err := e.Run(ctx, job, &enginetest.Host{AtBegin: func(s wire.Step) error {
			if s == wire.StepCopy && !killed.Swap(true) {
				p.target.Stop()
			}
			return nil
		}})
		require.Equal(t, wire.CodeTargetUnavailable, operationError(t, err).Code)
		p.target.Start()
		job.Target = endpoint(p.target, "shop", "write")
		result, err := e.Cleanup(ctx, job.OperationID, job.Target)
		require.NoError(t, err)
		require.False(t, result.Switched)
		p.requireUntouched(t)
	})

	// Last, for it replaces the target.
	t.Run("sessions of others are ended", func(t *testing.T) {
		for _, user := range []string{"look", "write"} {
			stopping, stop := context.WithCancel(ctx)
			var ended atomic.Int64
			done := make(chan struct{})
			go func() { // one that comes back at once
				defer close(done)
				for stopping.Err() == nil {
					conn, err := openAs(stopping, p, user)
					if err != nil {
						continue
					}
					release := context.AfterFunc(stopping, func() { _ = conn.Close() })
					_, _ = io.Copy(io.Discard, conn)
					ended.Add(1)
					release()
					_ = conn.Close()
				}
			}()
			_, err := e.Run(ctx, p.job(t, e, "faulty", nil), &enginetest.Host{})
			require.NoError(t, err)
			require.Positive(t, ended.Load())
			stop()
			<-done
			p.requireNoTraces(t)
		}
	})
}
