package policy_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/policy"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/race"
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

// different are policies that all speak about the request and of which no two say
// the same of anything.
func different() []policy.Policy {
	zones := []string{"Europe/Berlin", "Europe/London", "Asia/Tokyo", "America/New_York", "Australia/Sydney", "UTC"}
	all := hundred(1)
	for i := range all {
		p := &all[i]
		p.Sources, p.Targets = []string{fmt.Sprintf("prod-*%c*-eu", 'a'+i%26), "prod-shop-*"}, []string{fmt.Sprintf("sta%d*", i), "stag*"}
		p.SourceLabels, p.TargetLabels = map[string]string{"tier": "g*" + strings.Repeat("*", i)}, map[string]string{"tier": strings.Repeat("*", i+1)}
		p.MaxOperationsPerHour, p.MaxOperationsPerHourSource, p.MaxOperationsPerHourTarget, p.MaxOperationsPerHourMount = 51+i, 151+i, 251+i, 351+i
		p.MaxConcurrent, p.MaxBytes, p.MaxRows, p.MaxDuration = 51+i, 1<<40+int64(i), 1<<40+int64(i), time.Hour+time.Duration(i)
		p.AllowedOperations = []string{"clone"}
		for bit, kind := range []string{"merge", "migrate", "backup", "restore"} {
			if i>>bit&1 != 0 {
				p.AllowedOperations = append(p.AllowedOperations, kind)
			}
		}
		p.AllowedHours, p.AllowedHoursTimeZone = []string{"sat-sun 00:00-24:00", fmt.Sprintf("mon-fri 00:%02d-24:00", i%60), "00:01-23:59"}, zones[i%len(zones)]
	}
	return all
}

// each changes a copy of every policy.
func each(all []policy.Policy, change func(int, *policy.Policy)) []policy.Policy {
	for i := range all {
		change(i, &all[i])
	}
	return all
}

// A hundred policies of which ten speak about the request, and the worst cases:
// all of them do, all say something else, all refuse. Each fails below the promised
// rate, taken by the processor's time, so that other work on the machine counts
// less.
func BenchmarkEvaluate(b *testing.B) {
	for _, c := range []struct {
		name     string
		policies []policy.Policy
		matching int
		rule     string // that refuses
	}{
		{"10_of_100_match", hundred(10), 10, ""},
		{"100_of_100_match", hundred(1), 100, ""},
		{"100_different_match", different(), 100, ""},
		{"all_refuse_the_kind", each(hundred(1), func(_ int, p *policy.Policy) { p.AllowedOperations = nil }), 100, policy.RuleAllowedOperations},
		{"all_refuse_the_rate", each(hundred(1), func(i int, p *policy.Policy) { p.MaxOperationsPerHour = 1 + i%50 }), 100, policy.RuleMaxOperationsPerHour},
		{"all_refuse_the_hour", each(hundred(1), func(_ int, p *policy.Policy) { p.AllowedHours = []string{"sat-sun 00:00-24:00"} }), 100, policy.RuleAllowedHours},
	} {
		b.Run(c.name, func(b *testing.B) {
			set, r := policy.Compile(c.policies), benchmarkRequest()
			d := set.Evaluate(r, noon)
			require.Equal(b, c.rule, d.Rule, "%+v", d)
			require.Len(b, d.Policies, c.matching)
			b.ReportAllocs()
			begin := processorTime(b)
			for b.Loop() {
				d = set.Evaluate(r, noon)
			}
			perSecond := float64(b.N) / (processorTime(b) - begin).Seconds()
			b.ReportMetric(perSecond, "evaluations/s")
			if perSecond < neededPerSecond {
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

// What an evaluation costs does not grow with the policies that do not match, nor with
// the operations that are counted: a few allocations, whatever their number.
func TestEvaluate_Allocations(t *testing.T) {
	r := benchmarkRequest()
	for rule, policies := range map[string][]policy.Policy{
		"":                              hundred(10),
		policy.RuleMaxOperationsPerHour: each(hundred(10), func(_ int, p *policy.Policy) { p.MaxOperationsPerHour = 1 }),
	} {
		set := policy.Compile(policies)
		require.Equal(t, rule, set.Evaluate(r, noon).Rule)
		count := testing.AllocsPerRun(200, func() { set.Evaluate(r, noon) })
		if !race.Enabled { // whose own allocations are among them; make test counts without it
			require.LessOrEqual(t, count, 2.0, rule)
		}
	}
}
