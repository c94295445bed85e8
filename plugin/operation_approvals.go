package plugin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/approval"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/policy"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// people remembers who entities are for the length of one request, since each
// look is a call to Vault.
type people struct {
	b     *backend
	found map[string]*approval.Person // nil: nobody
}

func (b *backend) people() *people { return &people{b: b, found: map[string]*approval.Person{}} }

// find returns the entity as identity knows it now, nil when there is none, or it
// is disabled, or was merged into another.
func (p *people) find(entity string) (*approval.Person, error) {
	if person, known := p.found[entity]; known {
		return person, nil
	}
	who, err := p.b.identifyEntity(entity)
	var nobody *wire.Error
	switch {
	case err == nil:
		p.found[entity] = &approval.Person{Groups: who.Groups, Aliases: who.Aliases}
	case errors.As(err, &nobody):
		p.found[entity] = nil
	default:
		return nil, err
	}
	return p.found[entity], nil
}

// question is what the approvals of r are judged by at that time.
func (r *operationRecord) question(known *people, now time.Time) (approval.Question, error) {
	q := approval.Question{
		Needs: r.Decision.Approvals, PlanDigest: r.PlanDigest, Requester: r.Requester.EntityID, RequesterAliases: r.RequesterAliases,
		Given: r.Given, People: map[string]approval.Person{}, Now: now,
	}
	entities := []string{r.Requester.EntityID}
	for _, g := range r.Given {
		entities = append(entities, g.EntityID)
	}
	for _, entity := range entities {
		person, err := known.find(entity)
		if err != nil {
			return approval.Question{}, err
		}
		if person != nil {
			q.People[entity] = *person
		}
	}
	return q, nil
}

// approvals returns what is shown of an operation: who has approved and, while
// that matters, who is still needed.
func (r *operationRecord) approvals(known *people, now time.Time) ([]wire.Approval, []wire.ApprovalStatus, error) {
	var given []wire.Approval
	for _, g := range r.Given {
		given = append(given, g.Approval)
	}
	if (r.State != wire.StateAwaitingApproval && r.State != wire.StateQueued) || len(r.Decision.Approvals) == 0 {
		return given, nil, nil
	}
	q, err := r.question(known, now)
	if err != nil {
		return nil, nil, err
	}
	for i, why := range approval.Verdicts(q) {
		given[i].NotCounted = why
	}
	return given, approval.Status(q), nil
}

// judged notes which approvals counted when a login that reaches data was asked for. Its
// receipt says so: nobody can ask identity about that time later.
func (r *operationRecord) judged(q *approval.Question) {
	if q == nil || len(q.Given) != len(r.Given) {
		return
	}
	for i, why := range approval.Verdicts(*q) {
		r.Given[i].NotCounted = why
	}
	r.ApprovalsAt = q.Now.UTC()
}

// awaitApproval ends the planning claim and leaves the rest to people.
func (r *operationRecord) awaitApproval(now time.Time) error {
	if err := r.become(wire.StateAwaitingApproval, now); err != nil {
		return err
	}
	r.endClaim(now)
	return nil
}

// lapsed tells whether approvals that were given are missing now by their age
// alone. Identity is not asked; that is done before anything is given out.
func (r *operationRecord) lapsed(now time.Time) bool {
	q := approval.Question{
		Needs: r.Decision.Approvals, PlanDigest: r.PlanDigest, Requester: r.Requester.EntityID, RequesterAliases: r.RequesterAliases,
		Given: r.Given, People: map[string]approval.Person{}, Now: now,
	}
	var groups []string
	for _, need := range q.Needs {
		groups = append(groups, need.Groups...)
	}
	for _, g := range r.Given {
		q.People[g.EntityID] = approval.Person{Groups: groups}
	}
	return !approval.Met(approval.Status(q))
}

// overdueApproval returns what has to happen to an operation that waits for
// people, or whose approvals ran out before an agent came.
func (r *operationRecord) overdueApproval(now time.Time) func(*operationRecord) error {
	switch {
	case r.State == wire.StateAwaitingApproval && now.Sub(r.PlannedAt) > approval.Wait(r.Decision.Approvals):
		return func(r *operationRecord) error {
			r.Result = &wire.Result{
				Code: wire.CodeExpired, Step: wire.StepPlan, Reason: fmt.Sprintf("not approved within %s", approval.Wait(r.Decision.Approvals)),
				Hint: "tell the approvers, then ask again; approvals_ttl of the policy says how long one holds",
			}
			return r.become(wire.StateExpired, now)
		}
	case r.State == wire.StateQueued && r.lapsed(now):
		return func(r *operationRecord) error { return r.become(wire.StateAwaitingApproval, now) }
	}
	return nil
}

// checkApprovals refuses when approvals that the plan needs do not count: never
// given, expired, or their giver is not a member any more. It returns what they were
// judged by.
func (b *backend) checkApprovals(r *operationRecord) (*approval.Question, error) {
	if len(r.Decision.Approvals) == 0 {
		return nil, nil
	}
	q, err := r.question(b.people(), b.now())
	if err != nil {
		return nil, err
	}
	missing := approval.Missing(approval.Status(q))
	if len(missing) == 0 {
		return &q, nil
	}
	return &q, &wire.Error{
		Code: wire.CodeDenied, Policy: missing[0].Policy, Rule: policy.RuleApprovals,
		Reason: "the plan's approvals do not count: " + needsText(missing), Hint: "ask again and have the new plan approved",
	}
}

func needsText(all []wire.ApprovalStatus) string {
	texts := make([]string, 0, len(all))
	for _, s := range all {
		texts = append(texts, s.String())
	}
	return strings.Join(texts, ", ")
}

// checkGround refuses when what the plan was decided on has changed, or its
// approvals do not count any more, and returns what these were judged by.
func (b *backend) checkGround(ctx context.Context, s logical.Storage, r *operationRecord) (*approval.Question, error) {
	if err := b.checkPins(ctx, s, r); err != nil {
		return nil, err
	}
	return b.checkApprovals(r)
}

// mayRun tells whether a queued operation still stands on what it was decided on
// and approved for, before an agent gets it. If not, it ends, or waits for
// approval again.
func (b *backend) mayRun(ctx context.Context, s logical.Storage, r *operationRecord) bool {
	err := b.checkPins(ctx, s, r)
	if err == nil {
		if _, err = b.checkApprovals(r); err == nil {
			return true
		}
		var missing *wire.Error
		if errors.As(err, &missing) {
			now := b.now().UTC()
			_, err = b.updateOperation(ctx, s, r.ID, func(r *operationRecord) error {
				if r.State != wire.StateQueued || r.Claim != nil {
					return errUnchanged
				}
				return r.become(wire.StateAwaitingApproval, now)
			})
		}
	} else {
		err = b.endWaiting(ctx, s, r.ID, err)
	}
	var why *wire.Error
	if err != nil && !errors.Is(err, errUnchanged) && !errors.As(err, &why) {
		b.Logger().Error("operation cannot be given to an agent", "operation_id", r.ID, "error", err)
	}
	return false
}

// endWaiting ends an operation that nobody works on, because why refuses it for
// good, and returns why. A refusal that time lifts, and a failure, leave it.
func (b *backend) endWaiting(ctx context.Context, s logical.Storage, id string, why error) error {
	var refused *wire.Error
	if !errors.As(why, &refused) || refused.Code.Info().Retry || !refused.RetryAt.IsZero() {
		return why
	}
	state := wire.StateFailed
	if refused.Code.Info().HTTP == http.StatusForbidden {
		state = wire.StateDenied
	}
	now := b.now().UTC()
	_, err := b.updateOperation(ctx, s, id, func(r *operationRecord) error {
		if r.Claim != nil || (r.State != wire.StateAwaitingApproval && r.State != wire.StateQueued) {
			return errUnchanged
		}
		r.Result = &wire.Result{Code: refused.Code, Reason: refused.Reason, Hint: refused.Hint, Step: wire.StepPlan}
		if r.Result.Hint == "" && refused.Code.Hint() == "" {
			r.Result.Hint = "settle what refuses it now, then ask again"
		}
		return r.become(state, now)
	})
	if err != nil && !errors.Is(err, errUnchanged) {
		return err
	}
	return why
}

// approve notes the consent of who, and queues the operation when nobody else is
// needed.
func (r *operationRecord) approve(who caller, digest, comment string, known *people, now time.Time) error {
	own := slices.IndexFunc(r.Given, func(g approval.Given) bool { return g.EntityID == who.EntityID && g.PlanDigest == digest })
	switch {
	case r.State.Final():
		return conflict("operation %s has ended: %s", r.ID, r.State)
	case r.State != wire.StateAwaitingApproval && own >= 0:
		return errUnchanged // the answer to it was lost
	case r.State == wire.StateRequested || r.State == wire.StatePlanning:
		return conflict("operation %s has no plan yet", r.ID)
	case r.State != wire.StateAwaitingApproval:
		return conflict("operation %s needs no approval any more: it is %s", r.ID, r.State)
	}
	if err := r.sameDigest(digest); err != nil {
		return err
	}
	changed := own < 0 || !r.holds(r.Given[own], who, now)
	if changed {
		given := approval.Given{
			Approval: wire.Approval{User: who.User, Time: now, PlanDigest: digest, Comment: comment}, Aliases: who.Aliases,
		}
		if own >= 0 {
			r.Given = slices.Delete(r.Given, own, own+1)
		}
		r.Given = append(r.Given, given)
		r.UpdatedAt = now
	}
	q, err := r.question(known, now)
	if err != nil {
		return err
	}
	if !approval.Counts(q, who.EntityID) {
		return &wire.Error{
			Code: wire.CodeDenied, Rule: policy.RuleApprovals,
			Reason: "an approval of this entity does not count: it is no member of a group that may approve, or one of its logins has approved already",
		}
	}
	if approval.Met(approval.Status(q)) {
		return r.become(wire.StateQueued, now)
	}
	if !changed {
		return errUnchanged
	}
	return nil
}

// holds tells whether an approval is young enough for every need that who may
// approve for, so that another one by the same entity would change nothing.
func (r *operationRecord) holds(given approval.Given, who caller, now time.Time) bool {
	return !slices.ContainsFunc(r.Decision.Approvals, func(need wire.ApprovalNeed) bool {
		return approval.Member(need, who.Groups) && now.Sub(given.Time) >= approval.TTL(need)
	})
}

func (r *operationRecord) sameDigest(digest string) error {
	if digest == r.PlanDigest {
		return nil
	}
	return &wire.Error{
		Code: wire.CodeConflict, Field: "plan_digest", Reason: fmt.Sprintf("the plan of operation %s is another one: %s", r.ID, r.PlanDigest),
		Hint: "read the plan again: dbops plan " + r.ID,
	}
}

// reject ends the operation by the word of who.
func (r *operationRecord) reject(who caller, digest, reason string, now time.Time) error {
	switch {
	case r.State == wire.StateDenied && r.Rejection != nil && r.Rejection.EntityID == who.EntityID:
		return errUnchanged // the answer to it was lost
	case r.State.Final():
		return conflict("operation %s has ended: %s", r.ID, r.State)
	case r.State != wire.StateAwaitingApproval && r.State != wire.StateQueued:
		return conflict("operation %s is %s: it cannot be rejected before its plan is there, nor after it began", r.ID, r.State)
	}
	if digest == "" {
		digest = r.PlanDigest
	}
	if err := r.sameDigest(digest); err != nil {
		return err
	}
	if err := r.become(wire.StateDenied, now); err != nil {
		return err
	}
	r.Rejection = &wire.Rejection{User: who.User, Time: now, PlanDigest: digest, Reason: reason}
	r.Result = &wire.Result{
		Code: wire.CodeRejected, Step: wire.StepPlan, Reason: fmt.Sprintf("rejected by %s: %s", who.Name, reason),
		Hint: "settle it with who rejected it, then ask again",
	}
	return nil
}

func conflict(format string, args ...any) *wire.Error {
	return &wire.Error{Code: wire.CodeConflict, Reason: fmt.Sprintf(format, args...)}
}
