package plugin

import (
	"slices"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/policy"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// The rate windows are the stored operations themselves: nothing else is written,
// so nothing can differ from them, and a new instance has them as soon as it has
// read the operations.

// admission is what the rate windows know of the operation.
func (r *operationRecord) admission() admission {
	return admission{
		id: r.ID, entity: r.Requester.EntityID, source: r.Source, target: r.Target, databases: r.Databases,
		at: latest(r.CreatedAt, r.AdmittedAt),
	}
}

// admit adds to the rate windows and forgets what has left them. The caller holds
// o.mu.
func (o *operationState) admit(a admission) {
	o.admitted = append(o.admitted, a)
	last := o.latestAdmission()
	o.admitted = slices.DeleteFunc(o.admitted, func(a admission) bool { return last.Sub(a.at) >= policy.Window })
}

// withdraw takes an admission back. The caller holds o.mu.
func (o *operationState) withdraw(id string) {
	o.admitted = slices.DeleteFunc(o.admitted, func(a admission) bool { return a.id == id })
}

// latestAdmission is the latest time in the rate windows. Where Vault's clock went
// back, it stands for the present: an operation that was admitted at the time the
// clock shows would be out of the windows before it was in them. The caller holds
// o.mu.
func (o *operationState) latestAdmission() time.Time {
	var last time.Time
	for _, a := range o.admitted {
		last = latest(last, a.at)
	}
	return last
}

// history answers what the stored operations say about the recent past of who
// asks and of both databases, under whichever name they were used. The caller
// holds o.mu.
func (o *operationState) history(ask policy.Request, databases map[wire.Side]wire.ServerIdentity) *policy.History {
	h := &policy.History{}
	same := func(names []policy.Connection, side wire.Side, name string, database wire.ServerIdentity) bool {
		return slices.ContainsFunc(names, func(c policy.Connection) bool { return c.Name == name }) || databases[side].Same(database)
	}
	for _, a := range o.admitted {
		h.Mount = append(h.Mount, a.at)
		if a.entity == ask.Entity {
			h.Entity = append(h.Entity, a.at)
		}
		if same(ask.Source, wire.Source, a.source, a.databases[wire.Source]) {
			h.Source = append(h.Source, a.at)
		}
		if same(ask.Target, wire.Target, a.target, a.databases[wire.Target]) {
			h.Target = append(h.Target, a.at)
		}
	}
	for id := range o.busy {
		if r := o.operations[id]; r.Requester.EntityID == ask.Entity && !r.State.Final() {
			h.Unfinished++
		}
	}
	return h
}
