package plugin

import (
	"context"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// operationAccounts is what operations need of connections and accounts.
type operationAccounts interface {
	issueAccount(ctx context.Context, s logical.Storage, r accountRequest) (issuedAccount, error)
	renewAccount(ctx context.Context, s logical.Storage, recordID string, ttl time.Duration) error
	endAccount(ctx context.Context, s logical.Storage, recordID string) error
	endLeased(ctx context.Context, s logical.Storage, recordID string) error
	endOperationAccounts(ctx context.Context, s logical.Storage, operationID string, side wire.Side) error
	endpoint(ctx context.Context, s logical.Storage, connection string) (wire.Endpoint, string, error)
	serverIdentity(ctx context.Context, s logical.Storage, connection string) (wire.ServerIdentity, error)
	operationLogin(ctx context.Context, s logical.Storage, connection, role string) (operationLogin, error)
}

var _ operationAccounts = (*backend)(nil)

// operationPaths is the API of policies, connections, operations and agents.
func (b *backend) operationPaths() []*framework.Path {
	var paths []*framework.Path
	paths = append(paths, b.policyPaths()...)
	paths = append(paths, b.connectionPaths()...)
	paths = append(paths, b.requestPaths()...)
	paths = append(paths, b.ownOperationPaths()...)
	paths = append(paths, b.allOperationPaths()...)
	paths = append(paths, b.acknowledgePaths()...)
	paths = append(paths, b.approvalPaths()...)
	paths = append(paths, b.agentPaths()...)
	paths = append(paths, b.agentWorkPaths()...)
	paths = append(paths, b.chainPaths()...)
	paths = append(paths, b.factPaths()...)
	return paths
}

// opsInitialize reads what is stored and begins to watch deadlines.
func (b *backend) opsInitialize(ctx context.Context, req *logical.InitializationRequest) error {
	if err := b.loadOperations(ctx, req.Storage); err != nil {
		return err
	}
	b.ops.mu.Lock()
	watching := b.ops.watching
	b.ops.watching = true
	b.ops.mu.Unlock()
	if !watching {
		b.work.run(func(ctx context.Context) { b.watchDeadlines(ctx, req.Storage) })
	}
	return nil
}
