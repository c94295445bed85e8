package e2e

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/stack"
)

// allKinds is a schema with one of each thing PostgreSQL has.
func allKinds(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile("../../agent/internal/engine/postgres/testdata/all_kinds.sql")
	require.NoError(t, err)
	return string(content)
}

// writeTransaction is the n-th change the writer makes; it depends on n alone, so
// that n of them, replayed elsewhere, give the same database.
func writeTransaction(ctx context.Context, conn *pgx.Conn, n int) error {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	for _, change := range []string{
		"UPDATE pgbench_accounts SET abalance = abalance + $1::int WHERE aid = $1::int * 7919 % 4000000 + 1",
		"UPDATE app.customer SET amount = $1::int, mood = 'sad' WHERE id = $1::int % 1000 + 1",
		"INSERT INTO app.plain (id, t, a) VALUES (1000000 + $1::int, 'written', ARRAY[$1::int])",
		"UPDATE app.hashed SET id = id + 1000, v = 'perhaps in another partition' WHERE id = $1::int",
		"UPDATE app.event SET note = 'written' WHERE id = $1::int",
		"DELETE FROM app.secret WHERE id = $1::int",
		"INSERT INTO written VALUES ($1::int)",
	} {
		if _, err := tx.Exec(ctx, change, n); err != nil {
			return fmt.Errorf("%s: %w", change, err)
		}
	}
	return tx.Commit(ctx)
}

// dump is everything pg_dump says of a database but for the rows of pgbench's
// tables, sorted: where a row lies does not matter.
func dump(p *testenv.PostgresServer, database string) []string {
	text := p.Run("bash", "-c", "set -o pipefail; pg_dump -O -x --no-publications --exclude-table-data='pgbench_*' '"+p.DSN(database)+
		"' | grep -v -E '^.(un)?restrict |^-- ' | LC_ALL=C sort")
	return strings.Split(text, "\n")
}

// firstDifference is the first line that is in one list only, cut short.
func firstDifference(want, got []string) string {
	for i := range max(len(want), len(got)) {
		var w, g string
		if i < len(want) {
			w = want[i]
		}
		if i < len(got) {
			g = got[i]
		}
		if w != g {
			return fmt.Sprintf("line %d: want %.300q, got %.300q", i, w, g)
		}
	}
	return ""
}

// digests are counts and two hashes over all rows of pgbench's tables.
func digests(p *testenv.PostgresServer, database string) string {
	var all []string
	for _, table := range []string{"pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history"} {
		all = append(all, p.Value(database, "SELECT concat($1::text, count(*), ' ', sum(hash_record_extended(t, 0)), ' ', sum(hash_record_extended(t, 1))) FROM "+table+" t", table+" "))
	}
	return strings.Join(all, "\n")
}

// A database of about 600 MB and every kind of object is cloned while a writer
// changes it: the copy equals the source as it was at one moment in between.
func TestClone_EverythingWhileWritten(t *testing.T) {
	s := stack.New(t, stack.Options{})
	s.Source.Exec("postgres", "CREATE ROLE app_owner", "CREATE ROLE app_reader")
	s.Target.Exec("postgres", "CREATE ROLE app_reader") // a row security policy names it
	s.Source.Run("pgbench", "-i", "-q", "-s", "40", stack.Database)
	// The publication would want replica identities of what the writer changes.
	s.Source.Exec(stack.Database, allKinds(t), "DROP PUBLICATION everything", "CREATE TABLE written (n int PRIMARY KEY)")
	s.Source.Exec("postgres", "CREATE DATABASE reference TEMPLATE "+stack.Database)

	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var written atomic.Int64
	writer := make(chan error, 1)
	conn := s.Source.Connect(stack.Database)
	go func() {
		for n := 1; ctx.Err() == nil; n++ {
			if err := writeTransaction(ctx, conn, n); err != nil {
				if ctx.Err() != nil {
					err = nil
				}
				writer <- err
				return
			}
			written.Store(int64(n))
		}
		writer <- nil
	}()
	testenv.Await(t, "the writer", 30*time.Second, func() error {
		select {
		case err := <-writer:
			require.NoError(t, err)
		default:
		}
		if written.Load() < 10 {
			return errNothing
		}
		return nil
	})
	began := time.Now()
	op := s.Succeed(map[string]any{"jobs": "2"}, 5*time.Minute)
	t.Logf("cloned in %v", time.Since(began))
	after := written.Load()
	stop()
	require.NoError(t, <-writer)

	seen, err := strconv.ParseInt(s.Target.Value(stack.Database, "SELECT max(n) FROM written"), 10, 64)
	require.NoError(t, err)
	require.GreaterOrEqual(t, seen, int64(10))
	require.Less(t, seen, after, "the writer must have gone on after the snapshot")
	reference := s.Source.Connect("reference")
	for n := 1; n <= int(seen); n++ {
		require.NoError(t, writeTransaction(context.Background(), reference, n))
	}
	require.Equal(t, digests(s.Source, "reference"), digests(s.Target, stack.Database))
	// What PostgreSQL prints of a view changes once when it is read back, so the
	// reference goes through pg_dump too, by its own tools.
	s.Source.CreateDatabase("restored")
	s.Source.Run("bash", "-c", "set -o pipefail; pg_dump -O -x --no-publications --exclude-table-data='pgbench_*' '"+
		s.Source.DSN("reference")+"' | psql -q -X -v ON_ERROR_STOP=1 -o /dev/null '"+s.Source.DSN("restored")+"'")
	want, got := dump(s.Source, "restored"), dump(s.Target, stack.Database)
	require.Greater(t, len(want), 20000)
	require.Empty(t, firstDifference(want, got))

	require.Equal(t, "dbops_owner", s.Target.Value("postgres", "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = $1", stack.Database))
	require.Empty(t, stack.Logins(s.Source))
	require.Empty(t, stack.Logins(s.Target))
	require.Equal(t, stack.Database, stack.Databases(s.Target))
	require.NotEmpty(t, op.PlanDigest)
	require.NotNil(t, op.Result)
	require.NotEmpty(t, op.Result.ReportDigest)
	verified := 0
	for _, event := range s.AuditedEvents(op.ID) {
		if event.EventType == wire.EventTableVerified {
			verified++
			require.Equal(t, "success", event.Outcome)
		}
	}
	require.Equal(t, op.Result.Tables, strconv.Itoa(verified), "each table's verification stands in the audit file")
}

// Where a database, its disk or its password is the trouble, the operation ends
// as failed with a code and a hint, and the target is as it was.
func TestClone_FailsWell(t *testing.T) {
	t.Parallel()
	before := func(t *testing.T, target testenv.PostgresOptions) *stack.Stack {
		s := stack.New(t, stack.Options{Target: target})
		s.Source.Exec(stack.Database, "CREATE TABLE marker (round int)", "INSERT INTO marker VALUES (1)")
		s.Succeed(nil, time.Minute)
		s.Source.Exec(stack.Database, "UPDATE marker SET round = 2")
		return s
	}
	failed := func(t *testing.T, s *stack.Stack, id string, codes ...wire.Code) {
		t.Helper()
		op := s.AwaitFinal(id, 2*time.Minute)
		require.Equal(t, wire.StateFailed, op.State)
		require.NotNil(t, op.Result)
		require.Contains(t, codes, op.Result.Code, "%+v", op.Result)
		require.NotEmpty(t, op.Result.Hint, "%+v", op.Result)
		t.Logf("%+v", *op.Result)
	}
	asBefore := func(t *testing.T, s *stack.Stack) {
		t.Helper()
		require.Equal(t, "1", s.Target.Value(stack.Database, "SELECT round FROM marker"))
		testenv.Await(t, "logins and databases to go", 90*time.Second, func() error {
			if databases := stack.Databases(s.Target); databases != stack.Database {
				return fmt.Errorf("databases %s", databases)
			}
			if logins := stack.Logins(s.Target); logins != "" {
				return fmt.Errorf("logins %s", logins)
			}
			return nil
		})
	}
	t.Run("source down", func(t *testing.T) {
		t.Parallel()
		s := before(t, testenv.PostgresOptions{})
		s.Source.Stop()
		failed(t, s, s.Ask(nil), wire.CodeSourceUnavailable, wire.CodeUnavailable)
		asBefore(t, s)
	})
	t.Run("target down", func(t *testing.T) {
		t.Parallel()
		s := before(t, testenv.PostgresOptions{})
		s.Target.Stop()
		failed(t, s, s.Ask(nil), wire.CodeTargetUnavailable, wire.CodeUnavailable)
		s.Target.Start()
		asBefore(t, s)
	})
	t.Run("target's disk full", func(t *testing.T) {
		t.Parallel()
		s := before(t, testenv.PostgresOptions{TmpfsMiB: 96})
		s.Source.Exec(stack.Database, "CREATE TABLE big AS SELECT n, repeat(md5(n::text), 30) AS t FROM generate_series(1, 150000) n")
		failed(t, s, s.Ask(nil), wire.CodeDiskFull)
		asBefore(t, s)
	})
	t.Run("wrong password", func(t *testing.T) {
		t.Parallel()
		s := before(t, testenv.PostgresOptions{})
		// The role's statements give the login a password of their own.
		s.Write("roles/"+stack.SourceName+"-read", map[string]any{
			"creation_statements": strings.ReplaceAll(stack.Roles()[wire.PurposeRead], "{{password}}", "not the leased one"),
		})
		failed(t, s, s.Ask(nil), wire.CodeLoginRefused)
		asBefore(t, s)
	})
}
