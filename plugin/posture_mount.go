package plugin

import (
	"context"
	"maps"
	"slices"
	"strconv"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/policy"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/posture"
)

// postureMount is what the engine knows by itself, of the named connections.
func (b *backend) postureMount(ctx context.Context, s logical.Storage, connections []*connection) (posture.Mount, error) {
	if err := b.loadOperations(ctx, s); err != nil {
		return posture.Mount{}, err
	}
	waiting, err := loadRevocations(ctx, s)
	if err != nil {
		return posture.Mount{}, err
	}
	ending := map[string]int{}
	for _, failed := range waiting {
		ending[failed.Connection]++
	}
	m := posture.Mount{Now: b.now(), Policies: b.ops.policyList()}
	for _, c := range connections {
		facts, _, err := b.connectionFacts(ctx, s, c.Name)
		if err != nil {
			return posture.Mount{}, err
		}
		seen := posture.Connection{
			Connection:  policy.Connection{Name: c.Name, Engine: c.product.engine, Labels: facts.Labels, Protected: facts.Protected},
			OwnPassword: c.rotatableRoot() == nil,
			RootRotated: c.LastRootRotation, RootDue: c.NextRootRotation, Revocations: ending[c.Name],
		}
		if found, ok := b.accounts.strangers.of(c.ID, m.Now); ok {
			seen.Strangers, seen.Stranger, seen.StrangerSeen = found.count, found.latest, found.at
		}
		m.Connections = append(m.Connections, seen)
	}
	roles, err := listStored(ctx, s, prefixStaticRole)
	if err != nil {
		return posture.Mount{}, err
	}
	for _, name := range roles {
		r, err := b.staticRoles.get(ctx, s, name)
		if err != nil {
			return posture.Mount{}, err
		}
		if r != nil {
			role := posture.StaticRole{Name: name}
			if left, ever := b.staticRoleLeft(r); ever {
				role.Due = m.Now.Add(left)
			}
			m.StaticRoles = append(m.StaticRoles, role)
		}
	}
	m.Agents = b.postureAgents()
	return m, nil
}

// postureAgents is what is known of the registered agents.
func (b *backend) postureAgents() []posture.Agent {
	b.ops.mu.RLock()
	defer b.ops.mu.RUnlock()
	var all []posture.Agent
	for _, name := range slices.Sorted(maps.Keys(b.ops.agents)) {
		heard := b.ops.heard[name]
		devices, err := strconv.Atoi(heard.AuditDevices)
		if err != nil {
			devices = -1
		}
		all = append(all, posture.Agent{
			Name: name, Grace: b.ops.agents[name].grace(), Heard: heard.At, Listening: b.ops.started,
			AuditDevices: devices, AuditProblem: heard.AuditProblem, AuditUntuned: heard.AuditUntuned,
		})
	}
	return all
}
