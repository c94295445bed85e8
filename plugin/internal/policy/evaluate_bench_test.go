package policy_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/policy"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/stretchr/testify/require"
)

// neededPerSecond is what one core must decide with a hundred policies.
const neededPerSecond = 100_000

// hundred are policies of which every nth speaks about the request, with every
// rule set to something that has to be looked at.
func hundred(nth int) []policy.Policy {
	var all []policy.Policy
	for i := range 100 {
		p := policy.Policy{
			Name: fmt.Sprintf("policy-%03d", i), Entities: []string{fmt.Sprintf("entity-%03d", i)}, Groups: []string{fmt.Sprintf("group-%03d", i), "g-all"},
			Operations: []wire.Kind{wire.KindClone, wire.KindBackup},
			Sources:    []string{fmt.Sprintf("billing-%d-*", i), "prod-*-eu"}, Targets: []string{"dev-*", "staging"},
			SourceLabels: map[string]string{"tier": "gold*"}, TargetLabels: map[string]string{"tier": "*"},
			RequireAuthentication: true, EnableNetworkIsolation: true, AuditOperations: true,
			MaxOperationsPerHour: 100, MaxOperationsPerHourSource: 100, MaxOperationsPerHourTarget: 100, MaxOperationsPerHourMount: 1000,
			AllowedOperations: []string{"backup", "clone"}, MaxConcurrent: 60, MaxDuration: time.Hour, MaxBytes: 1 << 40, MaxRows: 1 << 40,
			RequireTLS: true, AllowedHours: []string{"sat-sun 00:00-24:00", "mon-fri 06:00-22:00"}, AllowedHoursTimeZone: "Europe/Berlin",
		}
		if i%nth != 0 {
			p.Sources = []string{"other-*"}
		}
		all = append(all, p)
	}
	return all
}

func benchmarkRequest() policy.Request {
	var times []time.Time
	for i := range 50 {
		times = append(times, noon.Add(-time.Duration(i)*time.Minute))
	}
	labels := map[string]string{"tier": "golden", "env": "x"}
	return policy.Request{
		Entity: "entity-050", Groups: []string{"g-all", "group-051"}, Kind: wire.KindClone,
		Source:   []policy.Connection{{Name: "prod-shop-eu", Engine: wire.EnginePostgres, Labels: labels, TLS: true}},
		Target:   []policy.Connection{{Name: "staging", Engine: wire.EnginePostgres, Labels: labels, TLS: true}},
		Isolated: true, Audited: true,
		History:   &policy.History{Entity: times, Source: times, Target: times, Mount: times, Unfinished: 50},
		Estimates: &wire.Estimates{Rows: 1000, Bytes: 1 << 30},
	}
}

// A hundred policies of which ten speak about the request, and the worst case that
// all of them do. The first fails below the promised rate, taken by the
// processor's time, so that other work on the machine counts less.
func BenchmarkEvaluate(b *testing.B) {
	for _, nth := range []int{10, 1} {
		b.Run(fmt.Sprintf("%d_of_100_match", 100/nth), func(b *testing.B) {
			set, r := policy.Compile(hundred(nth)), benchmarkRequest()
			d := set.Evaluate(r, noon)
			require.True(b, d.Allowed, "%+v", d)
			require.Len(b, d.Policies, 100/nth)
			b.ReportAllocs()
			begin := processorTime(b)
			for b.Loop() {
				d = set.Evaluate(r, noon)
			}
			perSecond := float64(b.N) / (processorTime(b) - begin).Seconds()
			b.ReportMetric(perSecond, "evaluations/s")
			if nth > 1 && perSecond < neededPerSecond {
				b.Fatalf("%.0f evaluations a second, needed are %d", perSecond, neededPerSecond)
			}
		})
	}
}

func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// What an evaluation costs does not grow with the policies that do not match: a
// few allocations, whatever the number of policies.
func TestEvaluate_Allocations(t *testing.T) {
	set, r := policy.Compile(hundred(10)), benchmarkRequest()
	count := testing.AllocsPerRun(200, func() { set.Evaluate(r, noon) })
	if !raceDetector { // whose own allocations are among them; make test counts without it
		require.LessOrEqual(t, count, 2.0)
	}
}
