package vault

import (
	"context"
	"net/http"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Posture returns what is weak about the mount, or about one connection when it is
// named. With fresh every server is looked at again.
func (r *Requester) Posture(ctx context.Context, connection string, fresh bool) (wire.Posture, error) {
	call := request{do: "look at the posture", method: http.MethodGet, path: r.client.mount.Posture(connection)}
	if fresh {
		call.query = map[string][]string{"max_age": {"0"}}
	}
	var posture wire.Posture
	_, err := r.client.doAs(ctx, call, &posture)
	return posture, err
}
