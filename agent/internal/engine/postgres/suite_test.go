package postgres_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine/enginetest"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// The engine keeps every promise of the seam, whatever breaks at whatever step.
func TestConformance(t *testing.T) {
	p := newPair(t, testenv.PostgresOptions{}, testenv.PostgresOptions{})
	p.source.CreateDatabase("small")
	p.source.Exec("small",
		"CREATE TABLE a (id integer PRIMARY KEY, t text UNIQUE)", "INSERT INTO a SELECT i, 'row ' || i FROM generate_series(1, 5000) i",
		"CREATE TABLE b (id serial PRIMARY KEY, a integer REFERENCES a)", "INSERT INTO b (a) SELECT i FROM generate_series(1, 500) i",
		"CREATE VIEW v AS SELECT * FROM a JOIN b USING (id)")
	p.letRead("small")
	reference := p.makeReference(t, "small", "")
	enginetest.Run(t, enginetest.Site{
		Engine: newEngine(t),
		Endpoint: func(side wire.Side, purpose wire.Purpose) engine.Endpoint {
			user := map[wire.Purpose]string{wire.PurposeInspect: "look", wire.PurposeRead: "read", wire.PurposeWrite: "write"}[purpose]
			if side == wire.Source {
				return endpoint(p.source, "small", user)
			}
			return endpoint(p.target, "shop", user)
		},
		Reset: func(*testing.T) {
			p.target.Exec("postgres", "DROP DATABASE IF EXISTS shop WITH (FORCE)", "CREATE DATABASE shop OWNER dbops_owner")
			p.target.Exec("shop", "CREATE TABLE before (t text)", "INSERT INTO before VALUES ('as it was')")
		},
		Untouched: p.requireUntouched,
		Copied: func(t *testing.T) {
			t.Helper()
			p.requireSame(t, reference)
			p.requireNoTraces(t)
			require.Equal(t, "dbops_owner", p.target.Value("postgres", "SELECT pg_get_userbyid(datdba)::text FROM pg_database WHERE datname = 'shop'"))
		},
	})
}
