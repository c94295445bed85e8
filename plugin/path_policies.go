package plugin

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/policy"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// defaultOperationsPerHour is what a policy permits that does not say.
const defaultOperationsPerHour = 10

func (b *backend) policyPaths() []*framework.Path {
	return []*framework.Path{{
		Pattern:         "policies/?$",
		Callbacks:       map[logical.Operation]framework.OperationFunc{logical.ListOperation: b.pathPolicyList},
		HelpSynopsis:    "Names of the policies.",
		HelpDescription: "Lists the policies that decide about operations. Without any, every operation is refused.",
	}, {
		Pattern: "policies/" + framework.GenericNameRegex("name") + "$",
		Fields:  policyFields(),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation:   &framework.PathOperation{Callback: b.pathPolicyRead},
			logical.UpdateOperation: &framework.PathOperation{Callback: b.pathPolicyWrite, ForwardPerformanceStandby: true},
			logical.DeleteOperation: &framework.PathOperation{Callback: b.pathPolicyDelete, ForwardPerformanceStandby: true},
		},
		HelpSynopsis: "Who may do which operations under which rules.",
		HelpDescription: `
Entities, groups, operations, sources, targets and labels select what a policy
speaks about; the other fields are its rules. An operation needs one policy that
speaks about it, and every policy that does must allow it. Fields that are not
given keep their value, or get their default on a new policy.`,
	}, {
		Pattern: "policies/" + framework.GenericNameRegex("name") + "/evaluate$",
		Fields: map[string]*framework.FieldSchema{
			"name":      {Type: framework.TypeString, Description: "Name of the policy."},
			"kind":      {Type: framework.TypeString, Default: string(wire.KindClone), Description: "Kind of operation."},
			"source":    {Type: framework.TypeString, Description: "Connection to copy from."},
			"target":    {Type: framework.TypeString, Description: "Connection to copy to."},
			"entity_id": {Type: framework.TypeString, Description: "Who would ask; the caller when empty."},
		},
		Callbacks: map[logical.Operation]framework.OperationFunc{
			logical.ReadOperation: b.pathPolicyEvaluate, logical.UpdateOperation: b.pathPolicyEvaluate,
		},
		HelpSynopsis: "What would be decided, without asking for anything.",
		HelpDescription: `
Answers the decision of this policy alone, and under "all" that of all policies
together, which is what a request would get now. Nothing is stored or counted.`,
	}}
}

func policyFields() map[string]*framework.FieldSchema {
	list := func(d string) *framework.FieldSchema {
		return &framework.FieldSchema{Type: framework.TypeCommaStringSlice, Description: d}
	}
	labels := func(d string) *framework.FieldSchema {
		return &framework.FieldSchema{Type: framework.TypeKVPairs, Description: d}
	}
	flag := func(d string, def bool) *framework.FieldSchema {
		return &framework.FieldSchema{Type: framework.TypeBool, Default: def, Description: d}
	}
	number := func(d string) *framework.FieldSchema {
		return &framework.FieldSchema{Type: framework.TypeInt, Description: d + " 0 means no limit."}
	}
	perHour := number("Operations of one entity in any 60 minutes.")
	perHour.Default = defaultOperationsPerHour
	return map[string]*framework.FieldSchema{
		"name":          {Type: framework.TypeString, Description: "Name of the policy."},
		"entities":      list("Who: entity ids; * means everybody."),
		"groups":        list("Who: ids of identity groups."),
		"operations":    list("What: kinds of operation the policy speaks about; all when empty."),
		"sources":       list("What: connection names of sources, globs allowed."),
		"targets":       list("What: connection names of targets, globs allowed."),
		"source_labels": labels("What: label values the source must have, globs allowed."),
		"target_labels": labels("What: label values the target must have, globs allowed."),

		policy.RuleRequireAuthentication:      flag("An entity must stand behind the request. One is needed anyway; false lifts nothing.", true),
		policy.RuleAllowCrossEngineOperations: flag("Source and target may be of different engines.", false),
		policy.RuleEnableNetworkIsolation:     flag("Only in a sandbox without a network. Every sandbox is one; false lifts nothing.", true),
		policy.RuleAuditOperations:            flag("Only on agents that see a working audit device. Others get no work; false lifts nothing.", true),
		policy.RuleMaxOperationsPerHour:       perHour,
		policy.RuleAllowedOperations:          list("Kinds of operation permitted, or *. None makes the policy a prohibition."),

		policy.RuleMaxOperationsPerHourSource: number("Operations from one source in any 60 minutes."),
		policy.RuleMaxOperationsPerHourTarget: number("Operations into one target in any 60 minutes."),
		policy.RuleMaxOperationsPerHourMount:  number("Operations of the whole mount in any 60 minutes."),
		policy.RuleMaxConcurrent:              number("Unfinished operations of one entity."),
		"max_duration":                        {Type: framework.TypeDurationSecond, Description: "How long planning and running may take. 0 means the default of 4 hours."},
		policy.RuleMaxBytes:                   {Type: framework.TypeInt64, Description: "Bytes of the source. 0 means no limit."},
		policy.RuleMaxRows:                    {Type: framework.TypeInt64, Description: "Rows of the source. 0 means no limit."},
		policy.RuleRequireTLS:                 flag("Both connections must be encrypted.", false),
		policy.RuleAllowProtectedTarget:       flag("The target may be a protected connection.", false),

		"approvals_count":  {Type: framework.TypeInt, Description: "Different people who must approve the plan. 0 means none."},
		"approvals_groups": list("Ids of identity groups whose members may approve."),
		"approvals_ttl":    {Type: framework.TypeDurationSecond, Description: "How long an approval holds. 0 means the plugin's default."},
	}
}

func (b *backend) pathPolicyList(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	if err := b.loadOperations(ctx, req.Storage); err != nil {
		return nil, err
	}
	var names []string
	for _, p := range b.ops.policyList() {
		names = append(names, p.Name)
	}
	slices.Sort(names)
	return logical.ListResponse(names), nil
}

func (b *backend) pathPolicyRead(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	if err := b.loadOperations(ctx, req.Storage); err != nil {
		return nil, err
	}
	b.ops.mu.RLock()
	p, ok := b.ops.policies[fieldOf[string](d, "name")]
	b.ops.mu.RUnlock()
	if !ok {
		return nil, nil
	}
	data, err := responseData(p)
	if err != nil {
		return nil, err
	}
	data["max_duration"] = int64(p.MaxDuration / time.Second)
	delete(data, policy.RuleApprovals)
	data["approvals_count"], data["approvals_groups"], data["approvals_ttl"] = 0, []string{}, int64(0)
	if a := p.Approvals; a != nil {
		data["approvals_count"], data["approvals_groups"], data["approvals_ttl"] = a.Count, a.Groups, int64(a.TTL/time.Second)
	}
	for _, field := range []string{"entities", "groups", "operations", "sources", "targets", policy.RuleAllowedOperations} {
		if data[field] == nil {
			data[field] = []any{}
		}
	}
	return &logical.Response{Data: data}, nil
}

func (b *backend) pathPolicyWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	if err := b.loadOperations(ctx, req.Storage); err != nil {
		return nil, err
	}
	name := fieldOf[string](d, "name")
	defer b.ops.lock(prefixPolicy + name)()
	b.ops.mu.RLock()
	p, exists := b.ops.policies[name]
	b.ops.mu.RUnlock()

	given := func(field string) bool {
		if exists {
			_, ok := d.GetOk(field)
			return ok
		}
		return true // the default counts
	}
	for field, into := range map[string]*[]string{
		"entities": &p.Entities, "groups": &p.Groups, "sources": &p.Sources, "targets": &p.Targets,
		policy.RuleAllowedOperations: &p.AllowedOperations,
	} {
		if given(field) {
			*into = fieldOf[[]string](d, field)
		}
	}
	if given("operations") {
		p.Operations = nil
		for _, kind := range fieldOf[[]string](d, "operations") {
			p.Operations = append(p.Operations, wire.Kind(kind))
		}
	}
	for field, into := range map[string]*map[string]string{"source_labels": &p.SourceLabels, "target_labels": &p.TargetLabels} {
		if given(field) {
			*into = pairs(fieldOf[map[string]string](d, field))
		}
	}
	for field, into := range map[string]*bool{
		policy.RuleRequireAuthentication: &p.RequireAuthentication, policy.RuleAllowCrossEngineOperations: &p.AllowCrossEngineOperations,
		policy.RuleEnableNetworkIsolation: &p.EnableNetworkIsolation, policy.RuleAuditOperations: &p.AuditOperations,
		policy.RuleRequireTLS: &p.RequireTLS, policy.RuleAllowProtectedTarget: &p.AllowProtectedTarget,
	} {
		if given(field) {
			*into = fieldOf[bool](d, field)
		}
	}
	for field, into := range map[string]*int{
		policy.RuleMaxOperationsPerHour: &p.MaxOperationsPerHour, policy.RuleMaxOperationsPerHourSource: &p.MaxOperationsPerHourSource,
		policy.RuleMaxOperationsPerHourTarget: &p.MaxOperationsPerHourTarget, policy.RuleMaxOperationsPerHourMount: &p.MaxOperationsPerHourMount,
		policy.RuleMaxConcurrent: &p.MaxConcurrent,
	} {
		if given(field) {
			*into = fieldOf[int](d, field)
		}
	}
	for field, into := range map[string]*int64{policy.RuleMaxBytes: &p.MaxBytes, policy.RuleMaxRows: &p.MaxRows} {
		if given(field) {
			*into = fieldOf[int64](d, field)
		}
	}
	if given("max_duration") {
		p.MaxDuration = time.Duration(fieldOf[int](d, "max_duration")) * time.Second
	}
	p.Approvals = approvalsOf(p.Approvals, d, given)
	p.Name = name
	p.Version++
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if err := putStored(ctx, req.Storage, prefixPolicy+name, p); err != nil {
		b.opsInvalidate(prefixPolicy + name)
		return nil, err
	}
	b.ops.mu.Lock()
	b.ops.policies[name] = p
	b.ops.mu.Unlock()
	return nil, nil
}

// approvalsOf is the rule with the fields that were given; a count of 0 takes it
// away.
func approvalsOf(was *policy.Approvals, d *framework.FieldData, given func(string) bool) *policy.Approvals {
	var a policy.Approvals
	if was != nil {
		a = *was
	}
	if given("approvals_count") {
		a.Count = fieldOf[int](d, "approvals_count")
		if _, explicit := d.GetOk("approvals_count"); explicit && a.Count == 0 {
			return nil
		}
	}
	if given("approvals_groups") {
		a.Groups = fieldOf[[]string](d, "approvals_groups")
	}
	if given("approvals_ttl") {
		a.TTL = time.Duration(fieldOf[int](d, "approvals_ttl")) * time.Second
	}
	if a.Count == 0 && len(a.Groups) == 0 && a.TTL == 0 {
		return nil
	}
	return &a
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
	b.ops.mu.RLock()
	ask.History = b.ops.history(who.EntityID, op.Source, op.Target)
	b.ops.mu.RUnlock()
	data, err := responseData(policy.Evaluate([]policy.Policy{p}, ask, b.now()))
	if err != nil {
		return nil, err
	}
	if data["all"], err = responseData(policy.Evaluate(b.ops.policyList(), ask, b.now())); err != nil {
		return nil, err
	}
	return &logical.Response{Data: data}, nil
}

func (b *backend) pathPolicyDelete(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	if err := b.loadOperations(ctx, req.Storage); err != nil {
		return nil, err
	}
	name := fieldOf[string](d, "name")
	defer b.ops.lock(prefixPolicy + name)()
	if err := deleteStored(ctx, req.Storage, prefixPolicy+name); err != nil {
		b.opsInvalidate(prefixPolicy + name)
		return nil, err
	}
	b.ops.mu.Lock()
	delete(b.ops.policies, name)
	b.ops.mu.Unlock()
	return nil, nil
}

// responseData turns a value of wire into what a response carries: plain maps and
// lists, as they arrive at the other side anyway.
func responseData(value any) (map[string]any, error) {
	content, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("encode answer: %w", err)
	}
	data := map[string]any{}
	if err := json.Unmarshal(content, &data); err != nil {
		return nil, fmt.Errorf("encode answer: %w", err)
	}
	return data, nil
}

// pairs also reads "a=1,b=2" in one value, which the field type of the sdk takes
// for one pair: people write it that way.
func pairs(given map[string]string) map[string]string {
	all := make(map[string]string, len(given))
	for key, value := range given {
		pieces := strings.Split(value, ",")
		if slices.ContainsFunc(pieces[1:], func(piece string) bool { return !strings.Contains(piece, "=") }) {
			all[key] = value
			continue
		}
		all[key] = pieces[0]
		for _, piece := range pieces[1:] {
			k, v, _ := strings.Cut(piece, "=")
			all[strings.TrimSpace(k)] = v
		}
	}
	return all
}
