package main

import (
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/stack"
)

// peerDatabase is what the peers make at the target.
const peerDatabase = "peer"

// peers are the tools we compare with. They run in the target's container, which
// shares the host's network, as the superuser, with its password in the URL: the
// way that dbops is there to end.
type peers struct {
	t              testenv.TB
	source, target *testenv.PostgresServer
	from, to       string
	tables         []string
}

func newPeers(t testenv.TB, s *stack.Stack) *peers {
	names := s.Source.Value(stack.Database, `select string_agg(quote_ident(relname), ',' order by relname)
		from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace`)
	return &peers{
		t: t, source: s.Source, target: s.Target, tables: strings.Split(names, ","),
		from: "'" + s.Source.DSN(stack.Database) + "'", to: "'" + s.Target.DSN(peerDatabase) + "'",
	}
}

// timed empties the peers' database and measures a shell command, the making of
// the database included: a clone makes one too.
func (p *peers) timed(command string) time.Duration {
	p.t.Helper()
	p.target.Exec("postgres", "DROP DATABASE IF EXISTS "+peerDatabase+" WITH (FORCE)")
	p.target.Run("sh", "-c", "rm -rf /tmp/peer")
	began := time.Now()
	p.target.CreateDatabase(peerDatabase)
	p.target.Run("bash", "-c", "set -e -o pipefail; "+command)
	return time.Since(began)
}

func (p *peers) dumpPsql() time.Duration {
	return p.timed("pg_dump " + p.from + " | psql -q -X -v ON_ERROR_STOP=1 -o /dev/null " + p.to)
}

func (p *peers) dumpRestore() time.Duration {
	return p.timed("pg_dump -Fd -j2 -Z0 -f /tmp/peer " + p.from + " && pg_restore -j2 -d " + p.to + " /tmp/peer")
}

func (p *peers) pgcopydb() time.Duration {
	return p.timed("pgcopydb clone --dir /tmp/peer --table-jobs 2 --index-jobs 2 --source " + p.from + " --target " + p.to + " >/dev/null 2>&1")
}

// verify digests every row of both sides at once: count and two 64-bit hashes,
// summed, as a query that moves no rows. It is the cheapest equal verification.
func (p *peers) verify() time.Duration {
	p.t.Helper()
	began := time.Now()
	var both sync.WaitGroup
	var digests [2]string
	both.Go(func() { digests[0] = p.digest(p.source.Connect(stack.Database)) })
	both.Go(func() { digests[1] = p.digest(p.target.Connect(peerDatabase)) })
	both.Wait()
	took := time.Since(began)
	if digests[0] == "" || digests[0] != digests[1] {
		p.t.Fatalf("a peer's copy differs: %q, %q", digests[0], digests[1])
	}
	return took
}

func (p *peers) digest(conn *pgx.Conn) string {
	ctx, cancel := background()
	defer cancel()
	var all strings.Builder
	defer func() {
		if err := conn.Close(ctx); err != nil {
			p.t.Logf("close: %v", err)
		}
	}()
	for _, table := range p.tables {
		var digest string
		err := conn.QueryRow(ctx, `select concat(count(*), ' ', sum(hash_record_extended(t, 0)), ' ', sum(hash_record_extended(t, 1)))
			from `+table+" t").Scan(&digest)
		if err != nil {
			p.t.Logf("digest of %s: %v", table, err)
			return ""
		}
		all.WriteString(table + " " + digest + "\n")
	}
	return all.String()
}
