// Command bench compares a whole dbops clone, from the request to the verified
// and switched target, with the best ways to copy a PostgreSQL database today,
// on the same two servers and interleaved in one run, and prints ratios of
// medians beside the physical floor. It never passes or fails by a figure.
//
// SCALE is pgbench's (default 200, about 3 GB; 40 is about 600 MB), ROUNDS how
// often each way is run (default 3).
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/stack"
)

func main() { os.Exit(testenv.Run(os.Stderr, bench)) }

// A way is one thing that is measured.
type way struct {
	name string
	// note says what it is for readers of the table.
	note  string
	run   func() time.Duration
	times []time.Duration
}

func (w *way) median() time.Duration {
	sorted := slices.Sorted(slices.Values(w.times))
	return sorted[len(sorted)/2]
}

func number(t testenv.TB, name string, otherwise int) int {
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s must be a positive number, not %q", name, text)
	}
	return n
}

func bench(t testenv.TB) {
	scale, rounds := number(t, "SCALE", 200), number(t, "ROUNDS", 3)
	conf := testenv.PostgresOptions{Conf: []string{"shared_buffers = 512MB", "max_wal_size = 8GB", "checkpoint_timeout = 30min"}}
	s := stack.New(t, stack.Options{Source: conf, Target: conf})
	for _, program := range []string{"pgcopydb", "pg_dump"} {
		s.Target.Run("sh", "-c", "command -v "+program)
	}
	t.Logf("filling the source: pgbench scale %d", scale)
	s.Source.Run("pgbench", "-i", "-q", "-s", strconv.Itoa(scale), stack.Database)
	s.Source.CreateDatabase("empty")
	s.Connect("empty", s.Source, "postgres", "empty")
	s.Connect("empty-copy", s.Target, "postgres", "empty")

	memory := watchMemory(s.Agent.PID())
	peers := newPeers(t, s)
	ours := &way{name: "dbops clone", note: "verified, switched in", run: func() time.Duration {
		return clone(t, s, stack.SourceName, stack.TargetName)
	}}
	fixed := &way{name: "dbops clone, empty", note: "the fixed cost", run: func() time.Duration {
		return clone(t, s, "empty", "empty-copy")
	}}
	verify := &way{name: "digest of every row, both sides", note: "what the peers lack", run: peers.verify}
	unverified := []*way{
		{name: "pg_dump | psql", run: peers.dumpPsql},
		{name: "pg_dump -Fd -j2, pg_restore -j2", run: peers.dumpRestore},
		{name: "pgcopydb clone", run: peers.pgcopydb},
	}
	floor := []*way{
		{name: "COPY out", note: "floor", run: peers.copyOut},
		{name: "COPY out into COPY in", note: "floor, no keys", run: peers.copyOutIn},
	}
	for round := range rounds {
		t.Logf("round %d of %d", round+1, rounds)
		for _, w := range slices.Concat([]*way{ours, fixed}, floor) {
			settle(s)
			measure(t, w)
		}
		for _, w := range unverified {
			settle(s)
			measure(t, w)
			settle(s)
			measure(t, verify) // of what the peer has just made
		}
	}
	report(s, ours, fixed, verify, unverified, floor, memory.stop())
}

// settle has what the last way wrote on its way to the disk before the next one
// begins, so that nobody pays for somebody else's pages.
func settle(s *stack.Stack) {
	for _, server := range []*testenv.PostgresServer{s.Source, s.Target} {
		server.Exec("postgres", "CHECKPOINT")
	}
	s.Target.Run("sync")
}

func measure(t testenv.TB, w *way) {
	took := w.run()
	w.times = append(w.times, took)
	t.Logf("  %-34s %7.2f s", w.name, took.Seconds())
}

const lookEvery = 200 * time.Millisecond

// clone asks for a clone and waits for its end.
func clone(t testenv.TB, s *stack.Stack, source, target string) time.Duration {
	began := time.Now()
	id, err := s.TryAsk(s.Requester, source, target, nil)
	if err != nil {
		t.Fatalf("ask for a clone: %v", err)
	}
	// As often as the command line looks: looking costs the servers beside it.
	var op wire.Operation
	for op.State == "" || !op.State.Final() {
		time.Sleep(lookEvery)
		if op, err = s.Operation(id); err != nil {
			t.Fatalf("read operation: %v", err)
		}
	}
	took := time.Since(began)
	if op.State != wire.StateSucceeded {
		t.Fatalf("clone %s: %+v\n%s", op.State, op.Result, s.Agent.Log())
	}
	t.Logf("    steps: %s", steps(s, id))
	return took
}

// steps tells where the time of a clone went, from its report.
func steps(s *stack.Stack, id string) string {
	secret, err := s.Vault.Client.Logical().Read(s.Mount().AllOperations() + "/" + id + "/report")
	if err != nil || secret == nil {
		return fmt.Sprintf("no report: %v", err)
	}
	text, _ := secret.Data["text"].(string)
	var report struct {
		DurationsMS map[wire.Step]int64 `json:"durations_ms"`
	}
	if err := json.Unmarshal([]byte(text), &report); err != nil {
		return err.Error()
	}
	var all []string
	for _, step := range wire.Steps() {
		if ms, ok := report.DurationsMS[step]; ok {
			all = append(all, fmt.Sprintf("%s %d ms", step, ms))
		}
	}
	return strings.Join(all, ", ")
}

func best(ways []*way) *way {
	return slices.MinFunc(ways, func(a, b *way) int { return int(a.median() - b.median()) })
}

func report(s *stack.Stack, ours, fixed, verify *way, unverified, floor []*way, m memory) {
	size := s.Source.Value(stack.Database, "select pg_size_pretty(pg_database_size(current_database()))")
	fmt.Printf("\nClone of %s, PostgreSQL %s, both servers and the agent on one machine; medians.\n\n", size,
		s.Source.Value("postgres", "show server_version"))
	line := func(name string, took time.Duration, note string) {
		fmt.Printf("%-46s %8.2f s  %s\n", name, took.Seconds(), note)
	}
	reference := ours.median()
	ratio := func(other time.Duration) string {
		return fmt.Sprintf("dbops/this = %.2f", reference.Seconds()/other.Seconds())
	}
	line(ours.name, reference, ours.note)
	for _, w := range unverified {
		line(w.name, w.median(), ratio(w.median()))
	}
	for _, w := range unverified {
		line(w.name+" + verification", w.median()+verify.median(), ratio(w.median()+verify.median()))
	}
	for _, w := range floor {
		line(w.name, w.median(), w.note+", "+ratio(w.median()))
	}
	line(verify.name, verify.median(), verify.note)
	line(fixed.name, fixed.median(), fixed.note)
	fmt.Printf("%-46s %8.1f MiB (peak)\n%-46s %8.1f MiB (peak)\n", "agent, resident", m.agent, "worker, resident", m.worker)

	peer := best(unverified).median()
	fmt.Printf("\nfigures: clone_vs_best=%.2f clone_vs_best_verified=%.2f fixed_s=%.2f agent_rss_mib=%.0f worker_rss_mib=%.0f\n",
		reference.Seconds()/peer.Seconds(), reference.Seconds()/(peer+verify.median()).Seconds(), fixed.median().Seconds(), m.agent, m.worker)
}

// background returns a context for one long step of a peer.
func background() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), time.Hour)
}
