package plugin

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/approval"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// pathAgentAccount leases the account of one side to the agent that holds the
// claim. Reading it again ends the account before and makes a new one.
func (b *backend) pathAgentAccount(inspect bool) framework.OperationFunc {
	return func(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
		r, agent, err := b.agentOperation(ctx, req, d)
		if err != nil {
			return nil, err
		}
		fence, side := fieldOf[string](d, "fence"), wire.Side(fieldOf[string](d, "side"))
		claim, err := r.heldBy(agent, fence)
		if err != nil {
			return nil, err
		}
		b.noteHeard(r.ID)
		purpose := claim.Phase.Purposes()[side]
		if purpose == "" || (purpose == wire.PurposeInspect) != inspect {
			return nil, &wire.Error{
				Code: wire.CodeConflict, Reason: fmt.Sprintf("a claim for %s has no such account on the %s", claim.Phase, side),
			}
		}
		if r.CancelRequested && claim.Phase != wire.PhaseCleanup && !r.ShapeConfirmed {
			return nil, cancelRequested(r.ID) // nothing was begun that needs it for undoing
		}
		var judged *approval.Question
		if claim.Phase == wire.PhaseRunning {
			if judged, err = b.checkGround(ctx, req.Storage, r); err != nil {
				var why *wire.Error
				if errors.As(err, &why) {
					return nil, b.failByPlugin(ctx, req.Storage, r.ID, agent, fence, wire.StepAccounts, why, judged)
				}
				return nil, err
			}
		}
		resp, err := b.leaseAccount(ctx, req, r, agent, fence, side, purpose, judged)
		var why *wire.Error
		if errors.As(err, &why) && why.Code == wire.CodePlanChanged && claim.Phase == wire.PhaseRunning {
			return nil, b.failByPlugin(ctx, req.Storage, r.ID, agent, fence, wire.StepAccounts, why, judged)
		}
		return resp, err
	}
}

// leaseAccount counts the account first, so that a crash in between never yields
// more of them than are counted, then ends the one before and makes the new one.
// No lock is held while the database is asked.
func (b *backend) leaseAccount(ctx context.Context, req *logical.Request, r *operationRecord, agent, fence string, side wire.Side, purpose wire.Purpose, judged *approval.Question) (*logical.Response, error) {
	connection := r.Source
	if side == wire.Target {
		connection = r.Target
	}
	endpoint, facts, config, err := b.operationEndpoint(ctx, req.Storage, connection)
	if err != nil {
		return nil, err
	}
	if r.Claim != nil && r.Claim.Phase == wire.PhaseRunning {
		// Between the look at the pins and this one it may have been pointed elsewhere.
		if err := r.checkPinned(side, config, facts); err != nil {
			return nil, err
		}
		if err := b.checkServer(ctx, req.Storage, r, side, connection); err != nil {
			return nil, err
		}
	}
	if r.Claim != nil && r.Claim.Phase == wire.PhaseCleanup && r.Pins != nil {
		// Another server has nothing of the run, and would be told to be clean.
		if err := b.checkServer(ctx, req.Storage, r, side, connection); err != nil {
			return nil, r.notCleaned(err, "point connection "+connection+" to the server that the run wrote to")
		}
	}
	role := facts.Purposes[purpose]
	if role == "" {
		return nil, &wire.Error{
			Code: wire.CodeInvalid, Field: "purposes", Reason: fmt.Sprintf("connection %s has no role for purpose %s", connection, purpose),
		}
	}
	r, err = b.updateOperation(ctx, req.Storage, r.ID, func(r *operationRecord) error {
		claim, err := r.heldBy(agent, fence)
		if err != nil {
			return err
		}
		if r.left(b.now()) < time.Second {
			return &wire.Error{Code: wire.CodeDeadline, Reason: fmt.Sprintf("operation %s has used up its time", r.ID)}
		}
		if claim.Issued[side] >= maxAccountsPerClaim {
			return &wire.Error{
				Code: wire.CodeConflict, Reason: fmt.Sprintf("%d accounts on the %s were made for this claim; there are no more", maxAccountsPerClaim, side),
			}
		}
		if claim.Issued == nil {
			claim.Issued = map[wire.Side]int{}
		}
		claim.Issued[side]++
		r.judged(judged)
		return nil
	})
	if err != nil {
		return nil, err
	}
	number, phase := r.Claim.Issued[side], r.Claim.Phase
	var login string
	if phase != wire.PhasePlanning { // a cleanup too: what it gets was approved, or nothing is
		login = r.Pins.login(side).Digest
	}
	if err := b.ops.accounts.endOperationAccounts(ctx, req.Storage, r.ID, side); err != nil {
		return nil, b.notIssued(ctx, req.Storage, r, side, number, err)
	}
	ttl := min(claimTTL(phase), r.left(b.now()))
	issued, err := b.ops.accounts.issueAccount(ctx, req.Storage, accountRequest{
		Connection: connection, Role: role, Purpose: purpose, Side: side, OperationID: r.ID, Fence: fence, Config: config, Login: login, TTL: ttl,
		DisplayName: agent, EntityID: r.Requester.EntityID, ConnectionLimit: operationConnections,
	})
	if err != nil {
		if phase == wire.PhaseCleanup {
			err = r.notCleaned(err, "write the role as the plan shows it")
		}
		return nil, b.notIssued(ctx, req.Storage, r, side, number, err)
	}
	// While the database was asked the claim may have ended, or a second request
	// may have taken our place: what we made must then not be given out.
	current := b.ops.operation(r.ID)
	claim, heldErr := current.heldBy(agent, fence)
	if heldErr == nil && claim.Issued[side] != number {
		heldErr = &wire.Error{Code: wire.CodeConflict, Reason: "another request for this account came meanwhile"}
	}
	if heldErr != nil {
		if err := b.ops.accounts.endAccount(ctx, req.Storage, issued.RecordID); err != nil {
			b.Logger().Warn("account that nobody got is not ended yet", "operation_id", r.ID, "error", err)
		}
		return nil, heldErr
	}
	data, err := responseData(wire.Account{Endpoint: endpoint, Username: issued.Username, TTLMilli: issued.TTL.Milliseconds()})
	if err != nil {
		return nil, err
	}
	data["password"] = issued.Password.Reveal()
	resp := b.secretAccount().Response(data, map[string]any{
		"record_id": issued.RecordID, "operation_id": r.ID, "fence": fence, "side": string(side), "phase": string(phase),
	})
	resp.Secret.TTL = issued.TTL
	resp.Secret.MaxTTL = r.left(b.now())
	resp.Secret.Renewable = phase != wire.PhasePlanning
	return resp, nil
}

// notCleaned is err with the ways out where the target can be cleaned no more as the
// run has left it.
func (r *operationRecord) notCleaned(err error, mend string) error {
	var why *wire.Error
	if !errors.As(err, &why) || why.Code != wire.CodePlanChanged {
		return err
	}
	return &wire.Error{
		Code: why.Code, Reason: why.Reason,
		Hint: mend + ", or clean the target by hand and say so: all/operations/" + r.ID + "/acknowledge",
	}
}

// notIssued gives back the count of an account that was not made, because clients
// repeat requests by themselves when a server is down, and returns cause with the
// side in its code.
func (b *backend) notIssued(ctx context.Context, s logical.Storage, r *operationRecord, side wire.Side, number int, cause error) error {
	fence := r.Claim.Fence
	_, err := b.updateOperation(context.WithoutCancel(ctx), s, r.ID, func(r *operationRecord) error {
		if r.Claim == nil || r.Claim.Fence != fence || r.Claim.Issued[side] != number {
			return errUnchanged
		}
		r.Claim.Issued[side]--
		r.EndAccounts = true // something may have been left
		return nil
	})
	if err != nil && !errors.Is(err, errUnchanged) {
		b.Logger().Error("count of accounts was not corrected", "operation_id", r.ID, "error", err)
	}
	var e *wire.Error
	if !errors.As(cause, &e) || e.Code != wire.CodeUnavailable {
		return cause
	}
	sided := *e
	sided.Code = sideUnavailable(side)
	return &sided
}
