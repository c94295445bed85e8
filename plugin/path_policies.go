package plugin

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

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
given keep their value, or get their default on a new policy; preset gives the
six rules of its level to those that are not given. A read also answers how strict
those six are, as a score and its band.`,
	}, {
		Pattern: "policies/" + framework.GenericNameRegex("name") + "/evaluate$",
		Fields:  evaluateFields(),
		Callbacks: map[logical.Operation]framework.OperationFunc{
			logical.ReadOperation: b.pathPolicyEvaluate, logical.UpdateOperation: b.pathPolicyEvaluate,
		},
		HelpSynopsis: "What would be decided and why, without asking for anything.",
		HelpDescription: `
Answers the decision of this policy alone; under "rules" what each of its rules
made of the request; under "all" the decision of all policies together, which is
what a request would get now; and under "by_policy" what each of them said and
which one decided. Fields that are given replace facts: what would be decided at
another time, with other labels, or on a plan of so many rows. Nothing is run,
stored or counted.`,
	}}
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
	data, err := policyData(p)
	if err != nil {
		return nil, err
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

	if !exists {
		p = newPolicy()
	}
	if err := changePolicy(&p, d); err != nil {
		return nil, err
	}
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
	b.ops.policies[name], b.ops.compiled = p, nil
	b.ops.mu.Unlock()
	b.metrics.changes.Inc()
	return nil, nil
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
	b.ops.compiled = nil
	b.ops.mu.Unlock()
	b.metrics.changes.Inc()
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
