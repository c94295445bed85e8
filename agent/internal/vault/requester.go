package vault

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"

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
// recorded; the operation ends a little later. The reason may be empty.
func (r *Requester) Cancel(ctx context.Context, id, reason string) error {
	body := map[string]string{}
	if reason != "" {
		body["reason"] = reason
	}
	_, err := r.client.doAs(ctx, request{
		do: "cancel operation " + id, method: http.MethodPut, path: r.path(id, "cancel"), operation: id, body: body,
	}, nil)
	return err
}

func (r *Requester) operation(ctx context.Context, call request) (wire.Operation, error) {
	var op wire.Operation
	if _, err := r.client.doAs(ctx, call, &op); err != nil {
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

// Approve consents to the plan of that digest and returns the operation. A repeat
// counts once.
func (r *Requester) Approve(ctx context.Context, id, planDigest, comment string) (wire.Operation, error) {
	return r.operation(ctx, request{
		do: "approve operation " + id, method: http.MethodPut, path: r.path(id, "approve"), operation: id,
		body: map[string]string{"plan_digest": planDigest, "comment": comment},
	})
}

// Reject ends an operation that waits for approval, and returns it.
func (r *Requester) Reject(ctx context.Context, id, reason string) (wire.Operation, error) {
	return r.operation(ctx, request{
		do: "reject operation " + id, method: http.MethodPut, path: r.path(id, "reject"), operation: id,
		body: map[string]string{"reason": reason},
	})
}

// Filter says which operations to list.
type Filter struct {
	State   wire.State // empty: any
	Waiting bool       // only those that wait for the caller's approval
	Limit   int        // at most so many, 1 to 1000
}

// Operations lists operations, the newest first. More says that there are older
// ones than the limit let through.
func (r *Requester) Operations(ctx context.Context, f Filter) (operations []wire.Operation, more bool, err error) {
	path := r.client.mount.Operations()
	if r.all {
		path = r.client.mount.AllOperations()
	}
	query := map[string][]string{"limit": {strconv.Itoa(f.Limit)}}
	if f.State != "" {
		query["state"] = []string{string(f.State)}
	}
	if f.Waiting {
		query["waiting"] = []string{"true"}
	}
	var page struct {
		Operations []wire.Operation `json:"operations"`
		More       bool             `json:"more"`
	}
	_, err = r.client.doAs(ctx, request{do: "list operations", method: http.MethodGet, path: path, query: query}, &page)
	return page.Operations, page.More, err
}

// Report reads what the agent reported of the run; nil when there is nothing yet.
func (r *Requester) Report(ctx context.Context, id string) (*operation.Report, error) {
	text, _, err := r.text(ctx, id, "report")
	if CodeOf(err) == wire.CodeNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var report operation.Report
	if err := json.Unmarshal([]byte(text), &report); err != nil {
		return nil, undecodable("read report of operation "+id, err)
	}
	return &report, nil
}

// Plan reads the text of a plan, checked against the digest Vault recorded.
func (r *Requester) Plan(ctx context.Context, id string) (text, digest string, err error) {
	return r.text(ctx, id, "plan")
}

// Receipt reads the receipt of an operation that has ended.
func (r *Requester) Receipt(ctx context.Context, id string) (string, error) {
	text, _, err := r.text(ctx, id, "receipt")
	return text, err
}

// text reads one of an operation's texts, part by part, and takes its digest.
func (r *Requester) text(ctx context.Context, id, what string) (text, digest string, err error) {
	call := request{do: "read " + what + " of operation " + id, method: http.MethodGet, path: r.path(id, what), operation: id}
	var whole strings.Builder
	for part, parts := 0, 1; part < parts; part++ {
		call.query = map[string][]string{"part": {strconv.Itoa(part)}}
		var answer struct {
			Parts   string `json:"parts"`
			Text    string `json:"text"`
			Plan    string `json:"plan_digest"`
			Report  string `json:"report_digest"`
			Receipt string `json:"receipt_digest"`
		}
		if _, err := r.client.doAs(ctx, call, &answer); err != nil {
			return "", "", err
		}
		if parts, err = strconv.Atoi(answer.Parts); err != nil {
			return "", "", undecodable(call.do, err)
		}
		digest = answer.Plan + answer.Report + answer.Receipt
		whole.WriteString(answer.Text)
	}
	if got := wire.Digest([]byte(whole.String())); got != digest {
		return "", "", &Error{Do: call.do, Status: http.StatusOK, Err: fmt.Errorf("digest %s", got), Wire: &wire.Error{
			Code: wire.CodeCheckFailed, Reason: fmt.Sprintf("the %s that was read does not have the digest Vault recorded, %s", what, digest),
			Hint: "read it again: it may have been replaced meanwhile",
		}}
	}
	return whole.String(), digest, nil
}
