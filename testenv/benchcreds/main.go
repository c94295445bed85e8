// Command benchcreds compares our credentials engine with Vault's built-in
// `database` engine: both on one Vault on Raft storage and on the same
// PostgreSQL, interleaved in one run, with 1, 8 and 32 clients. It prints
// throughput, p50 and p99 with ratios, the floor beside them, the processor time
// that each program spends on a request, and how many entries a request adds to
// Vault's Raft log. It never passes or fails by a figure.
//
// DURATION is how long each cell of the table is measured (default 2.5s), ROUNDS
// how often (default 2).
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

func main() { os.Exit(testenv.Run(os.Stderr, bench)) }

// clientCounts are the loads compared.
var clientCounts = []int{1, 8, 32}

// stand is what everything is measured on.
type stand struct {
	t        testenv.TB
	vault    *testenv.VaultServer
	postgres *testenv.PostgresServer
	// clients share nothing, as applications do not.
	clients []*api.Client
	plugin  int // its process
	cell    time.Duration
}

func bench(t testenv.TB) {
	cell := 2500 * time.Millisecond
	if text := os.Getenv("DURATION"); text != "" {
		var err error
		if cell, err = time.ParseDuration(text); err != nil || cell <= 0 {
			t.Fatalf("DURATION must be a duration such as 5s, not %q", text)
		}
	}
	rounds := 2
	if text := os.Getenv("ROUNDS"); text != "" {
		var err error
		if rounds, err = strconv.Atoi(text); err != nil || rounds < 1 {
			t.Fatalf("ROUNDS must be a positive number, not %q", text)
		}
	}
	s := &stand{
		t: t, cell: cell,
		vault:    testenv.Vault(t, testenv.VaultOptions{Raft: true, LogLevel: "error"}),
		postgres: testenv.Postgres(t, testenv.PostgresOptions{Durable: true, Conf: []string{"max_connections = 200"}}),
	}
	for range clientCounts[len(clientCounts)-1] {
		s.clients = append(s.clients, s.vault.NewClient(s.vault.RootToken))
	}
	engines := s.engines()
	s.plugin = s.vault.PluginPID()
	calls := s.countEntries(engines)

	var cells []*cellResult
	for _, clients := range clientCounts {
		for _, kind := range []load{create, createRevoke} {
			for _, e := range engines {
				if e.missing == "" && (e.only == 0 || e.only == clients && (!e.revokeOnly || kind == createRevoke)) {
					cells = append(cells, &cellResult{engine: e, clients: clients, load: kind})
				}
			}
		}
	}
	floors := s.floors()
	for round := range rounds {
		t.Logf("round %d of %d", round+1, rounds)
		for i := range cells {
			c := cells[i]
			if round%2 == 1 {
				c = cells[len(cells)-1-i] // neither is always the first
			}
			s.measure(c)
		}
		for _, f := range floors {
			f.measure(s)
		}
	}
	report(s, engines, cells, floors, calls)
}

// must ends the run; a benchmark on a broken stand is worth nothing.
func (s *stand) must(err error, format string, args ...any) {
	s.t.Helper()
	if err != nil {
		s.t.Fatalf("%s: %v", fmt.Sprintf(format, args...), err)
	}
}
