package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/stack"
)

// crashes is a stack whose source changes before each operation, so that what
// stands at the target tells which operation put it there.
type crashes struct {
	*stack.Stack
	t      *testing.T
	round  int
	target string // the marker that must stand at the target
}

func newCrashes(t *testing.T) *crashes {
	t.Helper()
	s := stack.New(t, stack.Options{Faults: true})
	s.Source.Exec(stack.Database,
		"CREATE TABLE marker (round int PRIMARY KEY)", "INSERT INTO marker VALUES (0)",
		"CREATE TABLE bulk AS SELECT n AS id, repeat('x', 100) AS filler FROM generate_series(1, 20000) n",
		"ALTER TABLE bulk ADD PRIMARY KEY (id)",
	)
	c := &crashes{Stack: s, t: t, target: "0"}
	s.Succeed(nil, time.Minute)
	c.tidy(t)
	return c
}

// ask changes the source and asks for a clone.
func (c *crashes) ask() string {
	c.t.Helper()
	c.round++
	c.Source.Exec(stack.Database, "UPDATE marker SET round = "+strconv.Itoa(c.round))
	return c.Ask(nil)
}

// settle waits for the final state and checks that the target holds what that
// state says and that nothing is left anywhere.
func (c *crashes) settle(t *testing.T, id string) wire.Operation {
	t.Helper()
	op := c.AwaitFinal(id, 3*time.Minute)
	if op.State == wire.StateSucceeded {
		c.target = strconv.Itoa(c.round)
	} else {
		require.Contains(t, []wire.State{wire.StateFailed, wire.StateCancelled}, op.State)
		require.NotNil(t, op.Result)
		require.NotEmpty(t, op.Result.Code)
	}
	c.tidy(t)
	require.Equal(t, c.target, c.Target.Value(stack.Database, "SELECT round FROM marker"), "content of the target after %s %+v", op.State, op.Result)
	return op
}

// tidy checks that nothing is left: containers, directories, logins, databases.
func (c *crashes) tidy(t *testing.T) {
	t.Helper()
	docker := testenv.Docker(t)
	// An agent that finds an entry of an operation that has ended keeps it for half
	// a minute, in case the plugin is only slow to give the claim back.
	testenv.Await(t, "nothing to be left", 90*time.Second, func() error {
		containers, err := docker.ContainerList(context.Background(), container.ListOptions{
			All: true, Filters: filters.NewArgs(filters.Arg("label", "io.dbops.operation")),
		})
		if err != nil {
			return err
		}
		for _, left := range containers {
			if c.own(left.Labels["io.dbops.operation"]) {
				return fmt.Errorf("container %v, %s", left.Names, left.State)
			}
		}
		entries, err := os.ReadDir(c.RunDir())
		if err != nil {
			return err
		}
		for _, entry := range entries {
			if strings.HasPrefix(entry.Name(), "op-") {
				return fmt.Errorf("directory %s", entry.Name())
			}
		}
		if journal, err := filepath.Glob(filepath.Join(c.StateDir(), "journal", "op-*")); err != nil || len(journal) > 0 {
			return fmt.Errorf("journal %v, %w", journal, err)
		}
		for name, server := range map[string]*testenv.PostgresServer{"source": c.Source, "target": c.Target} {
			if logins := stack.Logins(server); logins != "" {
				return fmt.Errorf("logins at the %s: %s", name, logins)
			}
		}
		if databases := stack.Databases(c.Target); databases != stack.Database {
			return fmt.Errorf("databases at the target: %s", databases)
		}
		return nil
	})
}

// own says whether an operation is of this stack: other tests run beside it.
func (c *crashes) own(id string) bool {
	_, err := c.Operation(id)
	return err == nil
}

// sessionsEnd checks that the operation's sessions end on both servers within two
// seconds, as is promised.
func (c *crashes) sessionsEnd(t *testing.T) {
	t.Helper()
	began := time.Now()
	testenv.Await(t, "the sessions to end", 2*time.Second, func() error {
		for name, server := range map[string]*testenv.PostgresServer{"source": c.Source, "target": c.Target} {
			left := server.Value("postgres", `SELECT coalesce(string_agg(usename || ' ' || state || ' ' || left(query, 40), '; '), '')
				FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename NOT IN ('dbops_root', $1)`, server.User)
			if left != "" {
				return fmt.Errorf("at the %s: %s", name, left)
			}
		}
		return nil
	})
	t.Logf("no session was left after %s", time.Since(began).Round(time.Millisecond))
}

// workers are the worker processes of this stack's sandboxes.
func (c *crashes) workers(t *testing.T) []int {
	t.Helper()
	docker, ctx := testenv.Docker(t), context.Background()
	containers, err := docker.ContainerList(ctx, container.ListOptions{Filters: c.Containers()})
	require.NoError(t, err)
	var pids []int
	for _, running := range containers {
		if details, err := docker.ContainerInspect(ctx, running.ID); err == nil && details.State.Pid > 0 {
			pids = append(pids, details.State.Pid)
		}
	}
	return pids
}

// events checks the audit file: the agent's chain over all operations has no gap
// and no break, each event stands in a successful response entry, and all copies
// are byte-equal.
func (c *crashes) events(t *testing.T, ids []string) {
	t.Helper()
	chain := map[string]stack.AuditedEvent{} // by epoch and seq
	for _, id := range ids {
		events := c.AuditedEvents(id)
		require.NotEmpty(t, events, "no event of %s in the audit file", id)
		for _, event := range events {
			require.Positive(t, event.Responses)
			chain[event.Epoch+"/"+event.Seq] = event
		}
	}
	for _, event := range chain {
		seq, err := strconv.Atoi(event.Seq)
		require.NoError(t, err)
		if next, ok := chain[event.Epoch+"/"+strconv.Itoa(seq+1)]; ok {
			require.Equal(t, wire.EventHash(event.Text), next.Prev, "event %s/%s does not continue its predecessor", next.Epoch, next.Seq)
			continue
		}
		require.Equal(t, wire.EventOperationFinished, event.EventType, "a gap after event %s/%s", event.Epoch, event.Seq)
	}
}

// Whatever step the agent dies at, by SIGKILL: the worker ends by itself, the
// servers' sessions end within two seconds, and after a restart the operation has
// a final state, the target is whole, and nothing is left.
func TestCrash_AgentKilledAtEachStep(t *testing.T) {
	t.Parallel()
	c := newCrashes(t)
	c.Agent.Stop(20 * time.Second)
	var ids []string
	steps := []wire.Step{
		wire.StepSandbox, wire.StepInspect, wire.StepPlan, wire.StepAccounts, wire.StepSnapshot, wire.StepStage, wire.StepSchema, wire.StepCopy,
		wire.StepIndex, wire.StepVerify, wire.StepSwitch, wire.StepDropOld, wire.StepRevoke, wire.StepFinish,
	}
	for _, step := range steps {
		for _, edge := range []string{"begin", "end"} {
			t.Run(string(step)+" "+edge, func(t *testing.T) {
				id := c.ask()
				ids = append(ids, id)
				c.Agent.Start("DBOPS_FAULT=kill:" + string(step) + ":" + edge)
				require.True(t, c.Agent.AwaitEnd(time.Minute), "the agent never reached %s %s", step, edge)
				testenv.Await(t, "the worker to end", 2*time.Second, func() error {
					if pids := c.workers(t); len(pids) > 0 {
						return fmt.Errorf("workers %v", pids)
					}
					return nil
				})
				c.sessionsEnd(t)
				c.Agent.Start()
				op := c.settle(t, id)
				if step == wire.StepFinish || step == wire.StepRevoke || step == wire.StepDropOld || step == wire.StepSwitch && edge == "end" {
					require.Equal(t, wire.StateSucceeded, op.State, "the copy was in place: %+v", op.Result)
				}
				c.Agent.Stop(20 * time.Second)
			})
		}
	}
	c.events(t, ids)
}

// pausedAt asks for a clone, does something while its agent pauses at the step, and
// returns how it ended.
func (c *crashes) pausedAt(t *testing.T, step wire.Step, do func()) wire.Operation {
	t.Helper()
	gate := filepath.Join(t.TempDir(), "gate")
	id := c.ask()
	c.Agent.Start("DBOPS_FAULT=pause:" + string(step) + ":begin:" + gate)
	testenv.Await(t, "the step", time.Minute, func() error { _, err := os.Stat(gate + ".reached"); return err })
	do()
	require.NoError(t, os.WriteFile(gate, nil, 0o600))
	return c.settle(t, id)
}

// The worker's death fails the operation and leaves nothing.
func TestCrash_WorkerKilledAtEachStep(t *testing.T) {
	t.Parallel()
	c := newCrashes(t)
	c.Agent.Stop(20 * time.Second)
	var ids []string
	for _, step := range []wire.Step{
		wire.StepSnapshot, wire.StepStage, wire.StepSchema, wire.StepCopy, wire.StepIndex, wire.StepVerify, wire.StepSwitch, wire.StepDropOld,
	} {
		t.Run(string(step), func(t *testing.T) {
			op := c.pausedAt(t, step, func() {
				pids := c.workers(t)
				require.Len(t, pids, 1)
				require.NoError(t, syscall.Kill(pids[0], syscall.SIGKILL))
				c.sessionsEnd(t)
			})
			ids = append(ids, op.ID)
			if step == wire.StepDropOld {
				require.Equal(t, wire.StateSucceeded, op.State, "the copy was in place: %+v", op.Result)
			} else {
				require.Equal(t, wire.StateFailed, op.State)
			}
			c.Agent.Stop(20 * time.Second)
		})
	}
	c.events(t, ids)
}

// The death of Vault's plugin process at any step fails nothing: Vault starts it
// again and the operation goes on.
func TestCrash_PluginKilledAtEachStep(t *testing.T) {
	t.Parallel()
	c := newCrashes(t)
	c.Agent.Stop(20 * time.Second)
	var ids []string
	for _, step := range []wire.Step{
		wire.StepInspect, wire.StepPlan, wire.StepAccounts, wire.StepSnapshot, wire.StepCopy, wire.StepVerify, wire.StepSwitch, wire.StepRevoke, wire.StepFinish,
	} {
		t.Run(string(step), func(t *testing.T) {
			op := c.pausedAt(t, step, func() { require.NoError(t, syscall.Kill(c.Vault.PluginPID(), syscall.SIGKILL)) })
			ids = append(ids, op.ID)
			require.Equal(t, wire.StateSucceeded, op.State, "%+v", op.Result)
			c.Agent.Stop(20 * time.Second)
		})
	}
	c.events(t, ids)
}
