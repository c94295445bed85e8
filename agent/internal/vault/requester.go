package vault

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sort"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Requester asks for operations and follows them, as the person behind the
// client's token.
type Requester struct {
	client *Client
	all    bool
}

// NewRequester works below the client's mount, on the caller's own operations.
func NewRequester(client *Client) *Requester { return &Requester{client: client} }

// NewOverseer is one that reads and cancels everybody's, as operators and
// auditors may.
func NewOverseer(client *Client) *Requester { return &Requester{client: client, all: true} }

// path is that of an operation, or of something below it.
func (r *Requester) path(id string, below ...string) string {
	path := r.client.mount.Operation(id)
	if r.all {
		path = r.client.mount.AllOperations() + "/" + id
	}
	for _, part := range below {
		path += "/" + part
	}
	return path
}

// Request is one operation asked for.
type Request struct {
	Kind           wire.Kind
	Source, Target string // connection names
	// RequestID makes a repeat of the same request safe: it is answered with the
	// operation of the first.
	RequestID string
	Reason    string
	Options   map[string]string
}

// Ask writes the request and returns the new operation, or that of the first
// write with this request id. A refusal is an error with its code.
func (r *Requester) Ask(ctx context.Context, asked Request) (wire.Operation, error) {
	body := map[string]string{"request_id": asked.RequestID}
	if asked.Reason != "" {
		body["reason"] = asked.Reason
	}
	for name, value := range asked.Options {
		body[name] = value
	}
	return r.operation(ctx, request{
		do:     fmt.Sprintf("ask for a %s of %s into %s", asked.Kind, asked.Source, asked.Target),
		method: http.MethodPut, path: r.client.mount.Request(asked.Kind, asked.Source, asked.Target), body: body,
	})
}

// Operation reads one operation of the caller's.
func (r *Requester) Operation(ctx context.Context, id string) (wire.Operation, error) {
	return r.operation(ctx, request{
		do: "read operation " + id, method: http.MethodGet, path: r.path(id), operation: id,
	})
}

// Cancel asks for an operation to be cancelled. It returns once that is
// recorded; the operation ends a little later.
func (r *Requester) Cancel(ctx context.Context, id string) error {
	_, err := r.client.do(ctx, request{
		do: "cancel operation " + id, method: http.MethodPut, path: r.path(id, "cancel"), operation: id,
	}, nil)
	return err
}

func (r *Requester) operation(ctx context.Context, call request) (wire.Operation, error) {
	var op wire.Operation
	if _, err := r.client.do(ctx, call, &op); err != nil {
		return op, err
	}
	if op.ID == "" || !op.State.Valid() {
		return op, &Error{Do: call.do, Status: http.StatusOK, Err: fmt.Errorf("operation %q in state %q", op.ID, op.State), Wire: &wire.Error{
			Code: wire.CodeInternal, Reason: "the answer holds no operation",
			Hint: "check -mount, and that dbops and plugin are of compatible versions",
		}}
	}
	return op, nil
}

// Filter says which operations to list.
type Filter struct {
	State wire.State // empty: any
}

// Operations lists operations, the newest first.
func (r *Requester) Operations(ctx context.Context, f Filter) ([]wire.Operation, error) {
	path := r.client.mount.Operations()
	if r.all {
		path = r.client.mount.AllOperations()
	}
	var answer struct {
		Operations []wire.Operation `json:"operations"`
	}
	if _, err := r.client.do(ctx, request{do: "list operations", method: http.MethodGet, path: path}, &answer); err != nil {
		return nil, err
	}
	operations := slices.DeleteFunc(answer.Operations, func(op wire.Operation) bool {
		return f.State != "" && op.State != f.State
	})
	newestFirst(operations)
	return operations, nil
}

// Report reads what the agent reported at the end; nil when there is nothing.
func (r *Requester) Report(ctx context.Context, id string) (*operation.Report, error) {
	return nil, nil
}

// Plan reads the text of a plan and checks it against its digest.
func (r *Requester) Plan(ctx context.Context, id string) (string, error) {
	return "", nil
}

// newestFirst sorts operations as people look for them.
func newestFirst(operations []wire.Operation) {
	sort.Slice(operations, func(i, j int) bool {
		if !operations[i].CreatedAt.Equal(operations[j].CreatedAt) {
			return operations[i].CreatedAt.After(operations[j].CreatedAt)
		}
		return operations[i].ID > operations[j].ID
	})
}
