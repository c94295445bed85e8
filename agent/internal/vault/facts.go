package vault

import (
	"context"
	"net/http"
	"slices"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// FactsShown reports whether audit devices show facts: without the tuning they would
// be hashed, and lost once acknowledged.
func (w *Work) FactsShown(ctx context.Context) (bool, error) {
	var tuning struct {
		Keys []string `json:"audit_non_hmac_response_keys"`
	}
	_, err := w.client.do(ctx, request{do: "read mount tuning", method: http.MethodGet, path: "sys/mounts/" + string(w.client.mount) + "/tune"}, &tuning)
	return slices.Contains(tuning.Keys, wire.FactsKey), err
}

// Facts reads the facts that wait; by the answer they stand in the audit devices.
func (w *Work) Facts(ctx context.Context) (wire.FactsResponse, error) {
	var facts wire.FactsResponse
	_, err := w.client.do(ctx, request{do: "fetch facts", method: http.MethodGet, path: w.client.mount.AgentFacts(w.agent)}, &facts)
	return facts, err
}

// AckFacts says that facts up to seq were received.
func (w *Work) AckFacts(ctx context.Context, seq string) error {
	_, err := w.client.do(ctx, request{
		do: "acknowledge facts", method: http.MethodPut, path: w.client.mount.AgentFacts(w.agent), body: wire.FactsAck{Seq: seq},
	}, nil)
	return err
}
