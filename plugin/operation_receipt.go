package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/receipt"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// prefixReceipt holds receipts as texts; the table in doc.go says where.
const prefixReceipt = "operation-receipt/"

const (
	// receiptTimeout bounds one attempt to make a receipt.
	receiptTimeout = 30 * time.Second
	// receiptPause is between attempts.
	receiptPause = 30 * time.Second
)

// receiptWork is what is going on about receipts.
type receiptWork struct {
	mu     sync.Mutex
	making map[string]bool      // by operation
	after  map[string]time.Time // when to try again, by operation
}

// receiptWaitsFor says what has to happen before the operation's receipt can be
// made; "" when nothing has to.
func (r *operationRecord) receiptWaitsFor() string {
	switch {
	case !r.State.Final():
		return "its end"
	case r.Claim != nil:
		return fmt.Sprintf("agent %s, which is cleaning up", r.Claim.Agent)
	case r.EndAccounts:
		return "the end of its accounts"
	case r.Cleanup == cleanupPending:
		return "an agent to clean up at the target"
	}
	return ""
}

// receiptSoon makes the receipt of an operation in the background when it is due
// and nothing of the operation is pending. The watcher repeats what did not work.
func (b *backend) receiptSoon(s logical.Storage, r *operationRecord) {
	if !r.ReceiptDue || r.receiptWaitsFor() != "" {
		return
	}
	w := &b.receipts
	w.mu.Lock()
	if w.making[r.ID] || b.now().Before(w.after[r.ID]) {
		w.mu.Unlock()
		return
	}
	if w.making == nil {
		w.making, w.after = map[string]bool{}, map[string]time.Time{}
	}
	w.making[r.ID] = true
	w.mu.Unlock()
	b.work.run(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, receiptTimeout)
		defer cancel()
		err := b.makeReceipt(ctx, s, r.ID)
		w.mu.Lock()
		delete(w.making, r.ID)
		delete(w.after, r.ID)
		if err != nil {
			w.after[r.ID] = b.now().Add(receiptPause)
		}
		w.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			b.Logger().Error("the receipt of an operation was not made and is tried again", "operation_id", r.ID, "error", err)
		}
		// What changed the operation meanwhile has found this one at work.
		if current := b.ops.operation(r.ID); err == nil && current != nil && ctx.Err() == nil {
			b.receiptSoon(s, current)
		}
	})
}

// makeReceipt signs what is known of an operation and stores it, the head last.
// The operation is marked after that, and until then nobody can read the receipt:
// a crash in between has it made again from the same facts.
func (b *backend) makeReceipt(ctx context.Context, s logical.Storage, id string) error {
	r := b.ops.operation(id)
	if r == nil || !r.ReceiptDue || r.receiptWaitsFor() != "" {
		return nil
	}
	left, err := listStored(ctx, s, prefixAccount+id+"/")
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("make receipt: %d accounts are not ended", len(left))
	}
	head, err := reportHead(ctx, s, r)
	if err != nil {
		return err
	}
	mount, err := b.mountID(ctx, s)
	if err != nil {
		return err
	}
	statement, err := receipt.Statement(receiptOf(r, wire.ReceiptMount{ID: mount, PluginVersion: b.version}, head))
	if err != nil {
		return err
	}
	key, err := b.signingKey(ctx, s)
	if err != nil {
		return err
	}
	text, err := receipt.Seal(ctx, statement, key)
	if err != nil {
		return err
	}
	prefix := prefixReceipt + id + "/"
	before, err := getStored[textHead](ctx, s, prefix+"head")
	if err != nil {
		return err
	}
	name := strconv.Itoa(r.Receipts + 1)
	if err := putText(ctx, s, prefix, name, text); err != nil {
		return err
	}
	if before != nil && before.Name != name {
		for n := range before.Chunks {
			if err := deleteStored(ctx, s, prefix+before.Name+"-"+strconv.Itoa(n)); err != nil {
				return err
			}
		}
	}
	digest := wire.Digest([]byte(text))
	_, err = b.updateOperation(ctx, s, id, func(next *operationRecord) error {
		if b.ops.operation(id) != r {
			return errUnchanged // something happened meanwhile: it is made again
		}
		next.ReceiptDue, next.ReceiptDigest = false, digest
		next.Receipts++
		return nil
	})
	if errors.Is(err, errUnchanged) {
		return nil
	}
	if err == nil {
		b.Logger().Info("receipt made", "operation_id", id, "receipt_digest", digest, "key_id", key.ID())
	}
	return err
}

// Bounds on what an agent's report may add to a receipt.
const (
	maxReportText    = 512 // bytes of one text
	maxMaskedColumns = 512
)

// reportHead reads what a receipt says of the agent's report; nil when there is
// none, or when it is not JSON of that form: its digest stands anyhow.
func reportHead(ctx context.Context, s logical.Storage, r *operationRecord) (*wire.ReportHead, error) {
	if r.Result == nil || r.Result.ReportDigest == "" {
		return nil, nil
	}
	text, err := getText(ctx, s, prefixReport+r.ID+"/")
	if err != nil || text == nil || wire.Digest([]byte(*text)) != r.Result.ReportDigest {
		return nil, err // a report of another claim is not the one finished with
	}
	head := new(wire.ReportHead)
	if json.Unmarshal([]byte(*text), head) != nil {
		return nil, nil //nolint:nilerr // an agent's nonsense keeps no operation from its receipt
	}
	cut := func(texts ...*string) {
		for _, text := range texts {
			*text = shortenTo(*text, maxReportText)
		}
	}
	cut(&head.TablesRoot, &head.Snapshot)
	head.MaskedColumns = head.MaskedColumns[:min(len(head.MaskedColumns), maxMaskedColumns)]
	for i := range head.MaskedColumns {
		cut(&head.MaskedColumns[i])
	}
	if box := head.Sandbox; box != nil {
		cut(&box.WorkerImageID, &box.BaseImageID, &box.Runtime)
		if c := box.Container; c != nil {
			cut(&c.Network, &c.User, &c.CapabilitiesDropped, &c.CapabilitiesAdded, &c.MemoryBytes)
		}
	}
	return head, nil
}

// receiptOf is the predicate of an operation's receipt. Head is what its report
// says, nil without one.
func receiptOf(r *operationRecord, mount wire.ReceiptMount, head *wire.ReportHead) wire.Receipt {
	a := wire.Attested{
		Mount: mount,
		Request: wire.ReceiptRequest{
			OperationID: r.ID, Kind: r.Kind, Source: r.Source, Target: r.Target, Options: r.Options, Requester: r.Requester,
			Reason: wire.RedactPersonal(r.Reason), RequestID: wire.RedactPersonal(r.RequestID), Digest: r.ContentDigest, At: r.CreatedAt.UTC(),
		},
		Decision:   receiptDecision(r),
		PlanDigest: r.PlanDigest, ShapeDigest: r.ShapeDigest, ShapeConfirmed: r.ShapeConfirmed,
		Claims: r.PastClaims, ClaimsOmitted: r.ClaimsOmitted, AccountsOmitted: r.AccountsOmitted,
		End: wire.ReceiptEnd{
			State: r.State, By: r.EndedBy, Cancelled: r.CancelRequested, Cancellation: r.Cancellation, Switched: r.Switched,
			Cleanup: string(r.Cleanup), Acknowledged: r.Acknowledged, StartedAt: r.StartedAt.UTC(), At: r.EndedAt.UTC(),
		},
		Incomplete: !r.Kept, Supersedes: r.ReceiptDigest,
	}
	for _, g := range r.Given {
		a.Approvals = append(a.Approvals, wire.ReceiptApproval{
			EntityID: g.EntityID, Name: g.Name, PlanDigest: g.PlanDigest, At: g.Time.UTC(), NotCounted: g.NotCounted,
		})
	}
	a.ApprovalsCheckedAt = r.ApprovalsAt.UTC()
	if p := r.Pins; p != nil {
		a.Pins = map[string]string{
			"config/" + r.Source: p.SourceConfig, "config/" + r.Target: p.TargetConfig,
			"connections/" + r.Source: p.SourceFacts, "connections/" + r.Target: p.TargetFacts, "policies": p.Policies,
		}
		for _, l := range []pinnedLogin{p.SourceLogin, p.TargetLogin} {
			if l.Role != "" {
				a.Pins["roles/"+l.Role] = l.Digest
			}
		}
	}
	for _, past := range r.PastAccounts {
		connection := r.Source
		if past.Side == wire.Target {
			connection = r.Target
		}
		a.Accounts = append(a.Accounts, wire.ReceiptAccount{
			Side: past.Side, Connection: connection, Purpose: past.Purpose, Username: past.Username, Fence: past.Fence,
			Unconfirmed: past.Unconfirmed, IssuedAt: past.IssuedAt, EndedAt: past.EndedAt,
		})
	}
	if r.Result == nil {
		return wire.Receipt{Attested: a}
	}
	if r.EndedBy != wire.EndedByAgent {
		a.End.Code, a.End.Reason, a.End.Step = r.Result.Code, r.Result.Reason, r.Result.Step
		return wire.Receipt{Attested: a}
	}
	reported := &wire.Reported{
		Outcome: r.State, Code: r.Result.Code, Reason: r.Result.Reason, Step: r.Result.Step,
		Rows: r.Result.Rows, Bytes: r.Result.Bytes, Tables: r.Result.Tables, ReportDigest: r.Result.ReportDigest,
	}
	if head != nil {
		reported.ReportHead = *head
	}
	return wire.Receipt{Attested: a, ReportedByAgent: reported}
}

func receiptDecision(r *operationRecord) wire.ReceiptDecision {
	d, versions := r.Decision, r.PolicyVersions
	if r.Pins != nil {
		versions = r.Pins.PolicyVersions // decided again, on the plan
	}
	decision := wire.ReceiptDecision{
		Allowed: d.Allowed, Code: d.Code, Policy: d.Policy, Rule: d.Rule, Reason: d.Reason, Obligations: map[string]string{},
	}
	for _, name := range slices.Sorted(slices.Values(d.Policies)) {
		decision.Policies = append(decision.Policies, wire.ReceiptPolicy{Name: name, Version: versions[name]})
	}
	oblige := func(name, value string, holds bool) {
		if holds {
			decision.Obligations[name] = value
		}
	}
	oblige("max_bytes", strconv.FormatInt(d.MaxBytes, 10), d.MaxBytes > 0)
	oblige("max_rows", strconv.FormatInt(d.MaxRows, 10), d.MaxRows > 0)
	oblige("max_duration", d.MaxDuration.String(), d.MaxDuration > 0)
	oblige("require_tls", "true", d.RequireTLS)
	for _, need := range d.Approvals {
		oblige("approvals of policy "+need.Policy, strconv.Itoa(need.Count), true)
	}
	return decision
}

// pathOperationReceipt reads the receipt in parts, like any text.
func (b *backend) pathOperationReceipt(sees visible) framework.OperationFunc {
	read := b.pathOperationText(sees, prefixReceipt, "receipt")
	return func(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
		r, err := b.visibleOperation(ctx, req, fieldOf[string](d, "id"), sees)
		if err != nil {
			return nil, err
		}
		waits := r.receiptWaitsFor()
		switch {
		case !r.State.Final():
			return nil, &wire.Error{
				Code: wire.CodeConflict, Reason: fmt.Sprintf("operation %s is %s; its receipt is made after its end", r.ID, r.State),
				Hint: "follow it with dbops operation " + r.ID,
			}
		case r.ReceiptDue && r.EndAccounts:
			return nil, &wire.Error{
				Code: wire.CodeCleanup, Reason: fmt.Sprintf("the receipt of operation %s waits for %s", r.ID, waits),
				Hint: "ask again; revocations/ lists accounts that could not be ended, with the reason",
			}
		case r.ReceiptDue && waits != "":
			return nil, &wire.Error{
				Code: wire.CodeCleanup, Reason: fmt.Sprintf("the receipt of operation %s waits for %s", r.ID, waits),
				Hint: "ask again; an agent that may work on connection " + r.Target + " has to be running",
			}
		case r.ReceiptDue:
			return nil, &wire.Error{
				Code: wire.CodeCleanup, Reason: fmt.Sprintf("the receipt of operation %s is being made", r.ID), Hint: "ask again in a few seconds",
			}
		case r.ReceiptDigest == "":
			return nil, notFound("operation %s ended under a version of the plugin that made no receipts", r.ID)
		}
		return read(ctx, req, d)
	}
}
