package policy_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/policy"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the golden files")

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// goldenCase is one file of testdata: policies, a request, and what was decided.
type goldenCase struct {
	About    string          `json:"about"`
	Policies []policy.Policy `json:"policies"`
	Request  policy.Request  `json:"request"`
	Decision json.RawMessage `json:"decision"`
}

func base() policy.Policy {
	return policy.Policy{
		Name: "developers", Version: 1, Entities: []string{"e-1"}, Groups: []string{"g-dev"},
		Sources: []string{"prod*"}, Targets: []string{"staging", "dev-*"},
		RequireAuthentication: true, EnableNetworkIsolation: true, AuditOperations: true,
		MaxOperationsPerHour: 5, AllowedOperations: []string{"clone", "backup"},
	}
}

func ask() policy.Request {
	return policy.Request{
		Entity: "e-1", Kind: wire.KindClone,
		Source:   []policy.Connection{{Name: "prod", Engine: wire.EnginePostgres}},
		Target:   []policy.Connection{{Name: "staging", Engine: wire.EnginePostgres}},
		Isolated: true, Audited: true, History: &policy.History{},
	}
}

func minutesAgo(minutes ...int) []time.Time {
	var times []time.Time
	for _, m := range minutes {
		times = append(times, noon.Add(-time.Duration(m)*time.Minute))
	}
	return times
}

// Each rule refuses with its own code and name, and the limits come back as
// obligations; the golden file holds the exact words.
func TestEvaluate_Golden(t *testing.T) {
	type change func(*policy.Policy, *policy.Request)
	cases := map[string]struct {
		about  string
		change change
		more   []policy.Policy
	}{
		"allowed":            {"a plain clone", func(*policy.Policy, *policy.Request) {}, nil},
		"no_entity":          {"nobody asks", func(_ *policy.Policy, r *policy.Request) { r.Entity = "" }, nil},
		"no_match":           {"another entity", func(_ *policy.Policy, r *policy.Request) { r.Entity = "e-2" }, nil},
		"by_group":           {"member of a group", func(_ *policy.Policy, r *policy.Request) { r.Entity, r.Groups = "e-2", []string{"g-dev"} }, nil},
		"source_glob_misses": {"a source no glob names", func(_ *policy.Policy, r *policy.Request) { r.Source[0].Name = "billing" }, nil},
		"kind_not_selected":  {"a kind the policy does not speak about", func(p *policy.Policy, r *policy.Request) { p.Operations, r.Kind = []wire.Kind{"clone"}, "merge" }, nil},
		"kind_not_allowed":   {"a kind the policy forbids", func(_ *policy.Policy, r *policy.Request) { r.Kind = "merge" }, nil},
		"cross_engine":       {"postgres to mysql", func(_ *policy.Policy, r *policy.Request) { r.Target[0].Engine = wire.EngineMySQL }, nil},
		"cross_engine_allowed": {"postgres to mysql, allowed", func(p *policy.Policy, r *policy.Request) {
			p.AllowCrossEngineOperations, r.Target[0].Engine = true, wire.EngineMySQL
		}, nil},
		"not_isolated":      {"no sandbox", func(_ *policy.Policy, r *policy.Request) { r.Isolated = false }, nil},
		"not_audited":       {"no audit device", func(_ *policy.Policy, r *policy.Request) { r.Audited = false }, nil},
		"protected":         {"protected target", func(_ *policy.Policy, r *policy.Request) { r.Target[0].Protected = true }, nil},
		"protected_allowed": {"protected target, lifted", func(p *policy.Policy, r *policy.Request) { p.AllowProtectedTarget, r.Target[0].Protected = true, true }, nil},
		"protected_by_another_name": {"the same database under a protected name", func(_ *policy.Policy, r *policy.Request) {
			r.Target = append(r.Target, policy.Connection{Name: "live", Engine: wire.EnginePostgres, Protected: true})
		}, nil},
		"tls_missing": {"target without TLS", func(p *policy.Policy, r *policy.Request) { p.RequireTLS, r.Source[0].TLS = true, true }, nil},
		"tls": {"both with TLS", func(p *policy.Policy, r *policy.Request) {
			p.RequireTLS, r.Source[0].TLS, r.Target[0].TLS = true, true, true
		}, nil},
		"sixth_in_an_hour": {"five in the last hour", func(_ *policy.Policy, r *policy.Request) { r.History.Entity = minutesAgo(50, 3, 40, 20, 10, 70) }, nil},
		"fifth_in_an_hour": {"four in the last hour", func(_ *policy.Policy, r *policy.Request) { r.History.Entity = minutesAgo(50, 3, 40, 20, 60, 70) }, nil},
		"clock_went_back":  {"times after now", func(_ *policy.Policy, r *policy.Request) { r.History.Entity = minutesAgo(-100, -90, -80, -70, -60) }, nil},
		"per_source": {"limit of the source", func(p *policy.Policy, r *policy.Request) {
			p.MaxOperationsPerHourSource, r.History.Source = 1, minutesAgo(30)
		}, nil},
		"per_target": {"limit of the target", func(p *policy.Policy, r *policy.Request) {
			p.MaxOperationsPerHourTarget, r.History.Target = 1, minutesAgo(30)
		}, nil},
		"per_mount": {"limit of the mount", func(p *policy.Policy, r *policy.Request) {
			p.MaxOperationsPerHourMount, r.History.Mount = 1, minutesAgo(30)
		}, nil},
		"concurrent":       {"two unfinished", func(p *policy.Policy, r *policy.Request) { p.MaxConcurrent, r.History.Unfinished = 2, 2 }, nil},
		"already_admitted": {"rates do not count twice", func(p *policy.Policy, r *policy.Request) { p.MaxConcurrent, r.History = 1, nil }, nil},
		"too_many_bytes": {"estimate above the limit", func(p *policy.Policy, r *policy.Request) {
			p.MaxBytes, r.Estimates = 1000, &wire.Estimates{Bytes: 1001}
		}, nil},
		"too_many_rows": {"estimate above the limit", func(p *policy.Policy, r *policy.Request) { p.MaxRows, r.Estimates = 10, &wire.Estimates{Rows: 11} }, nil},
		"unclassified":  {"a policy for others mentions a label", func(*policy.Policy, *policy.Request) {}, []policy.Policy{{Name: "other", Entities: []string{"e-9"}, Sources: []string{"*"}, Targets: []string{"*"}, SourceLabels: map[string]string{"tier": "gold"}}}},
		"label_differs": {"label with another value", func(p *policy.Policy, r *policy.Request) {
			p.SourceLabels = map[string]string{"tier": "gold*"}
			r.Source[0].Labels, r.Target[0].Labels = map[string]string{"tier": "silver"}, map[string]string{"tier": "x"}
		}, nil},
		"label_matches": {"label matches by glob", func(p *policy.Policy, r *policy.Request) {
			p.SourceLabels = map[string]string{"tier": "gold*"}
			r.Source[0].Labels, r.Target[0].Labels = map[string]string{"tier": "golden"}, map[string]string{"tier": "x"}
		}, nil},
		"strictest_limits": {"two policies, the smaller limits", func(p *policy.Policy, _ *policy.Request) {
			p.MaxBytes, p.MaxRows, p.MaxDuration = 100, 0, time.Hour
		}, []policy.Policy{{Name: "all", Entities: []string{"*"}, Sources: []string{"*"}, Targets: []string{"*"}, AllowedOperations: []string{"*"}, MaxBytes: 50, MaxRows: 7, MaxDuration: 2 * time.Hour}}},
		"prohibition_wins": {
			"a policy that permits nothing", func(*policy.Policy, *policy.Request) {},
			[]policy.Policy{{Name: "freeze", Entities: []string{"*"}, Sources: []string{"*"}, Targets: []string{"*"}}},
		},
		"hard_refusal_before_rate": {
			"waiting would not help", func(_ *policy.Policy, r *policy.Request) { r.History.Entity = minutesAgo(1, 2, 3, 4, 5) },
			[]policy.Policy{{Name: "zz-freeze", Entities: []string{"*"}, Sources: []string{"*"}, Targets: []string{"*"}}},
		},
		"approvals": {"each policy that asks contributes its need", func(p *policy.Policy, _ *policy.Request) {
			p.Approvals = &policy.Approvals{Count: 2, Groups: []string{"g-leads"}, TTL: time.Hour}
		}, []policy.Policy{{
			Name: "audit", Entities: []string{"*"}, Sources: []string{"*"}, Targets: []string{"*"}, AllowedOperations: []string{"*"},
			Approvals: &policy.Approvals{Count: 1, Groups: []string{"g-audit"}},
		}}},
		"only_by_another_name": {"a policy for another name of the target does not permit", func(_ *policy.Policy, r *policy.Request) {
			r.Target = []policy.Connection{{Name: "alias", Engine: wire.EnginePostgres}, r.Target[0]}
		}, nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			p, r := base(), ask()
			c.change(&p, &r)
			all := append([]policy.Policy{p}, c.more...)
			got, err := json.MarshalIndent(policy.Evaluate(all, r, noon), "", "  ")
			require.NoError(t, err)
			path := filepath.Join("testdata", "decisions", name+".json")
			if *update {
				content, err := json.MarshalIndent(goldenCase{c.about, all, r, got}, "", "  ")
				require.NoError(t, err)
				require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
				require.NoError(t, os.WriteFile(path, append(content, '\n'), 0o644))
				return
			}
			content, err := os.ReadFile(path)
			require.NoError(t, err)
			var golden goldenCase
			require.NoError(t, json.Unmarshal(content, &golden))
			require.JSONEq(t, string(golden.Decision), string(got))
		})
	}
}

// Each rule refuses with exactly its code and name: the golden files cannot hide
// a wrong one.
func TestEvaluate_Rules(t *testing.T) {
	for name, want := range map[string]string{
		"allowed": "/", "no_entity": "no_identity/require_authentication", "no_match": "denied/default_deny", "by_group": "/",
		"kind_not_selected": "denied/default_deny", "kind_not_allowed": "denied/allowed_operations",
		"cross_engine": "denied/allow_cross_engine_operations", "cross_engine_allowed": "/",
		"not_isolated": "denied/enable_network_isolation", "not_audited": "denied/audit_operations",
		"protected": "protected_target/allow_protected_target", "protected_allowed": "/",
		"protected_by_another_name": "protected_target/allow_protected_target",
		"tls_missing":               "denied/require_tls", "tls": "/", "sixth_in_an_hour": "rate_limited/max_operations_per_hour",
		"fifth_in_an_hour": "/", "clock_went_back": "rate_limited/max_operations_per_hour",
		"per_source": "rate_limited/max_operations_per_hour_source", "per_target": "rate_limited/max_operations_per_hour_target",
		"per_mount": "rate_limited/max_operations_per_hour_mount", "concurrent": "rate_limited/max_concurrent",
		"already_admitted": "/", "too_many_bytes": "limit_exceeded/max_bytes", "too_many_rows": "limit_exceeded/max_rows",
		"unclassified": "unclassified/labels", "label_differs": "denied/default_deny", "label_matches": "/",
		"approvals": "/", "strictest_limits": "/", "prohibition_wins": "denied/allowed_operations", "hard_refusal_before_rate": "denied/allowed_operations",
		"only_by_another_name": "denied/default_deny", "source_glob_misses": "denied/default_deny",
	} {
		content, err := os.ReadFile(filepath.Join("testdata", "decisions", name+".json"))
		require.NoError(t, err)
		var golden struct {
			Decision wire.Decision `json:"decision"`
		}
		require.NoError(t, json.Unmarshal(content, &golden))
		d := golden.Decision
		require.Equal(t, want, fmt.Sprintf("%s/%s", d.Code, d.Rule), name)
		require.Equal(t, want == "/", d.Allowed, name)
	}
}

// The sixth request may come when the oldest of the five leaves the window.
func TestEvaluate_RetryAt(t *testing.T) {
	r := ask()
	r.History.Entity = minutesAgo(50, 3, 40, 20, 10, 70)
	d := policy.Evaluate([]policy.Policy{base()}, r, noon)
	require.Equal(t, noon.Add(10*time.Minute), d.RetryAt)
	require.True(t, policy.Evaluate([]policy.Policy{base()}, r, d.RetryAt).Allowed)
	require.False(t, policy.Evaluate([]policy.Policy{base()}, r, d.RetryAt.Add(-time.Nanosecond)).Allowed)
}

func TestValidate(t *testing.T) {
	require.NoError(t, base().Validate())
	for field, change := range map[string]func(*policy.Policy){
		"entities":                func(p *policy.Policy) { p.Entities, p.Groups = nil, nil },
		"groups":                  func(p *policy.Policy) { p.Groups = []string{"*"} },
		"operations":              func(p *policy.Policy) { p.Operations = []wire.Kind{"copy"} },
		"sources":                 func(p *policy.Policy) { p.Sources = nil },
		"targets":                 func(p *policy.Policy) { p.Targets = []string{""} },
		"target_labels":           func(p *policy.Policy) { p.TargetLabels = map[string]string{"": "x"} },
		"allowed_operations":      func(p *policy.Policy) { p.AllowedOperations = []string{"clon"} },
		"max_operations_per_hour": func(p *policy.Policy) { p.MaxOperationsPerHour = -1 },
		"max_rows":                func(p *policy.Policy) { p.MaxRows = -1 },
		"approvals_count":         func(p *policy.Policy) { p.Approvals = &policy.Approvals{Groups: []string{"g"}} },
		"approvals_groups":        func(p *policy.Policy) { p.Approvals = &policy.Approvals{Count: 1} },
		"approvals_ttl":           func(p *policy.Policy) { p.Approvals = &policy.Approvals{Count: 1, Groups: []string{"g"}, TTL: -1} },
	} {
		p := base()
		change(&p)
		err := p.Validate()
		require.Error(t, err, field)
		require.Contains(t, err.Error(), fmt.Sprintf("field=%q", field))
	}
}

// Evaluation never panics, and no further policy turns a refusal into a
// permission once one matches the request as asked.
func FuzzEvaluate(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("a policy, another one and a request are drawn from these bytes, whatever they are"))
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 255, 254, 253})
	f.Fuzz(func(t *testing.T, content []byte) { checkMonotonic(t, &draw{content}) })
}

// The same over many random sets, so that plain go test looks further than the
// seeds of the fuzzer.
func TestEvaluate_AddingAPolicyNeverPermits(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	refused, allowed := 0, 0
	for range 20000 {
		content := make([]byte, 400)
		for i := range content {
			content[i] = byte(random.UintN(256))
		}
		if checkMonotonic(t, &draw{content}) {
			allowed++
		} else {
			refused++
		}
	}
	require.Greater(t, refused, 1000)
	require.Greater(t, allowed, 500, "the sets never allow anything, so nothing was tested")
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

func (d *draw) limit() int { return pick(d, 0, 0, 0, 1, 2, -1) }

func (d *draw) policy() policy.Policy {
	return policy.Policy{
		Name: pick(d, "a", "b", "c", "d"), Entities: pick(d, []string{"*"}, []string{"e-1"}, nil), Groups: pick(d, nil, []string{"g"}),
		Operations: pick(d, nil, nil, []wire.Kind{"clone"}, []wire.Kind{"merge"}),
		Sources:    pick(d, []string{"*"}, []string{"p*"}, []string{"prod"}, nil), Targets: pick(d, []string{"*"}, []string{"staging"}, []string{"*ing"}),
		SourceLabels: d.labels(), TargetLabels: d.labels(),
		RequireAuthentication: d.chance(2), AllowCrossEngineOperations: !d.chance(4), EnableNetworkIsolation: d.chance(2), AuditOperations: d.chance(2),
		MaxOperationsPerHour: d.limit(), AllowedOperations: pick(d, []string{"*"}, []string{"*"}, []string{"clone"}, nil),
		MaxOperationsPerHourSource: d.limit(), MaxOperationsPerHourTarget: d.limit(), MaxOperationsPerHourMount: d.limit(),
		MaxConcurrent: d.limit(), MaxDuration: time.Duration(d.limit()), MaxBytes: int64(d.limit()), MaxRows: int64(d.limit()),
		RequireTLS: d.chance(4), AllowProtectedTarget: !d.chance(4),
	}
}

func (d *draw) connections(name string) []policy.Connection {
	var all []policy.Connection
	for range 1 + d.n(2) {
		c := policy.Connection{
			Name: name, Engine: pick(d, wire.EnginePostgres, wire.EnginePostgres, wire.EngineMySQL),
			Protected: d.chance(5), TLS: !d.chance(3),
		}
		if !d.chance(3) {
			c.Labels = map[string]string{"tier": pick(d, "gold", "tin"), "env": "g"}
		}
		all = append(all, c)
		name = pick(d, "alias", "p2", "thing")
	}
	return all
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
		Source: d.connections("prod"), Target: d.connections("staging"), Isolated: !d.chance(5), Audited: !d.chance(5),
	}
	if d.chance(2) {
		r.History = &policy.History{Entity: d.times(), Source: d.times(), Target: d.times(), Mount: d.times(), Unfinished: d.n(3)}
	}
	if d.chance(2) {
		r.Estimates = &wire.Estimates{Rows: int64(d.n(3)), Bytes: int64(d.n(3))}
	}
	return r
}

func checkMonotonic(t *testing.T, d *draw) (allowed bool) {
	t.Helper()
	r := d.request()
	var policies []policy.Policy
	for range 1 + d.n(3) {
		policies = append(policies, d.policy())
	}
	extra := d.policy()
	before := policy.Evaluate(policies, r, noon)
	checkDecision(t, before, r)
	after := policy.Evaluate(append(policies[:len(policies):len(policies)], extra), r, noon)
	checkDecision(t, after, r)
	if !before.Allowed && before.Rule != policy.RuleDefaultDeny && after.Allowed {
		t.Fatalf("adding policy %+v turned %+v into %+v", extra, before, after)
	}
	if before.Allowed && after.Allowed {
		if before.MaxBytes > 0 && extra.MaxBytes >= 0 && (after.MaxBytes == 0 || after.MaxBytes > before.MaxBytes) {
			t.Fatalf("adding policy %+v loosened max_bytes", extra)
		}
		if before.RequireTLS && !after.RequireTLS {
			t.Fatalf("adding policy %+v loosened require_tls", extra)
		}
	}
	return before.Allowed
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
