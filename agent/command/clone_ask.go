package command

import (
	"context"
	"regexp"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/vault"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/wait"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// connectionName is what Vault lets a name in a path look like. It is checked
// here so that a slash in it is a wrong command line and not another path.
var connectionName = regexp.MustCompile(`^\w(([\w-.]+)?\w)?$`)

// askTries is how often a request is sent while Vault does not answer. The
// request id makes it one operation.
const askTries = 4

// asker is the part of [vault.Requester] that asking needs.
type asker interface {
	Ask(ctx context.Context, request vault.Request) (wire.Operation, error)
}

// askPatiently asks again while Vault is unavailable, for some seconds.
func askPatiently(ctx context.Context, a asker, request vault.Request) (wire.Operation, error) {
	pause := 500 * time.Millisecond
	for try := 1; ; try++ {
		op, err := a.Ask(ctx, request)
		if err == nil || try == askTries || vault.CodeOf(err) != wire.CodeUnavailable || ctx.Err() != nil {
			return op, err
		}
		if !wait.For(ctx, pause) {
			return op, ctx.Err()
		}
		pause *= 2
	}
}
