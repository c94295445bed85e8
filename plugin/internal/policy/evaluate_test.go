package policy_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
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
		"unclassified_alias": {"another name of the target has no label that a policy mentions", func(p *policy.Policy, r *policy.Request) {
			p.TargetLabels = map[string]string{"tier": "*"}
			r.Source[0].Labels, r.Target[0].Labels = map[string]string{"tier": "x"}, map[string]string{"tier": "x"}
			r.Target = append(r.Target, policy.Connection{Name: "live", Engine: wire.EnginePostgres})
		}, nil},
		"cross_zone": {"source and target in different zones", func(_ *policy.Policy, r *policy.Request) {
			r.ZonesInUse, r.Source[0].Zone, r.Target[0].Zone = true, "eu", "us"
		}, nil},
		"cross_zone_allowed": {"different zones, allowed", func(p *policy.Policy, r *policy.Request) {
			p.AllowCrossZone, r.ZonesInUse, r.Source[0].Zone, r.Target[0].Zone = true, true, "eu", "us"
		}, nil},
		"zone_missing": {"no zone, where others have one", func(_ *policy.Policy, r *policy.Request) { r.ZonesInUse = true }, nil},
		"zone_of_another_name": {"another name of the target is in another zone", func(_ *policy.Policy, r *policy.Request) {
			r.ZonesInUse, r.Source[0].Zone, r.Target[0].Zone = true, "eu", "eu"
			r.Target = append(r.Target, policy.Connection{Name: "live", Engine: wire.EnginePostgres, Zone: "us"})
		}, nil},
		"outside_hours": {"noon in UTC is 21:00 in Tokyo", func(p *policy.Policy, _ *policy.Request) {
			p.AllowedHours, p.AllowedHoursTimeZone = []string{"mon-fri 08:00-18:00", "sat 22:00-06:00"}, "Asia/Tokyo"
		}, nil},
		"within_hours": {"noon in UTC is 13:00 in Berlin", func(p *policy.Policy, _ *policy.Request) {
			p.AllowedHours, p.AllowedHoursTimeZone = []string{"mon-fri 13:00-14:00"}, "Europe/Berlin"
		}, nil},
		"hours_on_the_plan": {"hours hold again on the plan", func(p *policy.Policy, r *policy.Request) {
			p.AllowedHours, r.History, r.Estimates = []string{"13:00-14:00"}, nil, &wire.Estimates{}
		}, nil},
		"unreadable_hours": {"hours that nobody can read contain nothing", func(p *policy.Policy, _ *policy.Request) { p.AllowedHours = []string{"always"} }, nil},
		"obligations": {"two policies ask for what each of them asks for", func(p *policy.Policy, _ *policy.Request) {
			p.Agents, p.Mask, p.Preview, p.CloneTTL = []string{"db*"}, "personal", true, 8*time.Hour
		}, []policy.Policy{{
			Name: "all", Entities: []string{"*"}, Sources: []string{"*"}, Targets: []string{"*"}, AllowedOperations: []string{"*"},
			AgentLabels: map[string]string{"site": "eu-*"}, Mask: "cards", UndecidedColumns: "copy", CloneTTL: 24 * time.Hour,
		}}},
		"preview_by_all":        {"rows may be previewed when every policy says so", func(p *policy.Policy, _ *policy.Request) { p.Preview = true }, nil},
		"clone_ttl_of_a_backup": {"a backup is no clone", func(p *policy.Policy, r *policy.Request) { p.CloneTTL, r.Kind = time.Hour, "backup" }, nil},
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
		"unclassified_alias": "unclassified/labels",
		"cross_zone":         "denied/allow_cross_zone", "cross_zone_allowed": "/", "zone_missing": "denied/allow_cross_zone",
		"zone_of_another_name": "denied/allow_cross_zone", "outside_hours": "denied/allowed_hours", "within_hours": "/",
		"hours_on_the_plan": "denied/allowed_hours", "unreadable_hours": "denied/allowed_hours",
		"obligations": "/", "preview_by_all": "/", "clone_ttl_of_a_backup": "/",
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

// Of several limits the strictest is told, whatever the policies are called, with
// the time that satisfies all of them.
func TestEvaluate_StrictestLimitIsTold(t *testing.T) {
	r := ask()
	r.History.Entity = minutesAgo(50, 40, 30, 20, 10)
	all := []policy.Policy{base(), base(), base()}
	for i, limit := range []int{5, 2, 4} {
		all[i].Name, all[i].MaxOperationsPerHour = fmt.Sprintf("p%d", i), limit
	}
	d := policy.Evaluate(all, r, noon)
	require.Equal(t, "p1", d.Policy)
	require.Equal(t, noon.Add(40*time.Minute), d.RetryAt)
	require.True(t, policy.Evaluate(all, r, d.RetryAt).Allowed)

	for i, limit := range []int64{500, 20, 400} {
		all[i].MaxBytes = limit
	}
	r.Estimates = &wire.Estimates{Bytes: 1000}
	d = policy.Evaluate(all, r, noon)
	require.Equal(t, "p1", d.Policy)
	require.Equal(t, policy.RuleMaxBytes, d.Rule)
}

func TestValidate(t *testing.T) {
	require.NoError(t, base().Validate())
	for field, change := range map[string]func(*policy.Policy){
		"entities":                 func(p *policy.Policy) { p.Entities, p.Groups = nil, nil },
		"groups":                   func(p *policy.Policy) { p.Groups = []string{"*"} },
		"operations":               func(p *policy.Policy) { p.Operations = []wire.Kind{"copy"} },
		"sources":                  func(p *policy.Policy) { p.Sources = nil },
		"targets":                  func(p *policy.Policy) { p.Targets = []string{""} },
		"target_labels":            func(p *policy.Policy) { p.TargetLabels = map[string]string{"": "x"} },
		"allowed_operations":       func(p *policy.Policy) { p.AllowedOperations = []string{"clon"} },
		"max_operations_per_hour":  func(p *policy.Policy) { p.MaxOperationsPerHour = -1 },
		"max_rows":                 func(p *policy.Policy) { p.MaxRows = -1 },
		"require_authentication":   func(p *policy.Policy) { p.RequireAuthentication = false },
		"enable_network_isolation": func(p *policy.Policy) { p.EnableNetworkIsolation, p.Preset = false, "balanced" },
		"preset":                   func(p *policy.Policy) { p.Preset = "paranoid" },
		"allowed_hours":            func(p *policy.Policy) { p.AllowedHours = []string{"9 to 5"} },
		"allowed_hours_time_zone":  func(p *policy.Policy) { p.AllowedHours, p.AllowedHoursTimeZone = []string{"09:00-17:00"}, "CEST" },
		"agents":                   func(p *policy.Policy) { p.Agents = []string{""} },
		"agent_labels":             func(p *policy.Policy) { p.AgentLabels = map[string]string{"": "x"} },
		"undecided_columns":        func(p *policy.Policy) { p.UndecidedColumns = "ignore" },
		"clone_ttl":                func(p *policy.Policy) { p.CloneTTL = -1 },
		"approvals_count":          func(p *policy.Policy) { p.Approvals = &policy.Approvals{Groups: []string{"g"}} },
		"approvals_groups":         func(p *policy.Policy) { p.Approvals = &policy.Approvals{Count: 1} },
		"approvals_ttl":            func(p *policy.Policy) { p.Approvals = &policy.Approvals{Count: 1, Groups: []string{"g"}, TTL: -1} },
	} {
		p := base()
		change(&p)
		err := p.Validate()
		require.Error(t, err, field)
		require.Contains(t, err.Error(), fmt.Sprintf("field=%q", field))
	}
}
