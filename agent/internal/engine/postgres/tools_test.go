package postgres_test

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine/enginetest"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// pg_dump refuses a server that is newer than itself. That is found out while
// planning and again before anything is made at the target, and the refusal names
// both versions and the way out.
func TestInspect_ToolsOlderThanTheServer(t *testing.T) {
	p := newPair(t, testenv.PostgresOptions{}, testenv.PostgresOptions{})
	p.source.CreateDatabase("small")
	p.source.Exec("small", "CREATE TABLE t (id integer PRIMARY KEY)")
	e, major := newEngine(t), p.source.Major()
	requireRefused := func(err error, step wire.Step, says string) {
		t.Helper()
		failed := operationError(t, err)
		require.Equal(t, wire.CodeUnsupported, failed.Code)
		require.Equal(t, step, failed.Step)
		require.Contains(t, failed.Reason, "no pg_dump of version "+strconv.Itoa(major)+" or newer")
		require.Contains(t, failed.Reason, says)
		require.Contains(t, failed.Hint, "tools_image")
	}
	// The tools there are, of whichever version: they are taken, or refused.
	tools := 0
	look := endpoint(p.source, "small", "look")
	look.RunTool = func(ctx context.Context, tool engine.Tool) error {
		var out strings.Builder
		answer := tool.Stdout
		tool.Stdout = &out
		if err := runTool(ctx, tool); err != nil {
			return err
		}
		if found := regexp.MustCompile(`\(PostgreSQL\) (\d+)`).FindStringSubmatch(out.String()); found != nil {
			has, err := strconv.Atoi(found[1])
			require.NoError(t, err)
			tools = max(tools, has)
		}
		_, err := answer.Write([]byte(out.String()))
		return err
	}
	_, err := e.Inspect(t.Context(), wire.Source, look)
	require.NotZero(t, tools)
	if tools < major {
		requireRefused(err, wire.StepInspect, "its newest is "+strconv.Itoa(tools))
		return
	}
	require.NoError(t, err)

	for says, answer := range map[string]string{
		"its newest is " + strconv.Itoa(major-1): fmt.Sprintf("pg_dump (PostgreSQL) %d.3 (Debian)", major-1),
		"it has none":                            "Segmentation fault",
	} {
		old := func(_ context.Context, tool engine.Tool) error {
			require.Equal(t, []string{"--version"}, tool.Args, "nothing is dumped")
			_, err := tool.Stdout.Write([]byte(answer))
			return err
		}
		look := endpoint(p.source, "small", "look")
		look.RunTool = old
		_, err := e.Inspect(t.Context(), wire.Source, look)
		requireRefused(err, wire.StepInspect, says)
		// The image was changed after the plan.
		job, h := p.job(t, e, "small", nil), &enginetest.Host{}
		job.Source.RunTool = old
		_, err = e.Run(t.Context(), job, h)
		requireRefused(err, wire.StepSnapshot, says)
		require.Empty(t, h.Begun)
		p.requireUntouched(t)
	}
}
