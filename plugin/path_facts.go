package plugin

import (
	"context"
	"strconv"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

func (b *backend) factPaths() []*framework.Path {
	seq := &framework.FieldSchema{Type: framework.TypeString, Description: "Number of the last fact that was received."}
	return []*framework.Path{{
		Pattern:      "facts/?$",
		Callbacks:    map[logical.Operation]framework.OperationFunc{logical.ReadOperation: b.pathFactsRead},
		HelpSynopsis: "What the engine did or refused without an audit device seeing it.",
		HelpDescription: `
Answers the oldest facts that wait, at most 100, as JSON strings; by this answer
they stand in the audit devices. They wait until they are acknowledged. Agents do
both by themselves; without an agent, read this path and write the answered seq to
facts/ack, once a minute.`,
	}, {
		Pattern:         "facts/ack$",
		Fields:          map[string]*framework.FieldSchema{"seq": seq},
		Callbacks:       map[logical.Operation]framework.OperationFunc{logical.UpdateOperation: b.pathFactsAck},
		HelpSynopsis:    "Acknowledge facts that were read, up to a number.",
		HelpDescription: "They are forgotten. What was not read cannot be acknowledged.",
	}, {
		Pattern: "agents/" + agentNameRegex + "/facts$",
		Fields: map[string]*framework.FieldSchema{
			"name": {Type: framework.TypeString, Description: "Name of the agent."},
			"seq":  seq,
		},
		Callbacks: map[logical.Operation]framework.OperationFunc{
			logical.ReadOperation: b.pathAgentFacts(b.pathFactsRead), logical.UpdateOperation: b.pathAgentFacts(b.pathFactsAck),
		},
		HelpSynopsis:    "The same as facts and facts/ack, for that agent alone.",
		HelpDescription: "Part of the work protocol of agents.",
	}}
}

// pathAgentFacts lets only the agent of the path's name through.
func (b *backend) pathAgentFacts(handle framework.OperationFunc) framework.OperationFunc {
	return func(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
		if err := b.loadOperations(ctx, req.Storage); err != nil {
			return nil, err
		}
		if _, err := b.identifyAgent(req, fieldOf[string](d, "name")); err != nil {
			return nil, err
		}
		return handle(ctx, req, d)
	}
}

func (b *backend) pathFactsRead(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	answer, err := b.readFacts(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	// Not by way of JSON: a list of strings is what audit devices show in clear.
	return &logical.Response{Data: map[string]any{
		wire.FactsKey: answer.Facts, "seq": answer.Seq, "head": answer.Head, "waiting": answer.Waiting,
	}}, nil
}

func (b *backend) pathFactsAck(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	seq, err := strconv.ParseUint(fieldOf[string](d, "seq"), 10, 63)
	if err != nil {
		return nil, invalidField("seq", "must be a decimal number")
	}
	return nil, b.ackFacts(ctx, req.Storage, seq)
}
