package main

import (
	"fmt"
	"time"
)

// notMeasured stands for what could not be.
const notMeasured = "n/a"

// results finds cells.
type results []*cellResult

func (r results) of(name string, kind load, clients int) *cellResult {
	for _, c := range r {
		if c.engine.name == name && c.load == kind && c.clients == clients && len(c.took) > 0 {
			return c
		}
	}
	return nil
}

// throughput is the ratio of one engine to another.
func (r results) throughput(a, b string, kind load, clients int) string {
	x, y := r.of(a, kind, clients), r.of(b, kind, clients)
	if x == nil || y == nil {
		return notMeasured
	}
	return fmt.Sprintf("%.2f", x.perSecond()/y.perSecond())
}

func (r results) slowest(a, b string, kind load, clients int) string {
	x, y := r.of(a, kind, clients), r.of(b, kind, clients)
	if x == nil || y == nil {
		return notMeasured
	}
	return fmt.Sprintf("%.2f", float64(x.quantile(0.99))/float64(y.quantile(0.99)))
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
}

func report(s *stand, engines []*engine, cells results, floors []*floor, calls map[*engine]entries) {
	fmt.Printf("\nLogins from one Vault on Raft storage and PostgreSQL %s, all on one machine, %s per cell and round.\n\n",
		s.postgres.Value("postgres", "show server_version"), s.cell)
	header := "%-28s %-14s %8s %11s %11s %11s %8s %7s %7s\n"
	fmt.Printf(header, "engine", "load", "clients", "per second", "p50", "p99", "failed", "ratio", "p99")
	for _, c := range cells {
		ratio, slowest := "", ""
		if c.engine.against != "" {
			ratio = cells.throughput(c.engine.name, c.engine.against, c.load, c.clients)
			slowest = cells.slowest(c.engine.name, c.engine.against, c.load, c.clients)
		}
		fmt.Printf(header, c.engine.name, c.load, fmt.Sprint(c.clients), fmt.Sprintf("%.0f", c.perSecond()),
			milliseconds(c.quantile(0.5)), milliseconds(c.quantile(0.99)), fmt.Sprint(c.failed), ratio, slowest)
	}
	fmt.Println("\nThe floor:")
	for _, f := range floors {
		fmt.Printf(header, f.name, "", fmt.Sprint(f.clients), fmt.Sprintf("%.0f", f.perSecond()),
			milliseconds(f.quantile(0.5)), milliseconds(f.quantile(0.99)), "", "", "")
	}
	fmt.Println("\nProcessor time per request of Vault, our plugin, PostgreSQL and the client, in milliseconds:")
	for _, c := range cells {
		fmt.Printf("%-28s %-14s %8d %s\n", c.engine.name, c.load, c.clients, c.used.per(len(c.took)))
	}
	fmt.Println("\nEntries in Vault's Raft log per request, one client:")
	for _, e := range engines {
		if counted, ok := calls[e]; ok {
			fmt.Printf("%-28s create %.2f, revoke %.2f\n", e.name, counted.create, counted.revoke)
		}
	}
	for _, e := range engines {
		if e.missing != "" {
			fmt.Printf("%s was not measured: %s\n", e.name, e.missing)
		}
	}
	fmt.Printf("\nfigures: c1=%s c8=%s c32=%s c8_low_iterations=%s p99_c8=%s redis=%s grants=%s\n",
		cells.throughput(ours, builtin, create, 1), cells.throughput(ours, builtin, create, manyClients),
		cells.throughput(ours, builtin, create, 32), cells.throughput(oursLow, builtin, create, manyClients),
		cells.slowest(ours, builtin, create, manyClients), cells.throughput(oursRedis, builtinRedis, createRevoke, manyClients),
		cells.throughput(oursGrant, builtinGrant, createRevoke, manyClients))
}
