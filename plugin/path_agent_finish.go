package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// maxTextBytes is how much of a reason or hint is kept.
const maxTextBytes = 2048

// pathAgentFinish ends a claim with what the agent says came of it.
//
// A repeat with the same content is answered like the first. An operation that the
// plugin has ended meanwhile (lost, overdue, refused) takes a finish of its last
// claim as a message, and answers the state it has; but it never becomes a
// success. A cancelled or cancelling operation takes a success only when the
// agent's events told before that the copy is in place, because then it is.
func (b *backend) pathAgentFinish(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	r, agent, err := b.agentOperation(ctx, req, d)
	if err != nil {
		return nil, err
	}
	finish, err := readFinish(d)
	if err != nil {
		return nil, err
	}
	content, err := json.Marshal(finish)
	if err != nil {
		return nil, fmt.Errorf("encode finish: %w", err)
	}
	digest := wire.Digest(content)

	var report *draftText
	if claim, err := r.heldBy(agent, finish.Fence); err == nil && claim.Phase == wire.PhaseRunning && finish.Report != "" {
		if report, err = draft(ctx, req.Storage, prefixReport+r.ID+"/", finish.Fence, finish.Report); err != nil {
			return nil, err
		}
	}
	now := b.now().UTC()
	next, err := b.updateOperation(ctx, req.Storage, r.ID, func(r *operationRecord) error {
		_, lost := r.heldBy(agent, finish.Fence)
		if err := r.finish(agent, finish, digest, now); err != nil || lost != nil || report == nil {
			return err
		}
		// Not before: a finish that is refused leaves no report.
		return report.publish(ctx, req.Storage)
	})
	b.settleDraft(ctx, req.Storage, r.ID, report, next != nil)
	if err != nil && !errors.Is(err, errUnchanged) {
		return nil, err
	}
	if next == nil {
		next = b.ops.operation(r.ID)
	} else {
		b.Logger().Info("claim finished", "operation_id", r.ID, "agent", agent, "fence", finish.Fence, "outcome", finish.Outcome, "state", next.State, "code", finish.Code)
	}
	b.afterEnd(req.Storage, next)
	data, err := responseData(wire.FinishResponse{State: next.State})
	if err != nil {
		return nil, err
	}
	return &logical.Response{Data: data}, nil
}

func readFinish(d *framework.FieldData) (wire.FinishRequest, error) {
	text := func(field string) string { return fieldOf[string](d, field) }
	f := wire.FinishRequest{
		Fence: text("fence"), Outcome: wire.State(text("outcome")), Code: wire.Code(text("code")),
		// A finish must not fail for a long message, nor the record grow by it.
		Reason: readable(text("reason"), maxTextBytes), Hint: readable(text("hint"), maxTextBytes), Step: wire.Step(text("step")),
		Rows: text("rows"), Bytes: text("bytes"), Tables: text("tables"), Report: text("report"),
		CleanupNeeded: fieldOf[bool](d, "cleanup_needed"),
	}
	switch f.Outcome {
	case wire.StateSucceeded, wire.StateCancelled:
	case wire.StateFailed:
		if !f.Code.Valid() {
			return wire.FinishRequest{}, invalidField("code", "a failure needs one of the known codes")
		}
	default:
		return wire.FinishRequest{}, invalidField("outcome", "must be succeeded, failed or cancelled")
	}
	if f.Code != "" && !f.Code.Valid() {
		return wire.FinishRequest{}, invalidField("code", "is not a known code")
	}
	for field, value := range map[string]string{"rows": f.Rows, "bytes": f.Bytes, "tables": f.Tables} {
		if value == "" {
			continue
		}
		if _, err := strconv.ParseUint(value, 10, 63); err != nil {
			return wire.FinishRequest{}, invalidField(field, "must be a decimal number")
		}
	}
	if f.Report != "" && !json.Valid([]byte(f.Report)) {
		return wire.FinishRequest{}, invalidField("report", "is not JSON")
	}
	return f, nil
}

func shortenTo(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit], "") + "…"
}

// finish is the effect of a finish request on the record.
func (r *operationRecord) finish(agent string, f wire.FinishRequest, digest string, now time.Time) error {
	if last := r.LastClaim; last != nil && last.Agent == agent && last.Fence == f.Fence {
		return r.finishAgain(f, digest, now)
	}
	claim, err := r.heldBy(agent, f.Fence)
	if err != nil {
		return err
	}
	result := &wire.Result{
		Code: f.Code, Reason: f.Reason, Hint: f.Hint, Step: f.Step, Rows: f.Rows, Bytes: f.Bytes, Tables: f.Tables,
	}
	if f.Report != "" {
		result.ReportDigest = wire.Digest([]byte(f.Report))
	}
	conflict := func(reason string) error { return &wire.Error{Code: wire.CodeConflict, Reason: reason} }

	switch {
	case claim.Phase == wire.PhaseCleanup:
		r.finishCleanup(f, now)
	case f.Outcome == wire.StateSucceeded:
		switch {
		case claim.Phase != wire.PhaseRunning:
			return conflict(fmt.Sprintf("a claim for %s cannot succeed", claim.Phase))
		case !r.ShapeConfirmed:
			return conflict("the shape was never confirmed, so nothing can have been copied")
		case r.CancelRequested && !r.Switched:
			return conflict(fmt.Sprintf("operation %s is to be cancelled, and no event tells that its copy is in place", r.ID))
		}
		if r.State == wire.StateRunning {
			if err := r.become(wire.StateVerifying, now); err != nil {
				return err
			}
		}
		if err := r.become(wire.StateSucceeded, now); err != nil {
			return err
		}
		r.Result = result
	case f.Outcome == wire.StateCancelled:
		switch {
		case !r.CancelRequested:
			return conflict(fmt.Sprintf("nobody asked to cancel operation %s", r.ID))
		case r.Switched:
			return conflict(fmt.Sprintf("the copy of operation %s is in place; it cannot be cancelled any more", r.ID))
		}
		if err := r.become(wire.StateCancelled, now); err != nil {
			return err
		}
		if result.Code == "" {
			result.Code = wire.CodeCancelled
		}
		r.Result = result
	default:
		if r.Switched {
			// What failed came after the copy was put in place.
			result.Hint = strings.TrimSpace("the copy is verified and in place at the target. " + result.Hint)
		}
		if err := r.become(wire.StateFailed, now); err != nil {
			return err
		}
		r.Result = result
	}
	claim.Finish = digest
	phase := claim.Phase
	if phase != wire.PhaseCleanup {
		r.EndedBy = wire.EndedByAgent
	}
	r.endClaim(now)
	if f.CleanupNeeded && phase == wire.PhaseRunning {
		r.wantCleanup(now)
	}
	return nil
}

// finishAgain is a finish for a claim that has ended.
func (r *operationRecord) finishAgain(f wire.FinishRequest, digest string, now time.Time) error {
	last := r.LastClaim
	switch {
	case last.Finish == digest:
		return errUnchanged
	case last.Finish != "":
		return &wire.Error{Code: wire.CodeConflict, Reason: fmt.Sprintf("claim %s of operation %s was finished with other content", f.Fence, r.ID)}
	case !r.State.Final():
		return staleClaim(r.ID, f.Fence) // it was given to somebody else or waits for one
	case f.Outcome == wire.StateSucceeded && r.State != wire.StateSucceeded:
		return &wire.Error{Code: wire.CodeConflict, Reason: fmt.Sprintf("operation %s has ended already: %s", r.ID, r.State)}
	}
	// The plugin ended the operation; the agent says what it left behind.
	last.Finish = digest
	r.UpdatedAt = now
	switch {
	case last.Phase != wire.PhaseRunning || r.Claim != nil:
	case f.CleanupNeeded:
		r.wantCleanup(now)
	case r.Cleanup == cleanupPending:
		r.Cleanup = cleanupDone
	}
	return nil
}

// finishCleanup notes how a cleanup went. Succeeded says that nothing is left.
func (r *operationRecord) finishCleanup(f wire.FinishRequest, now time.Time) {
	r.UpdatedAt = now
	switch {
	case f.Outcome == wire.StateSucceeded && !f.CleanupNeeded:
		r.Cleanup = cleanupDone
	case r.CleanupAttempts >= maxCleanupAttempts:
		r.Cleanup = cleanupFailed
	default:
		r.CleanupSince = now
		r.CleanupNotBefore = now.Add(time.Duration(r.CleanupAttempts) * defaultGrace)
	}
	if r.Result == nil {
		r.Result = &wire.Result{}
	}
	if f.Hint != "" {
		r.Result.CleanupHint = f.Hint // beside the operation's own, which still holds
	}
}
