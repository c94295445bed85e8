package plugin

import (
	"fmt"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/policy"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// caller is who stands behind a request, as Vault's identity store knows them now.
type caller struct {
	wire.User
	Groups []string // ids, inherited ones included
	// Aliases are the logins of the entity, <accessor of the auth mount>/<name>.
	Aliases []string
}

// identify returns the caller. A token without an entity, or with one that is
// disabled or was merged away, is nobody: root tokens too.
func (b *backend) identify(req *logical.Request) (caller, error) {
	return b.identifyEntity(req.EntityID)
}

func (b *backend) identifyEntity(id string) (caller, error) {
	if id == "" {
		return caller{}, noIdentity("the token has no entity")
	}
	entity, err := b.System().EntityInfo(id)
	if err != nil {
		return caller{}, fmt.Errorf("read entity: %w", err)
	}
	if entity == nil {
		return caller{}, noIdentity("the token's entity does not exist any more")
	}
	if entity.Disabled {
		return caller{}, noIdentity("the token's entity is disabled")
	}
	groups, err := b.System().GroupsForEntity(id)
	if err != nil {
		return caller{}, fmt.Errorf("read groups of entity: %w", err)
	}
	c := caller{User: wire.User{EntityID: entity.ID, Name: entity.Name}}
	for _, alias := range entity.Aliases {
		c.Aliases = append(c.Aliases, alias.MountAccessor+"/"+alias.Name)
	}
	for _, g := range groups {
		if g != nil {
			c.Groups = append(c.Groups, g.ID)
		}
	}
	return c, nil
}

func noIdentity(reason string) *wire.Error {
	return &wire.Error{
		Code: wire.CodeNoIdentity, Rule: policy.RuleRequireAuthentication, Reason: reason,
		Hint: "log in by an auth method that makes an entity; root tokens have none",
	}
}

// identifyAgent returns the agent's registration when the request comes from it:
// its entity has an alias of the registered auth mount whose role is called like
// the agent, or is the registered entity. ACL says the same, but an ACL template
// written wrongly must not open another agent's work.
func (b *backend) identifyAgent(req *logical.Request, name string) (agentRecord, error) {
	b.ops.mu.RLock()
	agent, ok := b.ops.agents[name]
	b.ops.mu.RUnlock()
	if !ok {
		return agentRecord{}, notFound("agent %q is not registered", name)
	}
	if req.EntityID == "" {
		return agentRecord{}, noIdentity("the token has no entity")
	}
	entity, err := b.System().EntityInfo(req.EntityID)
	if err != nil {
		return agentRecord{}, fmt.Errorf("read entity: %w", err)
	}
	if entity == nil || entity.Disabled {
		return agentRecord{}, noIdentity("the token's entity does not exist or is disabled")
	}
	if agent.EntityID != "" && entity.ID == agent.EntityID {
		return agent, nil
	}
	if agent.Accessor != "" {
		for _, alias := range entity.Aliases {
			if alias.MountAccessor == agent.Accessor && alias.Metadata["role_name"] == name {
				return agent, nil
			}
		}
	}
	return agentRecord{}, &wire.Error{
		Code:   wire.CodeNotYourOperation,
		Reason: fmt.Sprintf("the token is not that of agent %s", name),
		Hint:   "check accessor and entity_id of agents/" + name,
	}
}
