package plugin

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// agentRecord is the registration of an agent.
type agentRecord struct {
	// Accessor is that of the auth mount whose role is named like the agent;
	// EntityID is another way to bind, by the entity itself.
	Accessor      string            `json:"accessor"`
	EntityID      string            `json:"entity_id"`
	Labels        map[string]string `json:"labels"`
	MaxOperations int               `json:"max_operations"`
	// Drain: no new operations; those it has go on.
	Drain bool `json:"drain"`
	// Grace is how long it may be silent, in nanoseconds; 0 means the default.
	Grace time.Duration `json:"grace"`
}

func (a agentRecord) grace() time.Duration {
	if a.Grace > 0 {
		return a.Grace
	}
	return defaultGrace
}

const agentNameRegex = `(?P<name>` + wire.AgentNamePattern + `)`

func (b *backend) agentPaths() []*framework.Path {
	return []*framework.Path{{
		Pattern:         "agents/?$",
		Callbacks:       map[logical.Operation]framework.OperationFunc{logical.ListOperation: b.pathAgentList},
		HelpSynopsis:    "Names of the registered agents.",
		HelpDescription: "Lists what was written below agents/.",
	}, {
		Pattern: "agents/" + agentNameRegex + "$",
		Fields: map[string]*framework.FieldSchema{
			"name":           {Type: framework.TypeString, Description: "Name of the agent: lower case letters, digits and dashes, at most 63."},
			"accessor":       {Type: framework.TypeString, Description: "Accessor of the auth mount whose role is named like the agent."},
			"entity_id":      {Type: framework.TypeString, Description: "Entity of the agent, where it does not log in by a role of its name."},
			"labels":         {Type: framework.TypeKVPairs, Description: "Labels, by which policies say who may take their operations (agent_labels)."},
			"max_operations": {Type: framework.TypeInt, Default: 1, Description: "Operations it may work on at once."},
			"drain":          {Type: framework.TypeBool, Description: "Give it no new operations; those it has go on."},
			"grace":          {Type: framework.TypeDurationSecond, Description: "How long it may be silent before its operations are taken away. 0 means 60 seconds."},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation:   &framework.PathOperation{Callback: b.pathAgentRead},
			logical.UpdateOperation: &framework.PathOperation{Callback: b.pathAgentWrite, ForwardPerformanceStandby: true},
			logical.DeleteOperation: &framework.PathOperation{Callback: b.pathAgentDelete, ForwardPerformanceStandby: true},
		},
		HelpSynopsis: "Registration of an agent.",
		HelpDescription: `
Binds the name of an agent to the identity it logs in with. Fields that are not
given keep their value. A read also answers when the agent was last heard and what
it holds.`,
	}}
}

func (b *backend) pathAgentList(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	if err := b.loadOperations(ctx, req.Storage); err != nil {
		return nil, err
	}
	b.ops.mu.RLock()
	names := slices.Sorted(maps.Keys(b.ops.agents))
	b.ops.mu.RUnlock()
	return logical.ListResponse(names), nil
}

// held lists the operations whose claim the agent has.
func (b *backend) held(agent string) []*operationRecord {
	return slices.DeleteFunc(b.ops.busyOperations(), func(r *operationRecord) bool {
		return r.Claim == nil || r.Claim.Agent != agent
	})
}

func (b *backend) pathAgentRead(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	if err := b.loadOperations(ctx, req.Storage); err != nil {
		return nil, err
	}
	name := fieldOf[string](d, "name")
	b.ops.mu.RLock()
	agent, ok := b.ops.agents[name]
	heard := b.ops.heard[name]
	b.ops.mu.RUnlock()
	if !ok {
		return nil, nil
	}
	data, err := responseData(agent)
	if err != nil {
		return nil, err
	}
	data["grace"] = int64(agent.grace() / time.Second)
	operations := []string{}
	for _, r := range b.held(name) {
		operations = append(operations, r.ID)
	}
	data["operations"] = operations
	if !heard.At.IsZero() {
		data["last_heard"] = heard.At.UTC().Format(time.RFC3339)
		data["boot"] = heard.Boot
		data["free_slots"] = heard.FreeSlots
		data["audit_devices"] = heard.AuditDevices
		if heard.AuditProblem != "" {
			data["audit_problem"] = heard.AuditProblem
		}
	}
	chain, err := b.chain(ctx, req.Storage, name)
	if err != nil {
		return nil, err
	}
	data["epoch"], data["seq"], data["head"] = chain.Epoch, chain.Seq, chain.Head
	return &logical.Response{Data: data}, nil
}

func (b *backend) pathAgentWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	if err := b.loadOperations(ctx, req.Storage); err != nil {
		return nil, err
	}
	name := fieldOf[string](d, "name")
	defer b.ops.lock(prefixAgent + name)()
	b.ops.mu.RLock()
	agent, known := b.ops.agents[name]
	b.ops.mu.RUnlock()
	if !known {
		agent.MaxOperations = fieldOf[int](d, "max_operations")
	}
	if v, ok := fieldGiven[string](d, "accessor"); ok {
		agent.Accessor = v
	}
	if v, ok := fieldGiven[string](d, "entity_id"); ok {
		agent.EntityID = v
	}
	if v, ok := fieldGiven[map[string]string](d, "labels"); ok {
		agent.Labels = pairs(v)
	}
	if v, ok := fieldGiven[int](d, "max_operations"); ok {
		agent.MaxOperations = v
	}
	if v, ok := fieldGiven[bool](d, "drain"); ok {
		agent.Drain = v
	}
	if err := setDuration(d, "grace", &agent.Grace); err != nil {
		return nil, err
	}
	switch {
	case agent.Accessor == "" && agent.EntityID == "":
		return nil, invalidField("accessor", "accessor or entity_id must say how the agent logs in")
	case agent.MaxOperations < 1 || agent.MaxOperations > 64:
		return nil, invalidField("max_operations", "must be from 1 to 64")
	}
	if err := putStored(ctx, req.Storage, prefixAgent+name, agent); err != nil {
		b.opsInvalidate(prefixAgent + name)
		return nil, err
	}
	b.ops.mu.Lock()
	b.ops.agents[name] = agent
	b.ops.mu.Unlock()
	return nil, nil
}

// pathAgentDelete forgets the registration. The chain stays: should the name come
// back, its events go on where they ended.
func (b *backend) pathAgentDelete(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	if err := b.loadOperations(ctx, req.Storage); err != nil {
		return nil, err
	}
	name := fieldOf[string](d, "name")
	if held := b.held(name); len(held) > 0 {
		return nil, &wire.Error{
			Code: wire.CodeConflict, Reason: fmt.Sprintf("agent %s works on operation %s", name, held[0].ID),
			Hint: "drain it first",
		}
	}
	defer b.ops.lock(prefixAgent + name)()
	if err := deleteStored(ctx, req.Storage, prefixAgent+name); err != nil {
		b.opsInvalidate(prefixAgent + name)
		return nil, err
	}
	b.ops.mu.Lock()
	delete(b.ops.agents, name)
	delete(b.ops.heard, name)
	b.ops.mu.Unlock()
	return nil, nil
}
