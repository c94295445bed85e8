package postgres_test

import (
	"context"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine/enginetest"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

func loadAllKinds(t *testing.T, p *pair, database string) {
	t.Helper()
	p.source.CreateDatabase(database)
	text, err := os.ReadFile("testdata/all_kinds.sql")
	require.NoError(t, err)
	conn := p.source.Connect(database)
	defer conn.Close(context.Background())
	_, err = conn.PgConn().Exec(context.Background(), string(text)).ReadAll()
	require.NoError(t, err)
}

// The copy of a database with everything in it is what pg_dump calls equal.
func TestRun_AllKinds(t *testing.T) {
	p := newPair(t, testenv.PostgresOptions{}, testenv.PostgresOptions{})
	loadAllKinds(t, p, "kinds")
	e := newEngine(t)
	job := p.job(t, e, "kinds", nil)
	h := &enginetest.Host{}
	report, err := e.Run(context.Background(), job, h)
	require.NoError(t, err)
	p.requireSame(t, p.makeReference(t, "kinds", ""))
	p.requireNoTraces(t)
	require.NotEmpty(t, report.Tables)
	require.Equal(t, []wire.Step{wire.StepSnapshot, wire.StepStage, wire.StepSchema, wire.StepCopy}, h.Begun[:4])
	require.ElementsMatch(t, h.Begun, h.Ended)
	t.Log(report.DurationsMS)
}
