package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/approval"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/policy"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// agentOperation returns the operation of a request of the work protocol, after
// the binding of the agent was checked.
func (b *backend) agentOperation(ctx context.Context, req *logical.Request, d *framework.FieldData) (*operationRecord, string, error) {
	if err := b.loadOperations(ctx, req.Storage); err != nil {
		return nil, "", err
	}
	name := fieldOf[string](d, "name")
	if _, err := b.identifyAgent(req, name); err != nil {
		return nil, "", err
	}
	id := fieldOf[string](d, "id")
	r := b.ops.operation(id)
	if r == nil {
		return nil, "", errNoOperation(id)
	}
	return r, name, nil
}

func (b *backend) pathAgentPlan(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	r, agent, err := b.agentOperation(ctx, req, d)
	if err != nil {
		return nil, err
	}
	fence, text := fieldOf[string](d, "fence"), fieldOf[string](d, "text")
	parts, err := strconv.Atoi(fieldOf[string](d, "parts"))
	if err != nil || parts < 1 || parts > maxTextParts {
		return nil, invalidField("parts", "must be a number from 1 to %d", maxTextParts)
	}
	part, err := strconv.Atoi(fieldOf[string](d, "part"))
	if err != nil || part < 0 || part >= parts {
		return nil, invalidField("part", "must be a number from 0 to %d", parts-1)
	}
	if len(text) > wire.PlanPartBytes {
		return nil, invalidField("text", "is longer than %d bytes", wire.PlanPartBytes)
	}

	claim, err := r.heldBy(agent, fence)
	if err != nil {
		if r.PlanFence == fence && slices.Contains(r.Agents, agent) { // its answer was lost
			if part < parts-1 {
				return b.planResponse(wire.PlanResponse{})
			}
			if wire.Digest([]byte(text)) == r.PlanLastPart {
				return b.planAnswer(ctx, req.Storage, r, agent)
			}
		}
		return nil, err
	}
	b.noteHeard(r.ID)
	whole, complete, err := b.collect(r.ID, fence, part, parts, text)
	if err != nil {
		return nil, err
	}
	if !complete {
		return b.planResponse(wire.PlanResponse{})
	}
	switch claim.Phase {
	case wire.PhasePlanning:
		r, err = b.acceptPlan(ctx, req.Storage, r, agent, fence, whole, wire.Digest([]byte(text)))
	case wire.PhaseRunning:
		r, err = b.acceptShape(ctx, req.Storage, r, agent, fence, whole)
	default:
		return nil, &wire.Error{Code: wire.CodeConflict, Reason: "a claim for cleaning up has no plan"}
	}
	if err != nil {
		return nil, err
	}
	return b.planAnswer(ctx, req.Storage, r, agent)
}

func (b *backend) planResponse(response wire.PlanResponse) (*logical.Response, error) {
	data, err := responseData(response)
	if err != nil {
		return nil, err
	}
	return &logical.Response{Data: data}, nil
}

// planAnswer tells what became of the plan.
func (b *backend) planAnswer(ctx context.Context, s logical.Storage, r *operationRecord, agent string) (*logical.Response, error) {
	response := wire.PlanResponse{State: r.State, PlanDigest: r.PlanDigest, ShapeDigest: r.ShapeDigest, Decision: &r.Decision}
	if r.Claim != nil && r.Claim.Agent == agent && r.Claim.Phase == wire.PhaseRunning && !r.ShapeConfirmed {
		claim, err := b.claimOf(ctx, s, r)
		if err != nil {
			return nil, err
		}
		response.Claim = &claim
	}
	return b.planResponse(response)
}

// collect keeps one part and returns the text when it is whole; it is then
// forgotten.
func (b *backend) collect(id, fence string, part, parts int, text string) (whole string, complete bool, err error) {
	o := b.ops
	o.mu.Lock()
	t := o.parts[id]
	if t == nil || t.fence != fence || len(t.parts) != parts || (part == 0 && t.begun()) {
		t = &textParts{fence: fence, parts: make([]*string, parts)}
		o.parts[id] = t
	}
	o.mu.Unlock()
	whole, complete, err = t.add(part, text)
	if complete || err != nil {
		o.mu.Lock()
		if o.parts[id] == t {
			delete(o.parts, id)
		}
		o.mu.Unlock()
	}
	return whole, complete, err
}

// readPlan reads what the plugin needs of a plan's text.
func readPlan(r *operationRecord, text string) (wire.Plan, wire.ShapeHead, error) {
	var sent struct {
		wire.Plan
		Logins json.RawMessage `json:"logins"` // under whatever case: the decoder takes any
	}
	if err := json.Unmarshal([]byte(text), &sent); err != nil {
		return wire.Plan{}, wire.ShapeHead{}, invalidField("text", "is not a plan: %s", jsonProblem(err))
	}
	if sent.Logins != nil {
		return wire.Plan{}, wire.ShapeHead{}, invalidField("text", "a plan's logins are the plugin's to say")
	}
	plan := sent.Plan
	if plan.Version != 1 {
		return wire.Plan{}, wire.ShapeHead{}, invalidField("text", "plan version %d is not known", plan.Version)
	}
	var head wire.ShapeHead
	if err := json.Unmarshal(plan.Shape, &head); err != nil {
		return wire.Plan{}, wire.ShapeHead{}, invalidField("text", "the plan's shape cannot be read: %s", jsonProblem(err))
	}
	if head.Kind != r.Kind {
		return wire.Plan{}, wire.ShapeHead{}, invalidField("text", "the plan is for %q, the operation is a %s", head.Kind, r.Kind)
	}
	if head.Source.Server == "" || head.Target.Server == "" {
		return wire.Plan{}, wire.ShapeHead{}, invalidField("text", "the plan does not say which servers it is about")
	}
	for name, value := range r.Options {
		if planned, ok := head.Options[name]; ok && planned != value {
			return wire.Plan{}, wire.ShapeHead{}, invalidField("text", "the plan has option %s=%s, asked was %s", name, planned, value)
		}
	}
	return plan, head, nil
}

// jsonProblem says what is wrong with a text without quoting any of it: object
// names are fine, but literals in defaults and checks are not.
func jsonProblem(err error) string {
	if at, ok := err.(*json.SyntaxError); ok { //nolint:errorlint // encoding/json returns it bare
		return fmt.Sprintf("syntax error at byte %d", at.Offset)
	}
	return "a field has the wrong type"
}

// acceptPlan decides on the plan, stores it, and gives the running claim when
// nothing is in the way. Where people have to approve first, the claim ends.
func (b *backend) acceptPlan(ctx context.Context, s logical.Storage, r *operationRecord, agent, fence, text, lastPart string) (*operationRecord, error) {
	plan, head, err := readPlan(r, text)
	if err != nil {
		return nil, err
	}
	decision, pinned, sides, err := b.decideOnPlan(ctx, s, r, head, &plan.Estimates)
	if err != nil {
		return nil, err
	}
	if decision.Allowed {
		logins, err := b.runningLogins(ctx, s, sides)
		if err != nil {
			return nil, err
		}
		pinned.pinLogins(logins)
		if text, err = withLogins(text, logins); err != nil {
			return nil, err
		}
	}
	if decision.Rule != policy.RuleServerIdentity {
		if err := b.recordIdentities(ctx, s, sides); err != nil {
			return nil, err
		}
	}
	// Written before the lock is taken, which operations share: a large plan takes long.
	written, err := draft(ctx, s, prefixPlan+r.ID+"/", fence, text)
	if err != nil {
		return nil, err
	}
	now := b.now().UTC()
	next, err := b.updateOperation(ctx, s, r.ID, func(r *operationRecord) error {
		if _, err := r.heldBy(agent, fence); err != nil {
			return err
		}
		// Not before: an agent that has lost the claim replaces nobody's plan.
		if err := written.publish(ctx, s); err != nil {
			return err
		}
		// Over the agent's bytes and the logins behind them.
		r.PlanDigest, r.ShapeDigest = wire.Digest([]byte(text)), wire.Digest(plan.Shape)
		r.Estimates, r.Decision, r.Pins = &plan.Estimates, decision, pinned
		r.PlanFence, r.PlanLastPart, r.PlannedAt = fence, lastPart, now
		if r.CancelRequested {
			return r.cancel(now)
		}
		if !decision.Allowed {
			if err := r.become(wire.StateDenied, now); err != nil {
				return err
			}
			e := refusal(decision)
			r.Result = &wire.Result{Code: e.Code, Reason: e.Reason, Hint: e.Hint, Step: wire.StepPlan}
			r.endClaim(now)
			return nil
		}
		if len(decision.Approvals) > 0 {
			return r.awaitApproval(now)
		}
		if err := r.become(wire.StateQueued, now); err != nil {
			return err
		}
		r.endClaim(now)
		if !b.ops.agentPermitted(r, agent) {
			return nil // queued for one that is
		}
		if err := r.become(wire.StateRunning, now); err != nil {
			return err
		}
		r.startClaim(agent, wire.PhaseRunning, now)
		return nil
	})
	b.settleDraft(ctx, s, r.ID, written, next != nil)
	if err != nil {
		return nil, err
	}
	if next == nil {
		return nil, errNoOperation(r.ID)
	}
	b.noteHeard(r.ID)
	b.afterEnd(s, next)
	return next, nil
}

// settleDraft settles a text of an operation. What that leaves behind goes with the
// operation.
func (b *backend) settleDraft(ctx context.Context, s logical.Storage, id string, d *draftText, recorded bool) {
	if d == nil {
		return
	}
	if err := d.settle(ctx, s, recorded && d.published); err != nil {
		b.Logger().Warn("what nobody reads of a text was not removed", "operation_id", id, "error", err)
	}
}

// afterEnd begins to end the accounts of an operation nobody holds any more, or to
// make the receipt of one that has none.
func (b *backend) afterEnd(s logical.Storage, r *operationRecord) {
	if r.Claim == nil && r.EndAccounts {
		b.endAccountsSoon(s, r.ID)
	}
	b.receiptSoon(s, r)
}

// decideOnPlan evaluates policies on what the inspection found, and pins all that
// the decision rests on.
func (b *backend) decideOnPlan(ctx context.Context, s logical.Storage, r *operationRecord, head wire.ShapeHead, estimates *wire.Estimates) (wire.Decision, *pins, *operationSides, error) {
	sides, err := b.operationSides(ctx, s, r.Operation)
	if err != nil {
		return wire.Decision{}, nil, nil, err
	}
	b.askOthers(ctx, s, sides)
	deny := func(code wire.Code, rule, reason string) (wire.Decision, *pins, *operationSides, error) {
		return wire.Decision{Code: code, Rule: rule, Reason: reason}, nil, sides, nil
	}
	for _, side := range sides.both() {
		seen := head.Source
		if side.side == wire.Target {
			seen = head.Target
		}
		name := side.endpoint.Connection
		if seen.Engine != side.endpoint.Engine || seen.Database != side.endpoint.Database {
			return deny(wire.CodeDenied, policy.RuleServerIdentity,
				fmt.Sprintf("connection %s is %s database %q, inspected was %s database %q", name, side.endpoint.Engine, side.endpoint.Database, seen.Engine, seen.Database))
		}
		if known := side.facts.Identity; known != nil && known.Config == side.config && known.Server != seen.Server {
			return deny(wire.CodeDenied, policy.RuleServerIdentity,
				fmt.Sprintf("connection %s led to another server before; if that is right, write connections/%s forget_identity=true", name, name))
		}
		own, err := b.ownLook(ctx, s, r.ID, side.side, name)
		if err != nil {
			return wire.Decision{}, nil, nil, err
		}
		if own != seen.Server {
			// What an agent says of a server must not lead around the policies for it.
			return deny(wire.CodeDenied, policy.RuleServerIdentity,
				fmt.Sprintf("connection %s leads Vault to another server than the one the agent says to have inspected", name))
		}
		side.identity, side.inspected = &seen, true
	}
	if head.Source.Same(head.Target) {
		e := sameDatabase(sides.source.endpoint, sides.target.endpoint, "the same database of one server")
		return deny(e.Code, e.Rule, e.Reason)
	}
	decision, pinned, err := b.decideAgain(r, sides, estimates)
	return decision, pinned, sides, err
}

// decideAgain evaluates policies on an operation that was admitted before, for its
// requester as identity knows them now.
func (b *backend) decideAgain(r *operationRecord, sides *operationSides, estimates *wire.Estimates) (wire.Decision, *pins, error) {
	who, err := b.identifyEntity(r.Requester.EntityID)
	if err != nil {
		if e, ok := err.(*wire.Error); ok { //nolint:errorlint // ours, returned bare
			return wire.Decision{Code: e.Code, Rule: e.Rule, Reason: e.Reason}, nil, nil
		}
		return wire.Decision{}, nil, err
	}
	ask := b.policyRequest(who, r.Kind, sides)
	ask.Estimates = estimates
	set := b.ops.policySet()
	decision := fulfillable(set.Evaluate(ask, b.now()))
	b.metrics.decided(decision)
	pinned := &pins{
		SourceConfig: sides.source.config, TargetConfig: sides.target.config, PolicyVersions: policyVersions(set.Policies(), decision.Policies),
		SourceServer: sides.source.server(), TargetServer: sides.target.server(),
	}
	if pinned.SourceFacts, err = sides.source.facts.factsDigest(); err != nil {
		return wire.Decision{}, nil, err
	}
	if pinned.TargetFacts, err = sides.target.facts.factsDigest(); err != nil {
		return wire.Decision{}, nil, err
	}
	if pinned.Policies, err = policiesDigest(set.Policies(), decision.Policies); err != nil {
		return wire.Decision{}, nil, err
	}
	return decision, pinned, nil
}

// policiesDigest is the digest of the named policies as they are now.
func policiesDigest(policies []policy.Policy, names []string) (string, error) {
	matching := slices.DeleteFunc(slices.Clone(policies), func(p policy.Policy) bool { return !slices.Contains(names, p.Name) })
	slices.SortFunc(matching, func(x, y policy.Policy) int { return strings.Compare(x.Name, y.Name) })
	content, err := json.Marshal(matching)
	if err != nil {
		return "", fmt.Errorf("encode policies: %w", err)
	}
	return wire.Digest(content), nil
}

// recordIdentities notes on both connections where they lead.
func (b *backend) recordIdentities(ctx context.Context, s logical.Storage, sides *operationSides) error {
	for _, side := range sides.both() {
		if !side.inspected {
			continue
		}
		identity := identityRecord{ServerIdentity: *side.identity, Config: side.config}
		if known := side.facts.Identity; known != nil && *known == identity {
			continue
		}
		err := b.updateConnection(ctx, s, side.endpoint.Connection, func(c *connectionRecord) error {
			c.Identity = &identity
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// checkPins refuses when anything that the plan was decided on has changed.
func (b *backend) checkPins(ctx context.Context, s logical.Storage, r *operationRecord) error {
	sides, err := b.operationSides(ctx, s, r.Operation)
	if err != nil {
		return err
	}
	for _, side := range sides.both() {
		side.inspected = side.identity != nil
	}
	b.askOthers(ctx, s, sides)
	decision, now, err := b.decideAgain(r, sides, r.Estimates)
	if err != nil {
		return err
	}
	if !decision.Allowed {
		err := refusal(decision)
		// It is no use to wait for a time at which policies allow what their change
		// refuses then.
		if passes(err) && r.Pins != nil && now != nil && r.Pins.Policies != now.Policies {
			return planChanged("a policy")
		}
		return err
	}
	logins, err := b.runningLogins(ctx, s, sides)
	var unusable *wire.Error
	switch {
	case errors.As(err, &unusable): // and is not what was pinned
	case err != nil:
		return err
	default:
		now.pinLogins(logins)
	}
	switch was := r.Pins; {
	case was == nil:
		return planChanged("everything")
	case was.SourceLogin == pinnedLogin{} || was.TargetLogin == pinnedLogin{}:
		return &wire.Error{
			Code: wire.CodePlanChanged, Reason: "the plan is one of an earlier version of the plugin, which did not say what logins are granted",
			Hint: "ask again",
		}
	case was.SourceConfig != now.SourceConfig:
		return planChanged("config/" + r.Source)
	case was.TargetConfig != now.TargetConfig:
		return planChanged("config/" + r.Target)
	case was.SourceFacts != now.SourceFacts:
		return planChanged("connections/" + r.Source)
	case was.TargetFacts != now.TargetFacts:
		return planChanged("connections/" + r.Target)
	case was.SourceLogin != now.SourceLogin:
		return planChanged("roles/" + was.SourceLogin.Role)
	case was.TargetLogin != now.TargetLogin:
		return planChanged("roles/" + was.TargetLogin.Role)
	case was.SourceServer != now.SourceServer:
		return planChanged("the server behind connection " + r.Source)
	case was.TargetServer != now.TargetServer:
		return planChanged("the server behind connection " + r.Target)
	case was.Policies != now.Policies:
		return planChanged("a policy")
	}
	if by := b.ops.replacedBy(r); by != "" {
		return planChanged(fmt.Sprintf("the target, which operation %s replaced,", by))
	}
	return nil
}

func planChanged(what string) *wire.Error {
	return &wire.Error{Code: wire.CodePlanChanged, Reason: what + " changed after the plan was decided on", Hint: "ask again: it is planned anew"}
}

// checkPinned refuses when what is known of one side now is not what the plan was
// decided on. It is for what is about to be used, after [backend.checkPins].
func (r *operationRecord) checkPinned(side wire.Side, config string, facts connectionRecord) error {
	if r.Pins == nil {
		return planChanged("everything")
	}
	name, pinnedConfig, pinnedFacts := r.Source, r.Pins.SourceConfig, r.Pins.SourceFacts
	if side == wire.Target {
		name, pinnedConfig, pinnedFacts = r.Target, r.Pins.TargetConfig, r.Pins.TargetFacts
	}
	digest, err := facts.factsDigest()
	switch {
	case err != nil:
		return err
	case config != pinnedConfig:
		return planChanged("config/" + name)
	case digest != pinnedFacts:
		return planChanged("connections/" + name)
	}
	return nil
}

// failByPlugin ends an operation whose agent asked for something that is refused
// for good, and returns the refusal for the agent. Judged is what its approvals were
// looked at by, nil when they were not.
func (b *backend) failByPlugin(ctx context.Context, s logical.Storage, id, agent, fence string, step wire.Step, why *wire.Error, judged *approval.Question) error {
	now := b.now().UTC()
	next, err := b.updateOperation(ctx, s, id, func(r *operationRecord) error {
		if _, err := r.heldBy(agent, fence); err != nil {
			return err
		}
		r.judged(judged)
		return r.fail(wire.Result{Code: why.Code, Reason: why.Reason, Hint: why.Hint, Step: step}, now)
	})
	if err != nil {
		return err
	}
	b.afterEnd(s, next)
	return why
}

// acceptShape compares the shape seen in the copying snapshot with the planned one.
func (b *backend) acceptShape(ctx context.Context, s logical.Storage, r *operationRecord, agent, fence, text string) (*operationRecord, error) {
	if r.CancelRequested && !r.ShapeConfirmed {
		return nil, cancelRequested(r.ID)
	}
	if wire.Digest([]byte(text)) != r.ShapeDigest {
		return nil, b.failByPlugin(ctx, s, r.ID, agent, fence, wire.StepSnapshot, &wire.Error{
			Code: wire.CodePlanChanged, Reason: "the source or the target is not what was planned any more", Hint: "ask again for a new plan",
		}, nil)
	}
	if r.ShapeConfirmed {
		return r, nil
	}
	now := b.now().UTC()
	return b.updateOperation(ctx, s, r.ID, func(r *operationRecord) error {
		if _, err := r.heldBy(agent, fence); err != nil {
			return err
		}
		r.ShapeConfirmed = true
		r.UpdatedAt = now
		return nil
	})
}

func cancelRequested(id string) *wire.Error {
	return &wire.Error{Code: wire.CodeCancelled, Reason: fmt.Sprintf("operation %s is to be cancelled", id)}
}
