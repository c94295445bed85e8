package plugin

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Limits of one page of operations.
const (
	defaultPage = 100
	maxPage     = 1000
)

const operationIDRegex = `(?P<id>op-[0-9a-z]{26})`

// visible says which operations a request may see.
type visible func(b *backend, req *logical.Request) (func(*operationRecord) bool, error)

// ownOnly shows an entity what it asked for.
func ownOnly(b *backend, req *logical.Request) (func(*operationRecord) bool, error) {
	who, err := b.identify(req)
	if err != nil {
		return nil, err
	}
	return func(r *operationRecord) bool { return r.Requester.EntityID == who.EntityID }, nil
}

// everything is for whom the ACL opens all/.
func everything(*backend, *logical.Request) (func(*operationRecord) bool, error) {
	return func(*operationRecord) bool { return true }, nil
}

func (b *backend) ownOperationPaths() []*framework.Path {
	return b.operationPathsBelow("operations", ownOrToApprove, ownOnly, "your operations, and those that you may approve", "Other operations do not exist here.")
}

func (b *backend) allOperationPaths() []*framework.Path {
	return b.operationPathsBelow("all/operations", everything, everything, "operations of everybody", "For auditors and operators; the ACL decides who that is.")
}

func (b *backend) operationPathsBelow(prefix string, sees, cancels visible, whose, note string) []*framework.Path {
	id := map[string]*framework.FieldSchema{"id": {Type: framework.TypeString, Description: "Id of the operation."}}
	withID := func(more map[string]*framework.FieldSchema) map[string]*framework.FieldSchema {
		fields := maps.Clone(id)
		maps.Copy(fields, more)
		return fields
	}
	part := withID(map[string]*framework.FieldSchema{
		"part": {Type: framework.TypeString, Default: "0", Description: "Which part of the text, from 0."},
	})
	return []*framework.Path{{
		Pattern: prefix + "/?$",
		Fields: map[string]*framework.FieldSchema{
			"state":   {Type: framework.TypeCommaStringSlice, Description: "Only operations in one of these states."},
			"kind":    {Type: framework.TypeCommaStringSlice, Description: "Only these kinds."},
			"source":  {Type: framework.TypeString, Description: "Only from this connection."},
			"target":  {Type: framework.TypeString, Description: "Only into this connection."},
			"entity":  {Type: framework.TypeString, Description: "Only of the requester with this entity id."},
			"agent":   {Type: framework.TypeString, Description: "Only of this agent."},
			"waiting": {Type: framework.TypeBool, Description: "Only those that wait for the caller's approval."},
			"after":   {Type: framework.TypeString, Description: "Only older ones than this id: the last one of the page before."},
			"limit":   {Type: framework.TypeInt, Default: defaultPage, Description: "How many at most, up to 1000."},
		},
		Callbacks: map[logical.Operation]framework.OperationFunc{
			logical.ListOperation: b.pathOperationList(sees),
			logical.ReadOperation: b.pathOperationSearch(sees),
		},
		HelpSynopsis:    "List or search " + whose + ".",
		HelpDescription: "LIST answers ids. READ answers operations, newest first, with filters and pages. " + note,
	}, {
		Pattern:         prefix + "/" + operationIDRegex + "$",
		Fields:          id,
		Callbacks:       map[logical.Operation]framework.OperationFunc{logical.ReadOperation: b.pathOperationRead(sees)},
		HelpSynopsis:    "One of " + whose + ".",
		HelpDescription: "Answers state, decision, progress and result. " + note,
	}, {
		Pattern: prefix + "/" + operationIDRegex + "/cancel$",
		Fields: withID(map[string]*framework.FieldSchema{
			"reason": {Type: framework.TypeString, Description: "Why, in the caller's words."},
		}),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: &framework.PathOperation{Callback: b.pathOperationCancel(cancels), ForwardPerformanceStandby: true},
		},
		HelpSynopsis: "Cancel an operation: your own, or anybody's below all/.",
		HelpDescription: `
An operation that nobody works on ends at once. Otherwise its agent stops, undoes
what it began and ends it; once the copy is in place it is too late. Who asked first,
when and why stands in the operation, in its receipt and in a fact. Cancelling again is
no error.`,
	}, {
		Pattern:      prefix + "/" + operationIDRegex + "/plan$",
		Fields:       part,
		Callbacks:    map[logical.Operation]framework.OperationFunc{logical.ReadOperation: b.pathOperationText(sees, prefixPlan, "plan")},
		HelpSynopsis: "The plan, exactly as its agent sent it, and what logins it gets.",
		HelpDescription: `
Answers one part of the text, the number of parts and the digest of the whole. Under
logins, at the end of the text, stand the roles by which its logins are made while it
runs; the plugin puts them there. ` + note,
	}, {
		Pattern:         prefix + "/" + operationIDRegex + "/report$",
		Fields:          part,
		Callbacks:       map[logical.Operation]framework.OperationFunc{logical.ReadOperation: b.pathOperationText(sees, prefixReport, "report")},
		HelpSynopsis:    "The report of the run, exactly as its agent sent it.",
		HelpDescription: "Answers one part of the text, the number of parts and the digest of the whole. " + note,
	}, {
		Pattern:      prefix + "/" + operationIDRegex + "/receipt$",
		Fields:       part,
		Callbacks:    map[logical.Operation]framework.OperationFunc{logical.ReadOperation: b.pathOperationReceipt(sees)},
		HelpSynopsis: "The signed receipt of an operation that has ended.",
		HelpDescription: `
Answers one part of the text, the number of parts and the digest of the whole. It is
made when the operation has ended, its accounts are gone and nothing has to be
cleaned up any more; dbops receipt verify checks it with the keys of keys/. ` + note,
	}}
}

// operationData is what a read answers: wire.Operation, who has approved and who
// is still needed, and what became of its traces.
func (b *backend) operationData(r *operationRecord, known *people) (map[string]any, error) {
	op := r.Operation
	// Those stored by an earlier version may need it.
	op.Reason, op.RequestID = wire.RedactPersonal(op.Reason), wire.RedactPersonal(op.RequestID)
	var err error
	if op.Approvals, op.ApprovalNeeds, err = r.approvals(known, b.now()); err != nil {
		return nil, err
	}
	if r.State != wire.StateQueued || !r.NotBefore.After(b.now()) {
		op.NotBefore = time.Time{}
	}
	b.ops.mu.RLock()
	if p, ok := b.ops.progress[r.ID]; ok && r.Claim != nil {
		op.Progress = &p
	}
	b.ops.mu.RUnlock()
	data, err := responseData(op)
	if err != nil {
		return nil, err
	}
	data["cleanup_attempts"] = r.CleanupAttempts
	if r.Cleanup != cleanupNone {
		data["cleanup"] = string(r.Cleanup)
	}
	if a := r.Acknowledged; a != nil {
		if data["cleanup_acknowledged"], err = responseData(*a); err != nil {
			return nil, err
		}
	}
	if r.ReceiptDigest != "" && !r.ReceiptDue {
		data["receipt_digest"] = r.ReceiptDigest
	}
	return data, nil
}

func (b *backend) operationResponse(r *operationRecord) (*logical.Response, error) {
	data, err := b.operationData(r, b.people())
	if err != nil {
		return nil, err
	}
	return &logical.Response{Data: data}, nil
}

// takeWord changes an operation by what somebody said of it and returns it. What was news
// is noted; a repeat, after an answer that was lost, is not.
func (b *backend) takeWord(ctx context.Context, s logical.Storage, id string, change func(*operationRecord) error, note func(*operationRecord)) (*operationRecord, error) {
	next, err := b.updateOperation(ctx, s, id, change)
	switch {
	case errors.Is(err, errUnchanged):
		next = b.ops.operation(id)
	case err != nil:
		return nil, err
	case next != nil:
		note(next)
	}
	if next == nil {
		return nil, errNoOperation(id)
	}
	return next, nil
}

// wordResponse answers an operation with the caller's words under comment, where audit
// devices show them.
func (b *backend) wordResponse(r *operationRecord, known *people, words string) (*logical.Response, error) {
	data, err := b.operationData(r, known)
	if err != nil {
		return nil, err
	}
	data["comment"] = words
	return &logical.Response{Data: data}, nil
}

// visibleOperations returns what the request may see, newest first.
func (b *backend) visibleOperations(ctx context.Context, req *logical.Request, sees visible) ([]*operationRecord, error) {
	may, err := sees(b, req)
	if err != nil {
		return nil, err
	}
	if err := b.loadOperations(ctx, req.Storage); err != nil {
		return nil, err
	}
	b.ops.mu.RLock()
	var records []*operationRecord
	for _, r := range b.ops.operations {
		if may(r) {
			records = append(records, r)
		}
	}
	b.ops.mu.RUnlock()
	slices.SortFunc(records, func(x, y *operationRecord) int { return strings.Compare(y.ID, x.ID) })
	return records, nil
}

// visibleOperation returns one operation. One that must not be seen is answered
// like one that does not exist.
func (b *backend) visibleOperation(ctx context.Context, req *logical.Request, id string, sees visible) (*operationRecord, error) {
	may, err := sees(b, req)
	if err != nil {
		return nil, err
	}
	if err := b.loadOperations(ctx, req.Storage); err != nil {
		return nil, err
	}
	r := b.ops.operation(id)
	if r == nil || !may(r) {
		return nil, errNoOperation(id)
	}
	return r, nil
}

func (b *backend) pathOperationList(sees visible) framework.OperationFunc {
	return func(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
		records, err := b.visibleOperations(ctx, req, sees)
		if err != nil {
			return nil, err
		}
		ids := make([]string, 0, len(records))
		for _, r := range records {
			ids = append(ids, r.ID)
		}
		return logical.ListResponse(ids), nil
	}
}

func (b *backend) pathOperationSearch(sees visible) framework.OperationFunc {
	return func(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
		states, kinds := fieldOf[[]string](d, "state"), fieldOf[[]string](d, "kind")
		for _, state := range states {
			if !wire.State(state).Valid() {
				return nil, invalidField("state", "%q is not a state", state)
			}
		}
		for _, kind := range kinds {
			if !wire.Kind(kind).Valid() {
				return nil, invalidField("kind", "%q is not a kind of operation", kind)
			}
		}
		limit := fieldOf[int](d, "limit")
		if limit < 1 || limit > maxPage {
			return nil, invalidField("limit", "must be from 1 to %d", maxPage)
		}
		records, err := b.visibleOperations(ctx, req, sees)
		if err != nil {
			return nil, err
		}
		equal := func(field, value string) bool {
			want := fieldOf[string](d, field)
			return want == "" || want == value
		}
		after := fieldOf[string](d, "after")
		known := b.people()
		waits := func(*operationRecord) (bool, error) { return true, nil }
		if fieldOf[bool](d, "waiting") {
			if waits, err = b.waitsFor(req, known); err != nil {
				return nil, err
			}
		}
		page, more := []any{}, false
		for _, r := range records {
			if (after != "" && r.ID >= after) ||
				(len(states) > 0 && !slices.Contains(states, string(r.State))) ||
				(len(kinds) > 0 && !slices.Contains(kinds, string(r.Kind))) ||
				!equal("source", r.Source) || !equal("target", r.Target) || !equal("entity", r.Requester.EntityID) || !equal("agent", r.Agent) {
				continue
			}
			if wanted, err := waits(r); err != nil {
				return nil, err
			} else if !wanted {
				continue
			}
			if len(page) == limit {
				more = true
				break
			}
			data, err := b.operationData(r, known)
			if err != nil {
				return nil, err
			}
			page = append(page, data)
		}
		return &logical.Response{Data: map[string]any{"operations": page, "more": more}}, nil
	}
}

func (b *backend) pathOperationRead(sees visible) framework.OperationFunc {
	return func(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
		r, err := b.visibleOperation(ctx, req, fieldOf[string](d, "id"), sees)
		if err != nil {
			return nil, err
		}
		return b.operationResponse(r)
	}
}

func (b *backend) pathOperationCancel(sees visible) framework.OperationFunc {
	return func(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
		r, err := b.visibleOperation(ctx, req, fieldOf[string](d, "id"), sees)
		if err != nil {
			return nil, err
		}
		reason, err := freeText(d, "reason")
		if err != nil {
			return nil, err
		}
		who, err := b.partyOf(req) // stopping needs no entity
		if err != nil {
			return nil, err
		}
		said := wire.Cancellation{User: wire.User(who.LockdownParty), Time: b.now().UTC(), Reason: strings.TrimSpace(reason)}
		next, err := b.takeWord(ctx, req.Storage, r.ID, func(r *operationRecord) error { return r.askCancel(said) },
			func(r *operationRecord) { b.noteCancel(r, req.Path) })
		if err != nil {
			return nil, err
		}
		if c := next.Cancellation; c != nil && c.Reason != "" && c.User == said.User && c.Reason == said.Reason {
			return b.wordResponse(next, b.people(), c.Reason)
		}
		return b.operationResponse(next) // what is not kept is not shown as if it were
	}
}

// askCancel notes who wants the operation to end, and ends it when nobody works on it.
// Only the first one counts: asking again is no error, and changes nothing.
func (r *operationRecord) askCancel(said wire.Cancellation) error {
	switch {
	case r.State == wire.StateCancelled || (r.CancelRequested && !r.State.Final()):
		return errUnchanged
	case r.State.Final():
		return conflict("operation %s has ended: %s", r.ID, r.State)
	case r.Switched:
		return conflict("the copy of operation %s is already in place", r.ID)
	}
	r.CancelRequested, r.Cancellation, r.UpdatedAt = true, &said, said.Time
	if r.Claim == nil {
		return r.cancel(said.Time)
	}
	return nil
}

// noteCancel keeps the fact: the audit of the request has neither the reason nor the
// target, and whether the operation was one's own only in its path.
func (b *backend) noteCancel(r *operationRecord, path string) {
	b.noteFact(wire.Fact{
		EventType: wire.EventCancelRequested, Outcome: wire.OutcomeSuccess, OpID: r.ID, EntityID: r.Cancellation.EntityID,
		Connection: r.Target, Object: path, Detail: r.Cancellation.Reason,
	})
}

// pathOperationText reads a stored text in parts of at most wire.PlanPartBytes.
func (b *backend) pathOperationText(sees visible, prefix, what string) framework.OperationFunc {
	return func(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
		r, err := b.visibleOperation(ctx, req, fieldOf[string](d, "id"), sees)
		if err != nil {
			return nil, err
		}
		below := prefix + r.ID + "/"
		head, err := getStored[textHead](ctx, req.Storage, below+"head")
		if err != nil {
			return nil, err
		}
		if head == nil {
			return nil, notFound("operation %s has no %s", r.ID, what)
		}
		count, read := len(head.Parts), func(n int) (string, error) { return head.part(ctx, req.Storage, below, n) }
		if count == 0 { // of an earlier version
			text, err := head.whole(ctx, req.Storage, below)
			if err != nil {
				return nil, err
			}
			parts := splitText(*text)
			count, read = len(parts), func(n int) (string, error) { return parts[n], nil }
		}
		n, err := strconv.Atoi(fieldOf[string](d, "part"))
		if err != nil || n < 0 || n >= count {
			return nil, invalidField("part", "must be a number from 0 to %d", count-1)
		}
		part, err := read(n)
		if err != nil {
			return nil, err
		}
		return &logical.Response{Data: map[string]any{
			"part": strconv.Itoa(n), "parts": strconv.Itoa(count), "text": part, what + "_digest": head.Digest,
		}}, nil
	}
}
