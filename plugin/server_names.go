package plugin

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

const (
	// identityTimeout bounds what a request waits for servers to say who they are.
	// A server that does not answer a requester is compared when the plan arrives,
	// and none is accepted before; see [backend.ownLook].
	identityTimeout = 1500 * time.Millisecond
	// askedAtOnce bounds the servers asked at a time.
	askedAtOnce = 8
	// askAgainAfter is how long a server that gave no answer is left alone, so that
	// it does not delay every request.
	askAgainAfter = time.Minute
)

// seenServer is what the server of a connection said it is; not stored, because it
// is asked for again by whoever needs it.
type seenServer struct {
	config   string // digest of the config it was asked under
	identity *wire.ServerIdentity
	askAgain time.Time // when there was no answer
}

// askServers asks both servers who they are, and [backend.askOthers].
func (b *backend) askServers(ctx context.Context, s logical.Storage, sides *operationSides) {
	ctx, cancel := context.WithTimeout(ctx, identityTimeout)
	defer cancel()
	var wait sync.WaitGroup
	for _, side := range sides.both() {
		wait.Go(func() {
			if identity := b.askIdentity(ctx, s, side.endpoint.Connection); identity != nil {
				identity.Database = side.endpoint.Database // that of the operation, not of the login
				side.identity = identity
			}
		})
	}
	b.askOthers(ctx, s, sides)
	wait.Wait()
}

// askOthers asks the servers of other connections that may be other names of the
// same databases and have not said so yet: policies for any name of a database
// hold for each, also for one that nobody has used. Mostly there is none to ask.
func (b *backend) askOthers(ctx context.Context, s logical.Storage, sides *operationSides) {
	ctx, cancel := context.WithTimeout(ctx, identityTimeout)
	defer cancel()
	var wait sync.WaitGroup
	slots := make(chan struct{}, askedAtOnce)
	for name, config := range b.ops.unseen(sides, b.now()) {
		wait.Go(func() {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			defer func() { <-slots }()
			seen := seenServer{config: config, identity: b.askIdentity(ctx, s, name), askAgain: b.now().Add(askAgainAfter)}
			b.ops.mu.Lock()
			b.ops.seen[name] = seen
			b.ops.mu.Unlock()
		})
	}
	wait.Wait()
}

// askIdentity returns nil when there is no answer.
func (b *backend) askIdentity(ctx context.Context, s logical.Storage, connection string) *wire.ServerIdentity {
	identity, err := b.ops.accounts.serverIdentity(ctx, s, connection)
	if err != nil {
		b.Logger().Debug("server did not tell its identity; compared when a plan arrives", "connection", connection, "error", err)
		return nil
	}
	if identity.Server == "" {
		return nil
	}
	return &identity
}

// unseen are the connections to ask, with the digests of their configs.
func (o *operationState) unseen(sides *operationSides, now time.Time) map[string]string {
	all := map[string]string{}
	o.mu.RLock()
	defer o.mu.RUnlock()
	for _, side := range sides.both() {
		for name, config := range side.sameDatabaseName {
			seen, asked := o.seen[name]
			if name == sides.source.endpoint.Connection || name == sides.target.endpoint.Connection {
				continue
			}
			if !asked || seen.config != config || (seen.identity == nil && !now.Before(seen.askAgain)) {
				all[name] = config
			}
		}
	}
	return all
}

// saidToBe tells whether the server of the other connection, which has a database
// of the same name, said it is the side's. The caller holds o.mu.
func (o *operationState) saidToBe(side *operationSide, other string) bool {
	config, candidate := side.sameDatabaseName[other]
	seen := o.seen[other]
	return candidate && side.identity != nil && seen.identity != nil && seen.config == config &&
		seen.identity.Engine == side.identity.Engine && seen.identity.Server == side.identity.Server
}
