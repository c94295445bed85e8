package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/stack"
)

// longest is the longest time a request took.
type longest struct{ nanoseconds atomic.Int64 }

func (l *longest) add(took time.Duration) {
	for {
		old := l.nanoseconds.Load()
		if int64(took) <= old || l.nanoseconds.CompareAndSwap(old, int64(took)) {
			return
		}
	}
}

func (l *longest) get() time.Duration { return time.Duration(l.nanoseconds.Load()) }

// polling is a number of agents that poll as they are told to.
type polling struct {
	stop    context.CancelFunc
	done    sync.WaitGroup
	longest longest
	polls   atomic.Int64
	errors  atomic.Int64
}

func startPolling(t *testing.T, s *stack.Stack, agents []*api.Client, names []string) *polling {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	p := &polling{stop: stop}
	for i, client := range agents {
		p.done.Go(func() {
			for ctx.Err() == nil {
				began := time.Now()
				secret, err := client.Logical().WriteWithContext(ctx, s.Mount().Poll(names[i]), map[string]any{
					"version": wire.Version, "boot": "cluster", "free_slots": 0, "held": []string{}, "progress": []string{}, "audit_devices": "1",
				})
				pause := time.Second
				switch {
				case ctx.Err() != nil:
					return
				case err != nil:
					p.errors.Add(1) // a cluster without a leader says so
				default:
					p.longest.add(time.Since(began))
					p.polls.Add(1)
					if ms, ok := secret.Data["next_poll_ms"].(interface{ Int64() (int64, error) }); ok {
						if n, err := ms.Int64(); err == nil {
							pause = time.Duration(n) * time.Millisecond
						}
					}
				}
				select {
				case <-ctx.Done():
				case <-time.After(pause):
				}
			}
		})
	}
	t.Cleanup(p.end)
	return p
}

func (p *polling) end() {
	p.stop()
	p.done.Wait()
}

// outage is what a change of leader costs, part by part. The election in between
// is Raft's own and has nothing to do with mounts.
type outage struct {
	drain  time.Duration // until the old leader has let go: it waits for requests in flight
	whole  time.Duration // until every node answers requests that do not concern us
	plugin time.Duration // from then until ours are answered
}

func stepDown(t *testing.T, s *stack.Stack) outage {
	t.Helper()
	var o outage
	old := s.Vault.Active()
	began := time.Now()
	require.NoError(t, old.Client.Sys().StepDown())
	testenv.Await(t, "the old leader to let go", time.Minute, func() error {
		leader, err := old.Client.Sys().Leader()
		if err == nil && leader.IsSelf {
			err = errNothing
		}
		return err
	})
	o.drain = time.Since(began)
	// Through every node: a standby forwards only once it knows the new leader.
	testenv.Await(t, "another leader", time.Minute, func() error {
		for _, node := range s.Vault.Nodes {
			if _, err := node.Client.Logical().Read("auth/token/lookup-self"); err != nil {
				return err
			}
		}
		return nil
	})
	o.whole = time.Since(began)
	testenv.Await(t, "the plugin at the new leader", time.Minute, func() error {
		_, err := s.Vault.Client.Logical().Read(string(s.Mount()) + "/info")
		return err
	})
	o.plugin = time.Since(began) - o.whole
	return o
}

// A step-down and a plugin reload wait for requests in flight, and everybody waits
// for them. Fifty polling agents must not make either slower, and a running
// operation outlives both.
func TestCluster_StepDownAndReloadUnderPolling(t *testing.T) {
	gate := filepath.Join(t.TempDir(), "gate")
	s := stack.New(t, stack.Options{
		Vault: testenv.VaultOptions{Nodes: 3}, Faults: true, AgentEnv: []string{"DBOPS_FAULT=pause:copy:begin:" + gate},
	})
	s.Source.Exec(stack.Database, "CREATE TABLE rows AS SELECT n AS id FROM generate_series(1, 1000) n")
	quiet := stepDown(t, s)

	const agents = 50
	var clients []*api.Client
	var names []string
	for i := range agents {
		name := fmt.Sprintf("poller-%02d", i)
		names, clients = append(names, name), append(clients, s.AgentIdentity(name))
	}
	p := startPolling(t, s, clients, names)
	id := s.Ask(nil)
	testenv.Await(t, "the copy to begin", time.Minute, func() error { _, err := os.Stat(gate + ".reached"); return err })

	p.longest.nanoseconds.Store(0)
	before := p.polls.Load()
	began := time.Now()
	s.Vault.ReloadPlugin()
	reload := time.Since(began)
	testenv.Await(t, "polls after the reload", time.Minute, func() error {
		if p.polls.Load() < before+2*agents {
			return fmt.Errorf("%d polls, %d errors", p.polls.Load(), p.errors.Load())
		}
		return nil
	})
	waited := p.longest.get()
	require.Positive(t, waited)
	t.Logf("plugin reload %v, longest poll around it %v", reload, waited)
	require.Less(t, waited, 2*time.Second)
	require.Less(t, reload, 2*time.Second)

	busy := stepDown(t, s)
	t.Logf("step-down without agents %+v, with %d polling %+v", quiet, agents, busy)
	require.Less(t, busy.drain-quiet.drain, 2*time.Second)
	require.Less(t, busy.plugin, 2*time.Second)

	require.NoError(t, os.WriteFile(gate, nil, 0o600))
	op := s.AwaitFinal(id, time.Minute)
	require.Equal(t, wire.StateSucceeded, op.State, "%+v\n%s", op.Result, s.Agent.Log())
}
