package plugin

import (
	"context"
	"errors"
	"strings"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/approval"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/policy"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

func (b *backend) approvalPaths() []*framework.Path {
	text := func(d string) *framework.FieldSchema {
		return &framework.FieldSchema{Type: framework.TypeString, Description: d}
	}
	update := func(handle framework.OperationFunc) map[logical.Operation]framework.OperationHandler {
		return map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: &framework.PathOperation{Callback: handle, ForwardPerformanceStandby: true},
		}
	}
	return []*framework.Path{{
		Pattern: "operations/" + operationIDRegex + "/approve$",
		Fields: map[string]*framework.FieldSchema{
			"id":          text("Id of the operation."),
			"plan_digest": text("Digest of the plan that was reviewed. Required."),
			"comment":     text("In the approver's words."),
		},
		Operations:   update(b.pathOperationApprove),
		HelpSynopsis: "Approve the plan of an operation.",
		HelpDescription: `
For members of the groups that the policies of the operation name, but never for
who asked for it. The digest says which plan was reviewed; any other is refused.
Approving twice counts once. With the last approval that is needed the operation
is queued for an agent.`,
	}, {
		Pattern: "operations/" + operationIDRegex + "/reject$",
		Fields: map[string]*framework.FieldSchema{
			"id":          text("Id of the operation."),
			"reason":      text("Why, in the approver's words. Required."),
			"plan_digest": text("Digest of the plan that was reviewed; the present one when empty."),
		},
		Operations:   update(b.pathOperationReject),
		HelpSynopsis: "Reject the plan of an operation, which ends it.",
		HelpDescription: `
For whom may approve it, until an agent has begun to run it. One rejection is
enough, whatever approvals there are.`,
	}}
}

// ownOrToApprove shows an entity what it asked for, and what its groups may approve.
func ownOrToApprove(b *backend, req *logical.Request) (func(*operationRecord) bool, error) {
	who, err := b.identify(req)
	if err != nil {
		return nil, err
	}
	return func(r *operationRecord) bool {
		return r.Requester.EntityID == who.EntityID || approval.Approver(r.Decision.Approvals, who.Groups)
	}, nil
}

// waitsFor tells which operations an approval of the caller would bring further.
func (b *backend) waitsFor(req *logical.Request, known *people) (func(*operationRecord) (bool, error), error) {
	who, err := b.identify(req)
	if err != nil {
		return nil, err
	}
	return func(r *operationRecord) (bool, error) {
		if r.State != wire.StateAwaitingApproval || !approval.Approver(r.Decision.Approvals, who.Groups) {
			return false, nil
		}
		q, err := r.question(known, b.now())
		if err != nil {
			return false, err
		}
		if q.IsRequester(who.EntityID, who.Aliases) || approval.Counts(q, who.EntityID) {
			return false, nil
		}
		for _, need := range approval.Missing(approval.Status(q)) {
			if approval.Member(need.ApprovalNeed, who.Groups) {
				return true, nil
			}
		}
		return false, nil
	}, nil
}

// toApprove returns the operation of a request by somebody who may approve it.
func (b *backend) toApprove(ctx context.Context, req *logical.Request, d *framework.FieldData, known *people, what string) (*operationRecord, caller, error) {
	who, err := b.identify(req)
	if err != nil {
		return nil, caller{}, err
	}
	r, err := b.visibleOperation(ctx, req, fieldOf[string](d, "id"), ownOrToApprove)
	if err != nil {
		return nil, caller{}, err
	}
	q, err := r.question(known, b.now())
	if err != nil {
		return nil, caller{}, err
	}
	if q.IsRequester(who.EntityID, who.Aliases) {
		return nil, caller{}, &wire.Error{
			Code: wire.CodeDenied, Rule: policy.RuleApprovals, Reason: "nobody may " + what + " what they asked for themselves",
			Hint: "cancel it, or let a member of a group that may approve decide",
		}
	}
	return r, who, nil
}

func (b *backend) pathOperationApprove(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	known := b.people()
	r, who, err := b.toApprove(ctx, req, d, known, "approve")
	if err != nil {
		return nil, err
	}
	digest := fieldOf[string](d, "plan_digest")
	if digest == "" {
		return nil, &wire.Error{
			Code: wire.CodeInvalid, Field: "plan_digest", Reason: "is missing: an approval names the plan that was reviewed", Hint: "dbops plan " + r.ID,
		}
	}
	comment, err := freeText(d, "comment")
	if err != nil {
		return nil, err
	}
	if r.State == wire.StateAwaitingApproval {
		// An approval of what has changed meanwhile is worth nothing, and nobody
		// shall be asked for another one.
		err := b.endWaiting(ctx, req.Storage, r.ID, b.checkPins(ctx, req.Storage, r))
		if !passes(err) {
			return nil, err
		}
	}
	now := b.now().UTC()
	return b.decided(ctx, req, r.ID, known, comment, func(r *operationRecord) error {
		if err := r.approve(who, digest, comment, known, now); err != nil {
			return err
		}
		r.NotBefore = b.hoursOpen(r, now)
		return nil
	})
}

// passes tells whether a refusal is one that time lifts: it is looked at again
// when an agent comes.
func passes(err error) bool {
	var refused *wire.Error
	return err == nil || (errors.As(err, &refused) && !refused.RetryAt.IsZero())
}

func (b *backend) pathOperationReject(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	known := b.people()
	r, who, err := b.toApprove(ctx, req, d, known, "reject")
	if err != nil {
		return nil, err
	}
	reason, err := freeText(d, "reason")
	if err != nil {
		return nil, err
	}
	if reason = strings.TrimSpace(reason); reason == "" {
		return nil, invalidField("reason", "is missing: the requester has to know why")
	}
	digest, now := fieldOf[string](d, "plan_digest"), b.now().UTC()
	return b.decided(ctx, req, r.ID, known, reason, func(r *operationRecord) error { return r.reject(who, digest, reason, now) })
}

// decided changes the operation by what an approver said and answers it. The
// approver's words stand in the answer under comment, which audit devices show.
func (b *backend) decided(ctx context.Context, req *logical.Request, id string, known *people, words string, change func(*operationRecord) error) (*logical.Response, error) {
	next, err := b.takeWord(ctx, req.Storage, id, change, func(*operationRecord) {})
	if err != nil {
		return nil, err
	}
	return b.wordResponse(next, known, words)
}
