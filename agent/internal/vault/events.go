package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sort"
	"strings"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// SendEvents sends one batch of events of one operation and returns the end of
// the chain as the plugin has it now.
func (w *Work) SendEvents(ctx context.Context, id string, events []string) (wire.Chain, error) {
	var chain wire.Chain
	_, err := w.client.do(ctx, request{
		do: "send events", method: http.MethodPut, path: w.client.mount.Events(w.agent, id), operation: id,
		body: wire.EventsRequest{Events: events},
	}, &chain)
	return chain, err
}

// AuditDevices returns how many audit devices would record an event in clear. A
// missing device, or a mount not tuned to show events, is CodeAuditUnavailable;
// any other error means that it could not be found out.
func (w *Work) AuditDevices(ctx context.Context) (int, error) {
	var devices map[string]json.RawMessage
	_, err := w.client.do(ctx, request{do: "list audit devices", method: http.MethodGet, path: "sys/audit"}, &devices)
	if err != nil {
		return 0, notAllowedToLook(err, `path "sys/audit" { capabilities = ["read", "sudo"] }`)
	}
	if len(devices) == 0 {
		return 0, auditUnavailable("list audit devices", &wire.Error{Reason: "Vault has no audit device enabled", Hint: "vault audit enable file file_path=…"})
	}
	tune := "sys/mounts/" + string(w.client.mount) + "/tune"
	var tuning struct {
		Keys []string `json:"audit_non_hmac_request_keys"`
	}
	_, err = w.client.do(ctx, request{do: "read mount tuning", method: http.MethodGet, path: tune}, &tuning)
	if err != nil {
		return 0, notAllowedToLook(err, `path "`+tune+`" { capabilities = ["read"] }`)
	}
	var missing []string
	for _, key := range wire.AuditNonHMACRequestKeys() {
		if !slices.Contains(tuning.Keys, key) {
			missing = append(missing, key)
		}
	}
	if len(missing) > 0 {
		sort.Strings(missing)
		return 0, auditUnavailable("read mount tuning", &wire.Error{
			Field: wire.AuditTuning, Reason: "the mount hides from audit devices: " + strings.Join(missing, ", "),
			Hint: "run dbops setup, or vault secrets tune -audit-non-hmac-request-keys=…",
		})
	}
	return len(devices), nil
}

func auditUnavailable(do string, coded *wire.Error) error {
	coded.Code = wire.CodeAuditUnavailable
	return &Error{Do: do, Status: http.StatusOK, Wire: coded, Err: coded}
}

// notAllowedToLook makes a refusal an answer: who may not look cannot know, and
// without knowing nothing is started.
func notAllowedToLook(err error, policy string) error {
	var refused *Error
	if !errors.As(err, &refused) || refused.Status != http.StatusForbidden {
		return err
	}
	coded := &wire.Error{Code: wire.CodeAuditUnavailable, Reason: "the agent may not look at Vault's audit devices", Hint: "add to its ACL policy: " + policy}
	return &Error{Do: "check audit", Status: http.StatusForbidden, Wire: coded, Err: fmt.Errorf("refused: %w", err)}
}
