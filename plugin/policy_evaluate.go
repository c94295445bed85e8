package plugin

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/policy"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// evaluateFields are the request of a dry run, and what is to be supposed.
func evaluateFields() map[string]*framework.FieldSchema {
	text := func(d string) *framework.FieldSchema {
		return &framework.FieldSchema{Type: framework.TypeString, Description: d}
	}
	kind := text("Kind of operation.")
	kind.Default = string(wire.KindClone)
	return map[string]*framework.FieldSchema{
		"name":          text("Name of the policy."),
		"kind":          kind,
		"source":        text("Connection to copy from."),
		"target":        text("Connection to copy to."),
		"entity_id":     text("Who would ask; the caller when empty."),
		"at":            text("When it would be asked, like 2006-01-02T15:04:05Z; now when empty."),
		"source_labels": {Type: framework.TypeKVPairs, Description: "Labels the source is supposed to have, in place of its own."},
		"target_labels": {Type: framework.TypeKVPairs, Description: "Labels the target is supposed to have, in place of its own."},
		"rows":          {Type: framework.TypeInt64, Description: "Rows that a plan is supposed to find."},
		"bytes":         {Type: framework.TypeInt64, Description: "Bytes that a plan is supposed to find."},
	}
}

// policySummary is what one of all policies says.
type policySummary struct {
	Policy  string         `json:"policy"`
	Outcome policy.Outcome `json:"outcome"`
	Why     string         `json:"why,omitempty"`
	Refuses []string       `json:"refuses,omitempty"` // rules
	Decides bool           `json:"decides"`
}

func (b *backend) pathPolicyEvaluate(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	if err := b.loadOperations(ctx, req.Storage); err != nil {
		return nil, err
	}
	name := fieldOf[string](d, "name")
	b.ops.mu.RLock()
	p, ok := b.ops.policies[name]
	b.ops.mu.RUnlock()
	if !ok {
		return nil, notFound("there is no policy %q", name)
	}
	op := wire.Operation{
		Kind: wire.Kind(fieldOf[string](d, "kind")), Source: fieldOf[string](d, "source"), Target: fieldOf[string](d, "target"),
	}
	if !op.Kind.Valid() {
		return nil, invalidField("kind", "%q is not a kind of operation", op.Kind)
	}
	now := b.now()
	if text := fieldOf[string](d, "at"); text != "" {
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return nil, invalidField("at", "%q is not a time like 2006-01-02T15:04:05Z", text)
		}
		now = at
	}
	entity := fieldOf[string](d, "entity_id")
	if entity == "" {
		entity = req.EntityID
	}
	who, err := b.identifyEntity(entity)
	if err != nil {
		return nil, err
	}
	sides, err := b.operationSides(ctx, req.Storage, op)
	if err != nil {
		return nil, err
	}
	ask := b.policyRequest(who, op.Kind, sides)
	suppose(&ask, d)
	b.ops.mu.RLock()
	ask.History = b.ops.history(ask, sides.databases())
	b.ops.mu.RUnlock()

	alone, reports := policy.Compile([]policy.Policy{p}).Explain(ask, now)
	all, everybody := b.ops.policySet().Explain(ask, now)
	if e := sides.knownSame(); e != nil {
		all = wire.Decision{Code: e.Code, Rule: e.Rule, Reason: e.Reason}
	}
	alone, all = fulfillable(alone), fulfillable(all)
	data, err := responseData(alone)
	if err != nil {
		return nil, err
	}
	data["matches"], data["why"] = reports[0].Outcome != policy.OutcomeNoMatch, reports[0].Why
	var summaries []policySummary
	for _, report := range everybody {
		summary := policySummary{Policy: report.Policy, Outcome: report.Outcome, Why: report.Why, Decides: report.Decides}
		if report.Outcome == policy.OutcomeRefuse {
			for _, rule := range report.Rules {
				if rule.Outcome == policy.OutcomeRefuse {
					summary.Refuses = append(summary.Refuses, rule.Rule)
				}
			}
		}
		summaries = append(summaries, summary)
	}
	together, err := responseData(map[string]any{
		"rules": reports[0].Rules, "all": all, "by_policy": summaries, "agents_permitted": b.ops.agentsFor(all, sides),
	})
	if err != nil {
		return nil, err
	}
	maps.Copy(data, together)
	return &logical.Response{Data: data}, nil
}

// suppose replaces facts by what was given.
func suppose(ask *policy.Request, d *framework.FieldData) {
	for field, side := range map[string][]policy.Connection{"source_labels": ask.Source, "target_labels": ask.Target} {
		if labels, ok := fieldGiven[map[string]string](d, field); ok {
			side[0].Labels = pairs(labels)
		}
	}
	rows, rowsGiven := fieldGiven[int64](d, "rows")
	bytes, bytesGiven := fieldGiven[int64](d, "bytes")
	if rowsGiven || bytesGiven {
		ask.Estimates = &wire.Estimates{Rows: rows, Bytes: bytes}
	}
}

// agentsFor lists the registered agents that may take what was decided.
func (o *operationState) agentsFor(d wire.Decision, sides *operationSides) []string {
	names := []string{}
	if !d.Allowed {
		return names
	}
	o.mu.RLock()
	registered := slices.Sorted(maps.Keys(o.agents))
	o.mu.RUnlock()
	wanted := &operationRecord{Operation: wire.Operation{Decision: d}}
	for _, name := range registered {
		if sides.source.facts.permits(name) && sides.target.facts.permits(name) && o.agentPermitted(wanted, name) {
			names = append(names, name)
		}
	}
	return names
}
