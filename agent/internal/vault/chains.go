package vault

import (
	"context"
	"net/http"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Chains reads the ends of all chains, as an auditor may.
func (r *Requester) Chains(ctx context.Context) (wire.Chains, error) {
	var chains wire.Chains
	_, err := r.client.doAs(ctx, request{do: "read the ends of chains", method: http.MethodGet, path: r.client.mount.Chains()}, &chains)
	if err == nil && chains.MountAccessor == "" {
		err = undecodable("read the ends of chains", nil)
	}
	return chains, err
}
