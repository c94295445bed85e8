package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/policy"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Pace of polls. Agents with work hear of a cancellation soon; all agents together
// stay below a rate that Vault does not notice.
const (
	busyPoll       = 250 * time.Millisecond
	idlePoll       = time.Second
	busyFor        = 30 * time.Second // after the last claim
	agentSeenFor   = time.Minute
	maxPollsPerSec = 200
)

// Bounds, in characters, of what is kept of an agent's words.
const (
	longestAuditProblem  = 512
	longestProgressTable = 256
	longestPollWord      = 64
)

// agentWorkPaths is the work protocol: all of it below one prefix per agent, so
// that one ACL template confines it.
func (b *backend) agentWorkPaths() []*framework.Path {
	operation := "agents/" + agentNameRegex + "/operations/" + operationIDRegex
	fence := func(more map[string]*framework.FieldSchema) map[string]*framework.FieldSchema {
		fields := map[string]*framework.FieldSchema{
			"name":  {Type: framework.TypeString, Description: "Name of the agent."},
			"id":    {Type: framework.TypeString, Description: "Id of the operation."},
			"fence": {Type: framework.TypeString, Description: "Fencing number of the claim."},
		}
		for name, schema := range more {
			fields[name] = schema
		}
		return fields
	}
	text := func(d string) *framework.FieldSchema {
		return &framework.FieldSchema{Type: framework.TypeString, Description: d}
	}
	path := func(pattern, synopsis string, fields map[string]*framework.FieldSchema, handle framework.OperationFunc) *framework.Path {
		return &framework.Path{
			Pattern: pattern, Fields: fields, HelpSynopsis: synopsis,
			HelpDescription: "Part of the work protocol of agents. Only the agent of that name may use it.",
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: &framework.PathOperation{Callback: handle, ForwardPerformanceStandby: true},
			},
		}
	}
	return []*framework.Path{
		path("agents/"+agentNameRegex+"/poll$", "Ask for work and tell what is being done. Answers at once.", map[string]*framework.FieldSchema{
			"name":          text("Name of the agent."),
			"version":       {Type: framework.TypeInt, Description: "Version of the protocol."},
			"boot":          text("Random per start of the agent."),
			"free_slots":    {Type: framework.TypeInt, Description: "Operations it would take."},
			"held":          {Type: framework.TypeStringSlice, Description: "Claims it works on, <operation id>:<fence>."},
			"progress":      {Type: framework.TypeStringSlice, Description: "One JSON progress per claim."},
			"audit_devices": text("Enabled audit devices it saw; -1 when it could not look."),
			"audit_problem": text("Why no audit device records events."),
			"audit_untuned": {Type: framework.TypeBool, Description: "The reason is that the mount hides events from audit devices."},
		}, b.pathAgentPoll),
		path(operation+"/plan$", "Send the plan, or in a running claim the shape seen in the copying snapshot.", fence(map[string]*framework.FieldSchema{
			"part": text("Number of the part, from 0."), "parts": text("Number of parts."), "text": text("The part."),
		}), b.pathAgentPlan),
		path(operation+"/accounts/inspect/(?P<side>source|target)$", "Lease the account that reads catalogs.", fence(map[string]*framework.FieldSchema{
			"side": text("source or target."),
		}), b.pathAgentAccount(true)),
		path(operation+"/accounts/(?P<side>source|target)$", "Lease the account that moves data.", fence(map[string]*framework.FieldSchema{
			"side": text("source or target."),
		}), b.pathAgentAccount(false)),
		path(operation+"/events$", "Send audit events.", fence(map[string]*framework.FieldSchema{
			wire.EventsKey: {Type: framework.TypeStringSlice, Description: "Events as JSON, continuing the agent's chain."},
		}), b.pathAgentEvents),
		path(operation+"/finish$", "End a claim.", fence(map[string]*framework.FieldSchema{
			"outcome": text("succeeded, failed or cancelled."), "code": text("Why it failed."), "reason": text("In a sentence."),
			"hint": text("The way out."), "step": text("Where it failed."), "rows": text("Rows moved."), "bytes": text("Bytes moved."),
			"tables": text("Tables moved."), "report": text("JSON text of the report."),
			"cleanup_needed": {Type: framework.TypeBool, Description: "Something of ours is left at the target."},
		}), b.pathAgentFinish),
	}
}

func (b *backend) pathAgentPoll(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	if err := b.loadOperations(ctx, req.Storage); err != nil {
		return nil, err
	}
	name := fieldOf[string](d, "name")
	agent, err := b.identifyAgent(req, name)
	if err != nil {
		return nil, err
	}
	if v := fieldOf[int](d, "version"); v < 1 || v > wire.Version {
		return nil, &wire.Error{
			Code: wire.CodeConflict, Field: "version", Reason: fmt.Sprintf("protocol version %d is not known; the plugin speaks up to %d", v, wire.Version),
			Hint: "upgrade the plugin before its agents",
		}
	}
	held := map[string]string{}
	for _, claim := range fieldOf[[]string](d, "held") {
		id, fence, ok := strings.Cut(claim, ":")
		if !ok {
			return nil, invalidField("held", "%q is not <operation id>:<fence>", claim)
		}
		held[id] = fence
	}
	now := b.now()
	response := wire.PollResponse{Claims: []wire.Claim{}, Cancel: []string{}, Drop: []string{}}

	defer b.ops.lock(prefixAgent + name)() // two polls at once must not share a free slot
	mine := b.held(name)
	b.notePoll(name, d, mine, held, now)
	for _, r := range mine {
		if held[r.ID] != r.Claim.Fence { // the answer that told it was lost
			claim, err := b.claimOf(ctx, req.Storage, r)
			if err != nil {
				b.Logger().Error("claim cannot be told again", "operation_id", r.ID, "agent", name, "error", err)
				continue
			}
			response.Claims = append(response.Claims, claim)
		}
		if r.CancelRequested && r.Claim.Phase != wire.PhaseCleanup {
			response.Cancel = append(response.Cancel, r.ID)
		}
	}
	for id, fence := range held {
		// An older claim on what it still holds is not dropped: the new one is
		// among Claims and replaces it.
		if !slices.ContainsFunc(mine, func(r *operationRecord) bool { return r.ID == id }) {
			response.Drop = append(response.Drop, id+":"+fence)
		}
	}
	slices.Sort(response.Drop)

	devices, err := strconv.Atoi(fieldOf[string](d, "audit_devices"))
	audited := err == nil && devices > 0
	locked, err := b.lockdownRecord(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	free := min(fieldOf[int](d, "free_slots"), agent.MaxOperations-len(mine))
	if audited && !locked.Locked {
		for _, r := range b.ops.busyOperations() {
			if free <= 0 {
				break
			}
			claim, err := b.claim(ctx, req.Storage, r, name, agent, now)
			if err != nil {
				return nil, err
			}
			if claim != nil {
				response.Claims = append(response.Claims, *claim)
				free--
			}
		}
	}
	if audited {
		response.Facts = b.offerFacts(name, now)
	}
	response.NextPollMS = b.nextPoll(name, len(response.Claims) > 0 || len(mine) > 0, now).Milliseconds()
	if response.Chain, err = b.chain(ctx, req.Storage, name); err != nil {
		return nil, err
	}
	data, err := responseData(response)
	if err != nil {
		return nil, err
	}
	return &logical.Response{Data: data}, nil
}

// notePoll remembers what the agent said.
func (b *backend) notePoll(name string, d *framework.FieldData, mine []*operationRecord, held map[string]string, now time.Time) {
	o := b.ops
	o.mu.Lock()
	defer o.mu.Unlock()
	heard := o.heard[name]
	heard.At, heard.Boot = now, firstRunes(fieldOf[string](d, "boot"), longestPollWord)
	heard.FreeSlots, heard.AuditDevices = fieldOf[int](d, "free_slots"), firstRunes(fieldOf[string](d, "audit_devices"), longestPollWord)
	heard.AuditProblem, heard.AuditUntuned = firstRunes(fieldOf[string](d, "audit_problem"), longestAuditProblem), fieldOf[bool](d, "audit_untuned")
	o.heard[name] = heard
	for _, r := range mine {
		if held[r.ID] == r.Claim.Fence {
			o.claimHeard[r.ID] = now
		}
	}
	for _, text := range fieldOf[[]string](d, "progress") {
		var p wire.Progress
		if json.Unmarshal([]byte(text), &p) != nil || (p.Step != "" && !slices.Contains(wire.Steps(), p.Step)) {
			continue // shown to people only
		}
		p.Table = firstRunes(p.Table, longestProgressTable)
		if slices.ContainsFunc(mine, func(r *operationRecord) bool { return r.ID == p.OperationID }) {
			o.progress[p.OperationID] = p
		}
	}
}

// noteHeard remembers that the holder of the operation's claim spoke.
func (b *backend) noteHeard(id string) {
	b.ops.mu.Lock()
	b.ops.claimHeard[id] = b.now()
	b.ops.mu.Unlock()
}

// offer returns the phase in which the agent may claim the operation now, or "".
func (b *backend) offer(r *operationRecord, name string, agent agentRecord, now time.Time) wire.Phase {
	if r.Claim != nil {
		return ""
	}
	o := b.ops
	o.mu.RLock()
	source, target := o.connections[r.Source], o.connections[r.Target]
	ending, started := o.ending[r.ID], o.started
	taken := o.targetTaken(r)
	o.mu.RUnlock()
	if ending { // accounts of the new claim would be ended with the old ones
		return ""
	}
	if !o.agentPermitted(r, name) {
		return ""
	}
	if taken { // one at a time: the last to switch would win, and undo the other's work
		return ""
	}
	switch {
	case r.State == wire.StateRequested && !agent.Drain && source.permits(name) && target.permits(name):
		return wire.PhasePlanning
	case r.State == wire.StateQueued && !agent.Drain && source.permits(name) && target.permits(name):
		return wire.PhaseRunning
	case r.State.Final() && r.Cleanup == cleanupPending && target.permits(name) && !now.Before(r.CleanupNotBefore):
		waited := now.Sub(latest(r.CleanupSince, started)) > agent.grace()
		own := r.LastClaim != nil && r.LastClaim.Agent == name
		if waited || (own && !r.EndAccounts) {
			return wire.PhaseCleanup
		}
	}
	return ""
}

// agentPermitted tells whether the agent is one that the policies which allowed
// the operation let take it.
func (o *operationState) agentPermitted(r *operationRecord, name string) bool {
	o.mu.RLock()
	labels := o.agents[name].Labels
	o.mu.RUnlock()
	return !slices.ContainsFunc(r.Decision.Agents, func(need wire.AgentNeed) bool { return !policy.AgentMatches(need, name, labels) })
}

// targetTaken reports whether an agent works on another operation into the same
// database, under this or another name of it. The caller holds mu.
func (o *operationState) targetTaken(r *operationRecord) bool {
	for id := range o.busy {
		if other := o.operations[id]; id != r.ID && other.Claim != nil && o.sameTarget(r, other) {
			return true
		}
	}
	return false
}

// sameTarget tells whether two operations are into one database, as far as it is
// known. The caller holds mu.
func (o *operationState) sameTarget(r, other *operationRecord) bool {
	if other.Target == r.Target {
		return true
	}
	mine, theirs := o.connections[r.Target].Identity, o.connections[other.Target].Identity
	return mine != nil && theirs != nil && mine.Same(theirs.ServerIdentity)
}

// replacedBy returns the operation that put another database in the target's place
// after r was planned, "" for none. One target is worked on by one operation at a
// time, so each ran wholly before or wholly after the planning.
func (o *operationState) replacedBy(r *operationRecord) string {
	if r.PlannedAt.IsZero() {
		return ""
	}
	o.mu.RLock()
	defer o.mu.RUnlock()
	for id, other := range o.operations {
		replaced := other.Switched || other.State == wire.StateSucceeded
		if id != r.ID && replaced && other.StartedAt.After(r.PlannedAt) && o.sameTarget(r, other) {
			return id
		}
	}
	return ""
}

// claim gives the operation to the agent when it may have it; nil when not.
func (b *backend) claim(ctx context.Context, s logical.Storage, r *operationRecord, name string, agent agentRecord, now time.Time) (*wire.Claim, error) {
	phase := b.offer(r, name, agent, now)
	if phase == "" {
		return nil, nil
	}
	_, endpointsErr := b.endpoints(ctx, s, r)
	var gone *wire.Error
	if endpointsErr != nil && (!errors.As(endpointsErr, &gone) || gone.Code != wire.CodeNotFound) {
		// One operation whose connection cannot be read must not keep the others
		// from agents.
		b.Logger().Error("operation cannot be given to an agent", "operation_id", r.ID, "error", endpointsErr)
		return nil, nil
	}
	if phase == wire.PhaseRunning && gone == nil && !b.mayRun(ctx, s, r) {
		return nil, nil
	}
	at := now.UTC()
	b.ops.claiming.Lock() // two agents at once must not share a target
	defer b.ops.claiming.Unlock()
	r, err := b.updateOperation(ctx, s, r.ID, func(r *operationRecord) error {
		if b.offer(r, name, agent, now) != phase {
			return errUnchanged
		}
		if gone != nil {
			return r.withoutConnections(gone, phase, at)
		}
		switch phase {
		case wire.PhasePlanning:
			if err := r.become(wire.StatePlanning, at); err != nil {
				return err
			}
			r.PlanningAttempts++
			r.StartedAt = at
		case wire.PhaseRunning:
			if err := r.become(wire.StateRunning, at); err != nil {
				return err
			}
			r.StartedAt = at
		case wire.PhaseCleanup:
			r.CleanupAttempts++
		}
		r.startClaim(name, phase, at)
		return nil
	})
	if errors.Is(err, errUnchanged) {
		return nil, nil
	}
	if err != nil || r.Claim == nil {
		return nil, err
	}
	claim, err := b.claimOf(ctx, s, r)
	if err != nil {
		return nil, err
	}
	b.Logger().Info("operation claimed", "operation_id", r.ID, "agent", name, "phase", phase, "fence", r.Claim.Fence)
	return &claim, nil
}

// withoutConnections ends what cannot go on because a connection was removed.
func (r *operationRecord) withoutConnections(gone *wire.Error, phase wire.Phase, now time.Time) error {
	if phase == wire.PhaseCleanup {
		r.Cleanup, r.UpdatedAt = cleanupFailed, now
		return nil
	}
	if err := r.become(wire.StateFailed, now); err != nil {
		return err
	}
	r.Result = &wire.Result{Code: gone.Code, Reason: gone.Reason, Hint: gone.Hint}
	return nil
}

func (b *backend) endpoints(ctx context.Context, s logical.Storage, r *operationRecord) (map[wire.Side]wire.Endpoint, error) {
	source, _, _, err := b.operationEndpoint(ctx, s, r.Source)
	if err != nil {
		return nil, err
	}
	target, _, _, err := b.operationEndpoint(ctx, s, r.Target)
	if err != nil {
		return nil, err
	}
	return map[wire.Side]wire.Endpoint{wire.Source: source, wire.Target: target}, nil
}

// claimOf is the claim as its agent is told.
func (b *backend) claimOf(ctx context.Context, s logical.Storage, r *operationRecord) (wire.Claim, error) {
	endpoints, err := b.endpoints(ctx, s, r)
	if err != nil {
		return wire.Claim{}, err
	}
	claim := wire.Claim{
		OperationID: r.ID, Fence: r.Claim.Fence, Phase: r.Claim.Phase, Kind: r.Kind,
		Source: endpoints[wire.Source], Target: endpoints[wire.Target], Options: r.Options, Requester: r.Requester,
		AccountTTLMilli:  claimTTL(r.Claim.Phase).Milliseconds(),
		MaxDurationMilli: r.left(b.now()).Milliseconds(),
		MaxBytes:         r.Decision.MaxBytes, MaxRows: r.Decision.MaxRows,
	}
	if r.Claim.Phase == wire.PhaseRunning {
		claim.PlanDigest = r.PlanDigest
	}
	return claim, nil
}

func claimTTL(phase wire.Phase) time.Duration {
	if phase == wire.PhasePlanning {
		return inspectAccountTTL
	}
	return operationAccountTTL
}

// nextPoll says when the agent shall ask again.
func (b *backend) nextPoll(name string, holds bool, now time.Time) time.Duration {
	o := b.ops
	o.mu.Lock()
	defer o.mu.Unlock()
	heard := o.heard[name]
	if holds {
		heard.BusyAt = now
		o.heard[name] = heard
	}
	interval := func(a agentHeard) time.Duration {
		if !a.BusyAt.IsZero() && now.Sub(a.BusyAt) < busyFor {
			return busyPoll
		}
		return idlePoll
	}
	var perSecond float64
	for _, other := range o.heard {
		if now.Sub(other.At) < agentSeenFor {
			perSecond += float64(time.Second) / float64(interval(other))
		}
	}
	next := float64(interval(heard)) * max(1, perSecond/maxPollsPerSec)
	return time.Duration(next * (0.8 + 0.4*rand.Float64())) //nolint:gosec // jitter
}
