package plugin

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// Approvals are three plain fields that keep their value, go away with a count of
// 0, and name the wrong one; what they ask for stands in the decision.
func TestPolicies_Approvals(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	read := func() []any {
		data := m.must(m.read("", "policies/dev"))
		return []any{data["approvals_count"], data["approvals_groups"], data["approvals_ttl"]}
	}
	none := []any{0, []any{}, 0}
	require.Equal(t, none, read())
	m.must(m.write("", "policies/dev", "approvals_count", 2, "approvals_groups", "g-1,g-2", "approvals_ttl", "4h"))
	m.must(m.write("", "policies/dev", "require_tls", true))
	m.restart()
	require.Equal(t, []any{2, []string{"g-1", "g-2"}, int64(4 * wholeHour)}, read())

	require.Equal(t, []wire.ApprovalNeed{{Policy: "dev", Count: 2, Groups: []string{"g-1", "g-2"}, TTL: 4 * time.Hour}}, m.clone().Decision.Approvals)

	for field, fields := range map[string][]any{
		"approvals_groups": {"approvals_groups", ""},
		"approvals_ttl":    {"approvals_ttl", "-5s"},
		"approvals_count":  {"approvals_count", -1},
	} {
		resp, err := m.write("", "policies/dev", fields...)
		require.Equal(t, field, m.refused(wire.CodeInvalid, resp, err).Field)
	}
	m.must(m.write("", "policies/dev", "approvals_count", 0))
	require.Equal(t, none, read())
	m.clone()
}

// What a policy asks for and this version cannot do is refused, at the request and
// on the plan, with the rule and the reason; what it merely permits is not.
func TestPolicies_ObligationsThatCannotBeMetRefuse(t *testing.T) {
	t.Parallel()
	for rule, value := range map[string]any{"mask": "personal", "undecided_columns": "stop", "clone_ttl": "8h"} {
		m := newDesk(t)
		op := m.clone()
		m.must(m.write("", "policies/dev", rule, value))
		resp, err := m.write(alice, "clone/prod/staging")
		e := m.refused(wire.CodeUnsupported, resp, err)
		require.Equal(t, rule, e.Rule)
		require.Contains(t, e.Reason, "not built yet")

		require.Len(t, m.poll("a1").Claims, 1)
		text, _ := planText()
		answer := into[wire.PlanResponse](m, m.must(m.sendPlan("a1", op.ID, "1", text)))
		require.Equal(t, wire.StateDenied, answer.State)
		require.Equal(t, rule, answer.Decision.Rule)
	}
	m := newDesk(t)
	m.must(m.write("", "policies/dev", "preview", true, "undecided_columns", "copy"))
	require.True(t, m.clone().Decision.Preview)
}

// A read answers every field that can be written, in the unit it is written in, so
// that what was read can be written back.
func TestPolicies_ReadIsWritable(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.must(m.write("", "policies/full", "entities", alice, "groups", "g-1", "operations", "clone,backup", "sources", "p*", "targets", "s*",
		"source_labels", "tier=gold", "target_labels", "tier=*", "preset", "maximum", "max_operations_per_hour_source", 3,
		"max_concurrent", 2, "max_duration", "90m", "max_bytes", 5, "max_rows", 6, "allowed_hours", "mon-fri 08:00-18:00,sat 22:00-06:00",
		"allowed_hours_time_zone", "Europe/Berlin", "require_tls", true, "allow_protected_target", true, "allow_cross_zone", true,
		"agents", "db*", "agent_labels", "site=eu-*", "approvals_count", 1, "approvals_groups", "g-2", "approvals_ttl", "1h",
		"mask", "personal", "undecided_columns", "copy", "preview", true, "clone_ttl", "24h"))
	first := m.must(m.read("", "policies/full"))
	require.Equal(t, []any{"mon-fri 08:00-18:00", "sat 22:00-06:00"}, first["allowed_hours"])
	require.EqualValues(t, 5400, first["max_duration"])
	require.EqualValues(t, 86400, first["clone_ttl"])
	require.EqualValues(t, 100, first["score"])
	require.Equal(t, "maximum", first["score_band"])
	for name := range policyFields() {
		require.Contains(t, first, name)
	}
	m.must(m.handle("", logical.DeleteOperation, "policies/full"))
	var fields []any
	for name, value := range first {
		if name != "score" && name != "score_band" && name != "version" && name != "name" {
			fields = append(fields, name, value)
		}
	}
	m.must(m.write("", "policies/full", fields...))
	require.Equal(t, first, m.must(m.read("", "policies/full")))
}

// The empty text clears a map as it clears a list, on every path that has one: so the
// vault command sends "labels=".
func TestFields_EmptyTextClears(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	for path, fields := range map[string]map[string]string{
		"policies/dev": {
			"source_labels": "tier=gold", "target_labels": "tier=dev", "agent_labels": "site=eu", "agents": "a*", "operations": "clone",
			"allowed_hours": "00:00-24:00", "allowed_operations": "clone",
		},
		"connections/prod": {"labels": "tier=gold", "purposes": "inspect=i,read=r", "agents": "a*"},
		"agents/a1":        {"labels": "site=eu"},
	} {
		for field, value := range fields {
			m.must(m.write("", path, field, value))
			require.NotEmpty(t, m.must(m.read("", path))[field], "%s %s", path, field)
			m.must(m.write("", path, field, ""))
			data := m.must(m.read("", path))
			require.Contains(t, data, field, path)
			require.Empty(t, data[field], "%s %s", path, field)
		}
	}
	// What is no map is refused as before, and stays.
	m.must(m.write("", "connections/prod", "labels", "tier=gold"))
	_, err := m.write("", "connections/prod", "labels", "gold")
	require.Error(t, err)
	require.Equal(t, map[string]any{"tier": "gold"}, m.must(m.read("", "connections/prod"))["labels"])
}

// Every map in the API is one of those that the empty text clears.
func TestFields_MapsAreKVPairs(t *testing.T) {
	t.Parallel()
	for _, path := range newBackend(DefaultVersion, time.Now, systemUptime()).paths() {
		for name, schema := range path.Fields {
			require.NotEqual(t, framework.TypeMap, schema.Type, "%s of %s: clearMaps does not know it", name, path.Pattern)
		}
	}
}

// A preset fills the rules that are not given, needs who and what, and is the only
// way to leave authentication or isolation out, which lifts nothing all the same.
func TestPolicies_Presets(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	for preset, want := range map[string][]any{
		"maximum":  {10.0, false, true, true, "100", "maximum"},
		"balanced": {50.0, true, true, true, "80", "balanced"},
		"minimum":  {999.0, true, false, false, "20", "minimum"},
	} {
		resp, err := m.write("", "policies/"+preset, "preset", preset)
		require.Equal(t, "entities", m.refused(wire.CodeInvalid, resp, err).Field)
		resp, err = m.write("", "policies/"+preset, "preset", preset, "entities", alice, "sources", "prod")
		require.Equal(t, "targets", m.refused(wire.CodeInvalid, resp, err).Field)
		m.must(m.write("", "policies/"+preset, "preset", preset, "entities", alice, "sources", "prod", "targets", "staging"))
		data := m.must(m.read("", "policies/"+preset))
		require.Equal(t, want, []any{
			data["max_operations_per_hour"], data["allow_cross_engine_operations"], data["require_authentication"],
			data["enable_network_isolation"], fmt.Sprint(data["score"]), data["score_band"],
		})
		require.Equal(t, preset, data["preset"])
	}
	m.must(m.write("", "policies/mine", "preset", "balanced", "entities", alice, "sources", "prod", "targets", "staging", "max_operations_per_hour", 7))
	m.must(m.write("", "policies/mine", "require_tls", false))
	data := m.must(m.read("", "policies/mine"))
	require.EqualValues(t, 7, data["max_operations_per_hour"], "given beside the preset, kept after it")
	require.EqualValues(t, 85, data["score"])

	m.must(m.write("", "policies/maximum", "preset", ""))
	data = m.must(m.read("", "policies/maximum"))
	require.Empty(t, data["preset"])
	require.Equal(t, []any{10.0, false, "100"}, []any{data["max_operations_per_hour"], data["allow_cross_engine_operations"], fmt.Sprint(data["score"])},
		"without its preset a policy keeps the rules")

	for _, field := range []string{"require_authentication", "enable_network_isolation"} {
		for _, name := range []string{"mine", "dev"} {
			resp, err := m.write("", "policies/"+name, field, false)
			e := m.refused(wire.CodeInvalid, resp, err)
			require.Equal(t, field, e.Field)
			require.Contains(t, e.Reason, "preset=minimum")
		}
	}
	resp, err := m.write("", "policies/dev", "preset", "paranoid")
	require.Equal(t, "preset", m.refused(wire.CodeInvalid, resp, err).Field)

	// Only minimum is left: still nobody without an identity.
	for _, name := range []string{"dev", "mine", "maximum", "balanced"} {
		m.must(m.handle("", logical.DeleteOperation, "policies/"+name))
	}
	resp, err = m.write("", "clone/prod/staging")
	m.refused(wire.CodeNoIdentity, resp, err)
	m.clone()
}

// Hours are those of Vault's clock in the zone of the policy, at the request and
// again on the plan.
func TestPolicies_AllowedHours(t *testing.T) {
	t.Parallel()
	m := newDesk(t) // Tuesday, 12:00 UTC
	m.must(m.write("", "policies/dev", "allowed_hours", "mon-fri 13:00-14:00", "allowed_hours_time_zone", "Europe/Berlin"))
	op := m.clone()
	require.Len(t, m.poll("a1").Claims, 1)
	m.clock.pass(time.Hour)
	resp, err := m.write(alice, "clone/prod/staging")
	e := m.refused(wire.CodeDenied, resp, err)
	require.Equal(t, "allowed_hours", e.Rule)
	require.True(t, e.RetryAt.Equal(time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)), "%v", e.RetryAt)
	text, _ := planText()
	answer := into[wire.PlanResponse](m, m.must(m.sendPlan("a1", op.ID, "1", text)))
	require.Equal(t, wire.StateDenied, answer.State)
	require.Equal(t, "allowed_hours", answer.Decision.Rule)
	m.clock.pass(23 * time.Hour)
	m.clone()
	for field, value := range map[string]any{"allowed_hours": "9-5", "allowed_hours_time_zone": "CEST"} {
		resp, err := m.write("", "policies/dev", field, value)
		require.Equal(t, field, m.refused(wire.CodeInvalid, resp, err).Field)
	}
}

// An agent that a policy does not name, or that lacks the label, is not given the
// operation, whatever it asks; the plan is decided with the rule as it is then.
func TestPolicies_Agents(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.must(m.write("", "agents/a1", "labels", "site=eu-1"))
	m.must(m.write("", "policies/dev", "agents", "a*", "agent_labels", "site=eu-*"))
	op := m.clone()
	require.Empty(t, m.poll("a2").Claims)
	require.Len(t, m.poll("a1").Claims, 1)

	m.must(m.write("", "policies/dev", "agents", "a2", "agent_labels", map[string]any{}))
	text, _ := planText()
	answer := into[wire.PlanResponse](m, m.must(m.sendPlan("a1", op.ID, "1", text)))
	require.Equal(t, wire.StateQueued, answer.State)
	require.Nil(t, answer.Claim)
	require.Empty(t, m.poll("a1").Claims)
	claims := m.poll("a2").Claims
	require.Len(t, claims, 1)
	require.Equal(t, wire.PhaseRunning, claims[0].Phase)
}

// Between zones nothing moves unless a policy says so, and where zones are in use
// a connection without one is in none of them.
func TestPolicies_CrossZone(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	ask := func() wire.Error {
		t.Helper()
		resp, err := m.write(alice, "clone/prod/staging")
		e := m.refused(wire.CodeDenied, resp, err)
		require.Equal(t, "allow_cross_zone", e.Rule)
		return e
	}
	m.must(m.write("", "connections/prod", "zone", "eu"))
	require.Contains(t, ask().Reason, "staging has no zone")
	m.must(m.write("", "connections/staging", "zone", "us"))
	require.Contains(t, ask().Reason, "zone us")
	m.must(m.write("", "policies/dev", "allow_cross_zone", true))
	m.clone()
	m.must(m.write("", "policies/dev", "allow_cross_zone", false))
	m.must(m.write("", "connections/staging", "zone", "eu"))
	m.clone()
}

// Operations under another name of a database count in its windows: by its
// server's own word at the request, also while no inspection has seen either.
func TestPolicies_RateWindowsJoinNames(t *testing.T) {
	t.Parallel()
	for side, limit := range map[string]string{"prod": "max_operations_per_hour_source", "staging": "max_operations_per_hour_target"} {
		m := newDesk(t)
		other := side + "2"
		servers := map[string]string{"prod": "1001", "staging": "1002"}
		servers[other] = servers[side]
		for name, server := range servers {
			m.db.identify(name, wire.ServerIdentity{Engine: wire.EnginePostgres, Server: server})
		}
		m.db.connect(other, "c3", wire.Endpoint{Engine: wire.EnginePostgres, Host: "elsewhere", Port: 5432, Database: "shop", SSLMode: "verify-full"})
		m.must(m.write("", "connections/"+other, "purposes", "inspect=i,read=r,write=w", "labels", "tier=x"))
		m.must(m.write("", "policies/dev", "sources", "prod*", "targets", "staging*", limit, 1))
		m.clone()
		path := strings.Replace("clone/prod/staging", side, other, 1)
		resp, err := m.write(alice, path)
		require.Equal(t, limit, m.refused(wire.CodeRateLimited, resp, err).Rule)
		m.restart()
		resp, err = m.write(alice, path)
		require.Equal(t, limit, m.refused(wire.CodeRateLimited, resp, err).Rule)
	}
}

// A name that nobody has used yet protects its database under every other name:
// its server is asked. One that gives no answer delays no second request, and is
// asked again a minute later and under another configuration.
func TestPolicies_NamesNobodyHasUsed(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.db.identify("staging", wire.ServerIdentity{Engine: wire.EnginePostgres, Server: "1002"})
	m.db.connect("live", "c3", wire.Endpoint{Engine: wire.EnginePostgres, Host: "elsewhere", Port: 5432, Database: "shop", SSLMode: "verify-full"})
	m.must(m.write("", "connections/live", "labels", "tier=gold", "protected", true))
	op := m.clone()
	m.db.identify("live", wire.ServerIdentity{Engine: wire.EnginePostgres, Server: "1002"})
	m.clone() // not asked again so soon
	m.clock.pass(time.Minute)
	resp, err := m.write(alice, "clone/prod/staging")
	require.Contains(t, m.refused(wire.CodeProtectedTarget, resp, err).Reason, "live")

	// What was admitted before is refused by its plan, also by a new instance.
	m.restart()
	require.Equal(t, op.ID, m.pollWith("a1", 1, "1").Claims[0].OperationID)
	text, _ := planText()
	answer := into[wire.PlanResponse](m, m.must(m.sendPlan("a1", op.ID, "1", text)))
	require.Equal(t, wire.CodeProtectedTarget, answer.Decision.Code)

	m.db.set(func(f *fakeAccounts) {
		f.identities["live"], f.configs["live"] = wire.ServerIdentity{Engine: wire.EnginePostgres, Server: "1003"}, "c4"
	})
	m.clone()
}

// A Put that was made but not confirmed counts: the limit is exact over the
// answers that got lost.
func TestClone_LimitIsExactOverLostPuts(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.must(m.write("", "policies/dev", "max_operations_per_hour", 50))
	m.storage = &forgetfulStorage{Storage: m.storage}
	var wait sync.WaitGroup
	var confirmed atomic.Int64
	for range 200 {
		wait.Go(func() {
			if _, err := m.write(alice, "clone/prod/staging"); err == nil {
				confirmed.Add(1)
			}
		})
	}
	wait.Wait()
	stored, err := m.storage.List(context.Background(), prefixOperation)
	require.NoError(t, err)
	require.Len(t, stored, 50)
	require.Less(t, confirmed.Load(), int64(50), "no answer was lost, so nothing was tested")
}

// forgetfulStorage stores every operation, and says of every third that it did not.
type forgetfulStorage struct {
	logical.Storage
	puts atomic.Int64
}

func (s *forgetfulStorage) Put(ctx context.Context, entry *logical.StorageEntry) error {
	if err := s.Storage.Put(ctx, entry); err != nil {
		return err
	}
	if strings.HasPrefix(entry.Key, prefixOperation) && s.puts.Add(1)%3 == 0 {
		return errors.New("the answer was lost")
	}
	return nil
}

// Setting Vault's clock back an hour opens no window: of 200 parallel requests
// after 30 before, exactly 50 in all are stored, also by an instance that has only
// what is stored, and the windows close as they would have.
func TestClone_LimitHoldsWhenTheClockGoesBack(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.must(m.write("", "policies/dev", "max_operations_per_hour", 50))
	stored := func() int {
		names, err := m.storage.List(context.Background(), prefixOperation)
		require.NoError(t, err)
		return len(names)
	}
	for range 30 {
		m.clone()
	}
	m.clock.pass(-time.Hour)
	var limited atomic.Int64
	ask := func(requests int) {
		var wait sync.WaitGroup
		for range requests {
			wait.Go(func() {
				_, err := m.write(alice, "clone/prod/staging")
				if err != nil && wire.ParseError(err.Error()).Code == wire.CodeRateLimited {
					limited.Add(1)
				}
			})
		}
		wait.Wait()
	}
	ask(100)
	require.Equal(t, 50, stored())
	m.restart()
	ask(100)
	require.Equal(t, 50, stored())
	require.EqualValues(t, 180, limited.Load())
	m.clock.pass(119 * time.Minute) // 59 minutes after the latest was admitted
	ask(1)
	require.Equal(t, 50, stored())
	m.clock.pass(time.Minute)
	m.clone()
}

// A dry run tells what each rule of the policy made of the request, what all
// policies say and which decided, and supposes what it is told to suppose.
func TestPolicies_EvaluateExplains(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.must(m.write("", "policies/dev", "max_rows", 100, "allowed_hours", "tue 08:00-18:00", "source_labels", "tier=gold", "agents", "a1"))
	m.must(m.write("", "policies/ops", "groups", "group-ops", "sources", "*", "targets", "*"))
	m.must(m.write("", "policies/small", "entities", "*", "sources", "*", "targets", "*", "allowed_operations", "*", "max_bytes", 10))
	ask := func(fields ...any) (map[string]any, map[string]string) {
		data := m.must(m.write("", "policies/dev/evaluate", append([]any{"source", "prod", "target", "staging", "entity_id", alice}, fields...)...))
		outcomes := map[string]string{}
		for _, rule := range data["rules"].([]any) {
			row := rule.(map[string]any)
			outcomes[row["rule"].(string)] = row["outcome"].(string)
		}
		return data, outcomes
	}
	data, outcomes := ask()
	require.Equal(t, true, data["allowed"])
	require.Equal(t, true, data["matches"])
	require.Equal(t, []any{"a1"}, data["agents_permitted"])
	for rule, outcome := range map[string]string{
		"require_authentication": "pass", "allowed_operations": "pass", "max_rows": "obligation", "allowed_hours": "pass",
		"agents": "obligation", "mask": "off", "max_bytes": "off", "max_operations_per_hour": "pass",
	} {
		require.Equal(t, outcome, outcomes[rule], rule)
	}
	require.Len(t, outcomes, 23, "every rule is explained")
	require.Equal(t, []any{
		map[string]any{"policy": "dev", "outcome": "pass", "decides": false},
		map[string]any{"policy": "ops", "outcome": "no_match", "why": "neither the entity nor a group of it is named", "decides": false},
		map[string]any{"policy": "small", "outcome": "pass", "decides": false},
	}, data["by_policy"])

	data, outcomes = ask("rows", 101, "bytes", 11, "at", "2026-11-25T12:00:00Z")
	require.Equal(t, "max_rows", data["rule"])
	require.Equal(t, "refuse", outcomes["max_rows"])
	require.Equal(t, "refuse", outcomes["allowed_hours"], "rules after the first that refuses are told too")
	require.Equal(t, true, data["by_policy"].([]any)[0].(map[string]any)["decides"])
	require.Equal(t, []any{"max_bytes"}, data["by_policy"].([]any)[2].(map[string]any)["refuses"])
	data, _ = ask("bytes", 11)
	require.Equal(t, true, data["allowed"])
	require.Equal(t, "small", data["all"].(map[string]any)["policy"])
	data, _ = ask("source_labels", "tier=tin")
	require.Equal(t, "default_deny", data["rule"])
	require.Equal(t, "sources and source_labels do not select the source", data["why"])
	data, _ = ask("target_labels", "owner=x")
	require.Equal(t, "unclassified", data["code"])
	data, _ = ask("target", "prod")
	require.Equal(t, "same_database", data["all"].(map[string]any)["rule"])
	for field, value := range map[string]any{"at": "noon", "kind": "copy"} {
		resp, err := m.write("", "policies/dev/evaluate", "source", "prod", "target", "staging", "entity_id", alice, field, value)
		require.Equal(t, field, m.refused(wire.CodeInvalid, resp, err).Field)
	}
	require.Empty(t, m.must(m.handle("", logical.ListOperation, "all/operations"))["keys"], "nothing is stored")
}

// What was stored before a rule existed decodes, decides as it did, and has the
// digest it had: an upgrade changes no plan.
func TestPolicies_StoredBeforeTheLaterRules(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	const old = `{"name":"dev","version":4,"entities":["entity-alice"],"groups":null,"operations":null,"sources":["prod"],"targets":["staging"],` +
		`"require_authentication":true,"allow_cross_engine_operations":false,"enable_network_isolation":true,"audit_operations":true,` +
		`"max_operations_per_hour":3,"allowed_operations":["clone"],"max_operations_per_hour_source":0,"max_operations_per_hour_target":0,` +
		`"max_operations_per_hour_mount":0,"max_concurrent":0,"max_duration":0,"max_bytes":0,"max_rows":0,"require_tls":false,"allow_protected_target":false}`
	require.NoError(t, m.storage.Put(context.Background(), &logical.StorageEntry{Key: prefixPolicy + "dev", Value: []byte(old)}))
	m.restart()
	m.clone()
	digest, err := policiesDigest(m.b.ops.policySet().Policies(), []string{"dev"})
	require.NoError(t, err)
	require.Equal(t, wire.Digest([]byte("["+old+"]")), digest)
	require.Empty(t, m.must(m.read("", "policies/dev"))["allowed_hours"])
}

// README describes every field of a policy in its table, and no other.
func TestPolicies_FieldsStandInREADME(t *testing.T) {
	t.Parallel()
	table := testenv.InREADME(t, "<!-- policy fields: checked by a test -->", "<!-- /policy fields -->")
	var described []string
	for line := range strings.Lines(table) {
		if cells := strings.Split(line, "|"); len(cells) > 1 {
			for _, word := range strings.Fields(cells[1]) {
				if strings.HasPrefix(word, "`") {
					described = append(described, strings.Trim(word, "`"))
				}
			}
		}
	}
	fields := slices.Sorted(maps.Keys(policyFields()))
	fields = slices.DeleteFunc(fields, func(name string) bool {
		return slices.Contains([]string{"name", "entities", "groups", "operations", "sources", "targets", "source_labels", "target_labels"}, name)
	})
	require.ElementsMatch(t, fields, described)
}

// The commands of README's section on policies work as they stand there.
func TestPolicies_CommandsOfREADME(t *testing.T) {
	t.Parallel()
	section := testenv.InREADME(t, "\n## Policies\n", "\n## ")
	m := newDesk(t)
	m.must(m.write("", "policies/dev", "targets", "staging,dev-7"))
	m.cloneInto("dev-7")
	m.must(m.handle("", logical.DeleteOperation, "policies/dev"))
	commands := 0
	for line := range strings.Lines(section) {
		command, isCommand := strings.CutPrefix(line, "    vault write dbops/")
		if !isCommand {
			continue
		}
		commands++
		words := strings.Fields(strings.NewReplacer("<group id>", "group-ops", "<entity id>", bob, "'", "").Replace(command))
		var fields []any
		for _, word := range words[1:] {
			name, value, given := strings.Cut(word, "=")
			require.True(t, given, word)
			fields = append(fields, name, value)
		}
		m.must(m.write("", words[0], fields...))
	}
	require.Equal(t, 2, commands)
	require.Equal(t, "balanced", m.must(m.read("", "policies/dev"))["preset"])
}

func TestPolicies_FieldsAndErrors(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	read := m.must(m.read("", "policies/dev"))
	require.Equal(t, []any{alice}, read["entities"])
	require.Equal(t, true, read["require_authentication"])
	require.Equal(t, true, read["enable_network_isolation"])
	require.Equal(t, true, read["audit_operations"])
	require.Equal(t, false, read["allow_cross_engine_operations"])
	for field, value := range map[string]any{"sources": "", "allowed_operations": "clon", "max_rows": -1, "operations": "x"} {
		resp, err := m.write("", "policies/dev", field, value)
		require.Equal(t, field, m.refused(wire.CodeInvalid, resp, err).Field)
	}
	resp, err := m.write("", "policies/new", "sources", "*", "targets", "*")
	require.Equal(t, "entities", m.refused(wire.CodeInvalid, resp, err).Field)
	require.Equal(t, []string{"dev"}, m.must(m.handle("", logical.ListOperation, "policies/"))["keys"])
	m.must(m.handle("", logical.DeleteOperation, "policies/dev"))
	resp, err = m.read("", "policies/dev")
	require.NoError(t, err)
	require.Nil(t, resp)
}

// A dry run answers what a request would get, and counts nothing.
func TestPolicies_Evaluate(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.must(m.write("", "policies/dev", "max_operations_per_hour", 1))
	m.must(m.write("", "policies/freeze", "entities", bob, "sources", "*", "targets", "*"))
	ask := func(name, entity string) wire.Decision {
		data := m.must(m.read("", "policies/"+name+"/evaluate", "source", "prod", "target", "staging", "entity_id", entity))
		all, ok := data["all"].(map[string]any)
		require.True(t, ok)
		require.Equal(t, data["allowed"], all["allowed"])
		return into[wire.Decision](m, data)
	}
	require.True(t, ask("dev", alice).Allowed)
	require.True(t, ask("dev", alice).Allowed)
	require.Equal(t, "default_deny", ask("dev", bob).Rule)
	require.Equal(t, "allowed_operations", ask("freeze", bob).Rule)
	m.clone()
	require.Equal(t, wire.CodeRateLimited, ask("dev", alice).Code)
	resp, err := m.read("", "policies/none/evaluate", "source", "prod", "target", "staging", "entity_id", alice)
	m.refused(wire.CodeNotFound, resp, err)
	resp, err = m.read("", "policies/dev/evaluate", "source", "prod", "target", "staging")
	m.refused(wire.CodeNoIdentity, resp, err)
}
