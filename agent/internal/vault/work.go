package vault

import (
	"context"
	"net/http"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// databaseTimeout is for requests in which the plugin talks to a database; it
// gives up before.
const databaseTimeout = 60 * time.Second

// planTries is how often a plan of several parts is sent whose parts got lost.
const planTries = 3

// Work is the work protocol of one agent. Every call is one request and may be
// repeated: the plugin answers a repeat like the first time.
type Work struct {
	client *Client
	agent  string
}

// NewWork speaks for the agent of this name.
func NewWork(client *Client, agent string) *Work { return &Work{client: client, agent: agent} }

// Poll tells what this agent does and asks what it shall do.
func (w *Work) Poll(ctx context.Context, poll wire.PollRequest) (wire.PollResponse, error) {
	var response wire.PollResponse
	_, err := w.client.do(ctx, request{
		do: "poll for work", method: http.MethodPut, path: w.client.mount.Poll(w.agent), body: poll,
	}, &response)
	return response, err
}

// Account leases an account. A second call ends the account of the first.
func (w *Work) Account(ctx context.Context, id string, purpose wire.Purpose, side wire.Side, fence string) (wire.Account, error) {
	var leased struct {
		wire.Account
		Password boxed `json:"password"`
	}
	a, err := w.client.do(ctx, request{
		do: "lease " + string(purpose) + " account on the " + string(side), method: http.MethodPut,
		path: w.client.mount.Accounts(w.agent, id, purpose, side), operation: id, timeout: databaseTimeout,
		body: wire.AccountRequest{Fence: fence},
	}, &leased)
	if err != nil {
		return wire.Account{}, err
	}
	account := leased.Account
	account.Password = leased.Password.Secret
	account.LeaseID = a.LeaseID
	if account.TTLMilli == 0 {
		account.TTLMilli = a.LeaseDuration * 1000
	}
	return account, nil
}

// Renew makes a lease of this operation live ttl from now and returns what it
// got.
func (w *Work) Renew(ctx context.Context, id, leaseID string, ttl time.Duration) (time.Duration, error) {
	a, err := w.client.do(ctx, request{
		do: "renew lease", method: http.MethodPut, path: "sys/leases/renew", operation: id, timeout: databaseTimeout,
		body: map[string]string{"lease_id": leaseID, "increment": strconv.Itoa(int(ttl.Seconds())) + "s"},
	}, nil)
	return time.Duration(a.LeaseDuration) * time.Second, err
}

// Revoke ends every lease of the operation, one whose answer was lost too, and
// returns when they have ended.
func (w *Work) Revoke(ctx context.Context, id string) error {
	_, err := w.client.do(ctx, request{
		do: "give accounts back", method: http.MethodPut, path: w.client.mount.RevokePrefix(w.agent, id),
		operation: id, timeout: databaseTimeout, body: map[string]bool{"sync": true},
	}, nil)
	return err
}

// Plan sends a plan, or in a running claim the shape, in parts, and returns the
// answer to the last one. Parts are kept in the plugin's memory: when it was
// started anew in between, all of them are sent again.
func (w *Work) Plan(ctx context.Context, id, fence, text string) (wire.PlanResponse, error) {
	response, err := w.planOnce(ctx, id, fence, text)
	for try := 1; try < planTries && len(text) > wire.PlanPartBytes && CodeOf(err) == wire.CodeConflict && err != nil; try++ {
		response, err = w.planOnce(ctx, id, fence, text)
	}
	return response, err
}

func (w *Work) planOnce(ctx context.Context, id, fence, text string) (wire.PlanResponse, error) {
	var response wire.PlanResponse
	parts := planParts(text)
	for i, part := range parts {
		response = wire.PlanResponse{}
		_, err := w.client.do(ctx, request{
			do: "send plan", method: http.MethodPut, path: w.client.mount.Plan(w.agent, id), operation: id,
			body: wire.PlanRequest{Fence: fence, Part: strconv.Itoa(i), Parts: strconv.Itoa(len(parts)), Text: part},
		}, &response)
		if err != nil {
			return wire.PlanResponse{}, err
		}
	}
	return response, nil
}

// planParts cuts text between characters: half of one would not survive JSON.
func planParts(text string) []string {
	var parts []string
	for len(text) > wire.PlanPartBytes {
		cut := wire.PlanPartBytes
		for cut > 0 && !utf8.RuneStart(text[cut]) {
			cut--
		}
		parts = append(parts, text[:cut])
		text = text[cut:]
	}
	return append(parts, text)
}

// Finish ends a claim.
func (w *Work) Finish(ctx context.Context, id string, finish wire.FinishRequest) (wire.FinishResponse, error) {
	var response wire.FinishResponse
	_, err := w.client.do(ctx, request{
		do: "finish operation", method: http.MethodPut, path: w.client.mount.Finish(w.agent, id), operation: id, body: finish,
	}, &response)
	return response, err
}
