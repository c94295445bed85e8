package policy_test

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/policy"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/stretchr/testify/require"
)

// The claims that the fuzzer and the random sets are held to. None of them is
// about the default denial, which is the absence of a policy: a policy, a label
// that was missing or a name that a policy speaks of lift it, as they are meant to.
var claims = map[string]func(*testing.T, *draw) bool{
	"one more policy":      claimPolicyAdded,
	"labels taken away":    claimLabelsRemoved,
	"labels changed":       claimLabelsChanged,
	"asked by other names": claimAskedByOtherNames,
	"a name learned":       claimNameLearned,
	"zones taken away":     claimZonesRemoved,
}

// Evaluate never panics, explains what it decides, and holds every claim.
func FuzzEvaluate(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("a policy, another one and a request are drawn from these bytes, whatever they are"))
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 255, 254, 253})
	f.Fuzz(func(t *testing.T, content []byte) {
		for _, claim := range claims {
			claim(t, &draw{content})
		}
	})
}

// The same over many random sets, so that plain go test looks further than the
// seeds of the fuzzer, and sees that every claim was put to the test: that there
// were refusals to lift.
func TestEvaluate_Claims(t *testing.T) {
	t.Parallel()
	for name, claim := range claims {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(1, 2))
			tested := 0
			for range 4000 {
				content := make([]byte, 500)
				for i := range content {
					content[i] = byte(random.UintN(256))
				}
				if claim(t, &draw{content}) {
					tested++
				}
			}
			require.Greater(t, tested, 200, "hardly anything was refused, so hardly anything was tested")
		})
	}
}

// refusedByRule tells whether a rule of a policy refused, not the absence of a
// policy or of a label.
func refusedByRule(d wire.Decision) bool { return !d.Allowed && d.Policy != "" }

// A further policy never turns a refusal into a permission where one matches as
// asked already, and never loosens what is asked of an operation.
func claimPolicyAdded(t *testing.T, d *draw) bool {
	r, policies, extra := d.request(), d.policies(), d.policy()
	before := evaluate(t, policies, r)
	after := evaluate(t, append(slices.Clone(policies), extra), r)
	if !before.Allowed && before.Rule != policy.RuleDefaultDeny && after.Allowed {
		t.Fatalf("adding policy %+v turned %+v into %+v", extra, before, after)
	}
	if before.Allowed && after.Allowed {
		loosened(t, before, after)
	}
	return !before.Allowed && before.Rule != policy.RuleDefaultDeny
}

// loosened fails when after asks less of an operation than before.
func loosened(t *testing.T, before, after wire.Decision) {
	t.Helper()
	limit := func(name string, before, after int64) {
		if before > 0 && (after <= 0 || after > before) {
			t.Fatalf("%s: %d became %d", name, before, after)
		}
	}
	limit("max_bytes", before.MaxBytes, after.MaxBytes)
	limit("max_rows", before.MaxRows, after.MaxRows)
	limit("max_duration", int64(before.MaxDuration), int64(after.MaxDuration))
	limit("clone_ttl", int64(before.CloneTTL), int64(after.CloneTTL))
	for _, need := range before.Agents {
		if !slices.ContainsFunc(after.Agents, func(n wire.AgentNeed) bool { return n.Policy == need.Policy }) {
			t.Fatalf("agents: %+v is gone", need)
		}
	}
	if len(after.Approvals) < len(before.Approvals) || len(after.Agents) < len(before.Agents) {
		t.Fatalf("needs became fewer: %+v, %+v", before, after)
	}
	for _, mask := range before.Masks {
		if !slices.Contains(after.Masks, mask) {
			t.Fatalf("mask %s is gone", mask)
		}
	}
	if before.RequireTLS && !after.RequireTLS || !before.Preview && after.Preview ||
		before.UndecidedColumns == policy.UndecidedStop && after.UndecidedColumns != policy.UndecidedStop {
		t.Fatalf("loosened: %+v, %+v", before, after)
	}
}

// Taking labels away, from any name of either database, never turns a refusal
// into a permission, not even the default denial.
func claimLabelsRemoved(t *testing.T, d *draw) bool {
	r, policies := d.request(), d.policies()
	before := evaluate(t, policies, r)
	after := r
	after.Source, after.Target = d.withoutLabels(r.Source), d.withoutLabels(r.Target)
	if decision := evaluate(t, policies, after); !before.Allowed && decision.Allowed {
		t.Fatalf("taking labels away turned %+v into %+v", before, decision)
	}
	return !before.Allowed
}

// Whatever labels are changed to, a refusal by a policy that does not select by
// labels stays one.
func claimLabelsChanged(t *testing.T, d *draw) bool {
	r, policies := d.request(), d.policies()
	before := evaluate(t, policies, r)
	if !refusedByRule(before) {
		return false
	}
	for _, p := range policies {
		if p.Name == before.Policy && len(p.SourceLabels)+len(p.TargetLabels) > 0 {
			return false // relabelling is how it is told what it speaks about
		}
	}
	after := r
	after.Source, after.Target = d.relabelled(r.Source), d.relabelled(r.Target)
	if decision := evaluate(t, policies, after); decision.Allowed {
		t.Fatalf("relabelling turned %+v into %+v", before, decision)
	}
	return true
}

// Asking for the same databases by other names of theirs never turns a refusal by
// a rule into a permission, but that of require_tls, since a name that is
// encrypted is another way to the same data.
func claimAskedByOtherNames(t *testing.T, d *draw) bool {
	r, policies := d.request(), d.policies()
	before := evaluate(t, policies, r)
	after := r
	after.Source, after.Target = d.shuffled(r.Source), d.shuffled(r.Target)
	decision := evaluate(t, policies, after)
	tested := refusedByRule(before) && before.Rule != policy.RuleRequireTLS
	if tested && decision.Allowed {
		t.Fatalf("asking by other names turned %+v into %+v", before, decision)
	}
	return tested
}

// Learning that a database has one more name never turns a refusal into a
// permission, not even the default denial.
func claimNameLearned(t *testing.T, d *draw) bool {
	r, policies := d.request(), d.policies()
	before := evaluate(t, policies, r)
	after := r
	name := d.connections("learned")[0]
	name.Engine = r.Target[0].Engine
	after.Target = append(slices.Clone(r.Target), name)
	if decision := evaluate(t, policies, after); !before.Allowed && decision.Allowed {
		t.Fatalf("learning a name turned %+v into %+v", before, decision)
	}
	return !before.Allowed
}

// While zones are in use, taking a connection's zone away never turns a refusal
// into a permission.
func claimZonesRemoved(t *testing.T, d *draw) bool {
	r, policies := d.request(), d.policies()
	r.ZonesInUse = true
	before := evaluate(t, policies, r)
	after := r
	after.Source, after.Target = slices.Clone(r.Source), slices.Clone(r.Target)
	for _, side := range [][]policy.Connection{after.Source, after.Target} {
		for i := range side {
			if d.chance(2) {
				side[i].Zone = ""
			}
		}
	}
	if decision := evaluate(t, policies, after); !before.Allowed && decision.Allowed {
		t.Fatalf("taking zones away turned %+v into %+v", before, decision)
	}
	return !before.Allowed
}

// evaluate decides, twice, and checks what holds of every decision.
func evaluate(t *testing.T, policies []policy.Policy, r policy.Request) wire.Decision {
	t.Helper()
	set := policy.Compile(policies)
	d := set.Evaluate(r, noon)
	explained, reports := set.Explain(r, noon)
	require.Equal(t, d, explained, "the same policies, request and time give the same decision")
	checkDecision(t, d, r)
	if foreclosed, yes := set.Foreclosed(r); yes && d.Allowed {
		t.Fatalf("foreclosed as %+v, but allowed", foreclosed)
	}
	var matched []string
	for _, report := range reports {
		if report.Outcome != policy.OutcomeNoMatch {
			matched = append(matched, report.Policy)
		}
		if d.Allowed && report.Outcome == policy.OutcomeRefuse {
			t.Fatalf("allowed, but policy %s is said to refuse: %+v", report.Policy, report)
		}
		if report.Decides && report.Outcome != policy.OutcomeRefuse {
			t.Fatalf("policy %s decides without refusing", report.Policy)
		}
	}
	if d.Code != wire.CodeNoIdentity && d.Code != wire.CodeUnclassified {
		require.Equal(t, d.Policies, matched, "the explanation names the policies that matched")
	}
	return d
}

func checkDecision(t *testing.T, d wire.Decision, r policy.Request) {
	t.Helper()
	if d.Allowed == (d.Code != "") {
		t.Fatalf("allowed and code disagree: %+v", d)
	}
	if d.Allowed && r.Entity == "" {
		t.Fatalf("allowed without an entity: %+v", d)
	}
	if d.Allowed && len(d.Policies) == 0 {
		t.Fatalf("allowed without a policy: %+v", d)
	}
	if !d.Allowed && (d.Rule == "" || strings.TrimSpace(d.Reason) == "" || !d.Code.Valid()) {
		t.Fatalf("refusal without rule, reason or code: %+v", d)
	}
}

// draw makes values of small vocabularies from bytes, so that policies and
// requests meet often.
type draw struct{ content []byte }

func (d *draw) n(below int) int {
	if len(d.content) == 0 {
		return 0
	}
	b := d.content[0]
	d.content = d.content[1:]
	return int(b) % below
}

func (d *draw) chance(in int) bool { return d.n(in) == in-1 }

func pick[T any](d *draw, from ...T) T { return from[d.n(len(from))] }

func (d *draw) labels() map[string]string {
	if !d.chance(4) {
		return nil
	}
	return map[string]string{pick(d, "tier", "env"): pick(d, "*", "gold", "g*")}
}

func (d *draw) limit() int { return pick(d, 0, 0, 0, 0, 1, 2, -1) }

func (d *draw) policies() []policy.Policy {
	var all []policy.Policy
	for range 1 + d.n(3) {
		all = append(all, d.policy())
	}
	for i := range all { // names are unique, as in storage
		all[i].Name = string(rune('a' + i))
	}
	return all
}

func (d *draw) policy() policy.Policy {
	p := policy.Policy{
		Name: "extra", Entities: pick(d, []string{"*"}, []string{"e-1"}, nil), Groups: pick(d, nil, []string{"g"}),
		Operations: pick(d, nil, nil, []wire.Kind{"clone"}, []wire.Kind{"merge"}),
		Sources:    pick(d, []string{"*"}, []string{"p*"}, []string{"prod"}, nil), Targets: pick(d, []string{"*"}, []string{"staging"}, []string{"*ing"}),
		SourceLabels: d.labels(), TargetLabels: d.labels(),
		RequireAuthentication: d.chance(2), AllowCrossEngineOperations: !d.chance(4), EnableNetworkIsolation: d.chance(2), AuditOperations: d.chance(2),
		MaxOperationsPerHour: d.limit(), AllowedOperations: pick(d, []string{"*"}, []string{"*"}, []string{"clone"}, nil),
		MaxOperationsPerHourSource: d.limit(), MaxOperationsPerHourTarget: d.limit(), MaxOperationsPerHourMount: d.limit(),
		MaxConcurrent: d.limit(), MaxDuration: time.Duration(d.limit()), MaxBytes: int64(d.limit()), MaxRows: int64(d.limit()),
		RequireTLS: d.chance(4), AllowProtectedTarget: !d.chance(4), AllowCrossZone: !d.chance(4),
		AllowedHours:         pick(d, nil, nil, nil, []string{"00:00-24:00"}, []string{"mon 08:00-18:00"}, []string{"nonsense"}),
		AllowedHoursTimeZone: pick(d, "", "", "Europe/Berlin", "Nowhere/At_All"),
		Agents:               pick(d, nil, nil, []string{"a*"}), AgentLabels: d.labels(),
		Mask: pick(d, "", "", "m1", "m2"), UndecidedColumns: pick(d, "", "", "stop", "copy"), Preview: d.chance(2), CloneTTL: time.Duration(d.limit()),
	}
	if d.chance(3) {
		p.Approvals = &policy.Approvals{Count: 1 + d.n(2), Groups: []string{"g"}}
	}
	return p
}

// connections are the names of one database, which is of one engine.
func (d *draw) connections(name string) []policy.Connection {
	engine := pick(d, wire.EnginePostgres, wire.EnginePostgres, wire.EnginePostgres, wire.EngineMySQL)
	var all []policy.Connection
	for range 1 + d.n(3) {
		c := policy.Connection{
			Name: name, Engine: engine, Protected: d.chance(5), TLS: !d.chance(3), Zone: pick(d, "", "", "", "eu"),
		}
		if !d.chance(4) {
			c.Labels = map[string]string{"tier": pick(d, "gold", "tin"), "env": "g"}
		}
		all = append(all, c)
		name = pick(d, "alias", "p2", "thing")
	}
	return all
}

func (d *draw) withoutLabels(names []policy.Connection) []policy.Connection {
	names = slices.Clone(names)
	for i := range names {
		names[i].Labels = maps.Clone(names[i].Labels)
		for _, key := range []string{"tier", "env"} {
			if d.chance(2) {
				delete(names[i].Labels, key)
			}
		}
	}
	return names
}

func (d *draw) relabelled(names []policy.Connection) []policy.Connection {
	names = slices.Clone(names)
	for i := range names {
		names[i].Labels = map[string]string{"tier": pick(d, "gold", "tin", "*", ""), "env": pick(d, "g", "x")}
	}
	return names
}

func (d *draw) shuffled(names []policy.Connection) []policy.Connection {
	names = slices.Clone(names)
	for i := range names {
		j := i + d.n(len(names)-i)
		names[i], names[j] = names[j], names[i]
	}
	return names
}

func (d *draw) times() []time.Time {
	var times []time.Time
	for range d.n(4) {
		times = append(times, noon.Add(time.Duration(d.n(256)-128)*time.Minute))
	}
	return times
}

func (d *draw) request() policy.Request {
	r := policy.Request{
		Entity: pick(d, "e-1", "e-1", "e-1", "e-2", ""), Groups: pick(d, nil, []string{"g"}), Kind: pick(d, wire.KindClone, wire.KindClone, wire.KindMerge),
		Source: d.connections("prod"), Target: d.connections("staging"), ZonesInUse: d.chance(3), Isolated: !d.chance(5), Audited: !d.chance(5),
	}
	if d.chance(2) {
		r.History = &policy.History{Entity: d.times(), Source: d.times(), Target: d.times(), Mount: d.times(), Unfinished: d.n(3)}
	}
	if d.chance(2) {
		r.Estimates = &wire.Estimates{Rows: int64(d.n(3)), Bytes: int64(d.n(3))}
	}
	return r
}
