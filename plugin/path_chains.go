package plugin

import (
	"context"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

func (b *backend) chainPaths() []*framework.Path {
	return []*framework.Path{{
		Pattern:      "chains/?$",
		Callbacks:    map[logical.Operation]framework.OperationFunc{logical.ReadOperation: b.pathChainsRead},
		HelpSynopsis: "The ends of all chains of events and facts.",
		HelpDescription: `
Answers for each agent that ever wrote an event the last one's epoch, sequence
number and hash, and the entities it wrote as; and the same of the facts that were
acknowledged. dbops audit verify holds audit files against them.`,
	}}
}

// pathChainsRead reads the agents' chains from storage: deleted agents have theirs
// too, and there are few.
func (b *backend) pathChainsRead(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	at := b.now().UTC() // before the reading: what was answered earlier is read
	names, err := listStored(ctx, req.Storage, prefixChain)
	if err != nil {
		return nil, err
	}
	facts, err := b.factsEnd(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	chains := wire.Chains{Agents: make(map[string]wire.AgentChain, len(names)), Facts: facts, At: at}
	for _, name := range names {
		c, err := b.chainOf(ctx, req.Storage, name)
		if err != nil {
			return nil, err
		}
		chains.Agents[name] = wire.AgentChain{Chain: c.Chain, Entities: append([]string{}, c.Entities...)}
	}
	data, err := responseData(chains)
	if err != nil {
		return nil, err
	}
	return &logical.Response{Data: data}, nil
}
