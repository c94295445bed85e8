package plugin

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// acknowledgement is a person's word that a target was cleaned by hand.
type acknowledgement = wire.ReceiptAcknowledgement

// acknowledgePaths is for who looks after servers: what agents could not clean, they
// report, and somebody with rights on the server has to. It stands below all/ only,
// since the requester of an operation cannot know what is left at its target.
func (b *backend) acknowledgePaths() []*framework.Path {
	return []*framework.Path{{
		Pattern: "all/operations/" + operationIDRegex + "/acknowledge$",
		Fields: map[string]*framework.FieldSchema{
			"id":     {Type: framework.TypeString, Description: "Id of the operation."},
			"reason": {Type: framework.TypeString, Description: "What was done at the target, in words. Required."},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: &framework.PathOperation{Callback: b.pathAcknowledge, ForwardPerformanceStandby: true},
		},
		HelpSynopsis: "Say that the target of an operation was cleaned by hand.",
		HelpDescription: `
For an operation whose cleanup was given up (cleanup=failed), or that no agent has
taken for an hour (cleanup=pending), after somebody has removed what it left. Needs an identity and a reason; both stand in the operation, in
a fact, and in a new receipt that supersedes the one before. From then on its
retention runs.`,
	}}
}

func (b *backend) pathAcknowledge(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	who, err := b.identify(req)
	if err != nil {
		return nil, err
	}
	reason, err := reasonOf(d)
	if err != nil {
		return nil, err
	}
	r, err := b.visibleOperation(ctx, req, fieldOf[string](d, "id"), everything)
	if err != nil {
		return nil, err
	}
	said := acknowledgement{User: who.User, At: b.now().UTC(), Reason: reason}
	next, err := b.takeWord(ctx, req.Storage, r.ID, func(r *operationRecord) error { return r.acknowledge(said) }, func(r *operationRecord) {
		b.Logger().Info("cleanup acknowledged", "operation_id", r.ID, "entity_id", who.EntityID)
		b.noteAcknowledged(r)
		b.receiptSoon(req.Storage, r)
	})
	if err != nil {
		return nil, err
	}
	return b.wordResponse(next, b.people(), reason)
}

// acknowledge takes a person's word for what no agent could do.
func (r *operationRecord) acknowledge(said acknowledgement) error {
	switch known := r.Acknowledged; {
	case r.Cleanup == cleanupAcknowledged && known != nil && known.EntityID == said.EntityID && known.Reason == said.Reason:
		return errUnchanged // the answer to it was lost
	case r.Cleanup == cleanupAcknowledged && known != nil:
		return conflict("the target of operation %s is acknowledged as clean already, by %s", r.ID, known.Name)
	case r.Cleanup == cleanupPending && !r.untended(said.At) || r.Claim != nil:
		return &wire.Error{
			Code: wire.CodeConflict, Reason: fmt.Sprintf("operation %s is still to be cleaned by an agent", r.ID),
			Hint: fmt.Sprintf("wait until its cleanup is done or failed, or until no agent has taken it for %s", untendedAfter),
		}
	case r.Cleanup != cleanupFailed && r.Cleanup != cleanupPending:
		return conflict("nothing of operation %s is left to be cleaned", r.ID)
	}
	r.Cleanup, r.Acknowledged, r.UpdatedAt = cleanupAcknowledged, &said, said.At
	r.ReceiptDue = r.ReceiptDue || r.ReceiptDigest != "" // it says more than the last one
	return nil
}

// untendedAfter is how long a target waits to be cleaned before a person may have done
// it: the agents that may work on it poll far more often, if there are any left.
const untendedAfter = time.Hour

// untended reports that no agent has taken the cleanup it could have taken.
func (r *operationRecord) untended(now time.Time) bool {
	return r.Claim == nil && now.Sub(latest(r.CleanupSince, r.CleanupNotBefore)) >= untendedAfter
}

// noteAcknowledged keeps the fact: the audit of the request has neither the target nor
// what came of it.
func (b *backend) noteAcknowledged(r *operationRecord) {
	b.noteFact(wire.Fact{
		EventType: wire.EventCleanupAcknowledged, Severity: wire.SeverityWarning, Outcome: wire.OutcomeSuccess, OpID: r.ID,
		EntityID: r.Acknowledged.EntityID, Connection: r.Target, Detail: r.Acknowledged.Reason,
	})
}
