package vault

import (
	"context"
	"errors"
	"net/http"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Chains reads the ends of all chains, as an auditor may, and the mount's accessor,
// which Vault does not tell an external plugin. Whoever may read anything below the
// mount may know it.
func (r *Requester) Chains(ctx context.Context) (wire.Chains, error) {
	var chains wire.Chains
	_, err := r.client.doAs(ctx, request{do: "read the ends of chains", method: http.MethodGet, path: r.client.mount.Chains()}, &chains)
	if err != nil {
		return chains, err
	}
	var mount struct {
		Accessor string `json:"accessor"`
	}
	look := request{do: "read the mount's accessor", method: http.MethodGet, path: "sys/internal/ui/mounts/" + string(r.client.mount)}
	if _, err := r.client.doAs(ctx, look, &mount); err != nil {
		return chains, err
	}
	if mount.Accessor == "" {
		return chains, undecodable(look.do, errors.New("no accessor in it"))
	}
	chains.MountAccessor = mount.Accessor
	return chains, nil
}
