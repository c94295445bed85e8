package runner

import (
	"context"
	"encoding/json"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/journal"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/worker"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Vault is the work protocol. Each call is one request; a repeat is answered like
// the first time. Errors hold a *wire.Error.
type Vault interface {
	Poll(ctx context.Context, poll wire.PollRequest) (wire.PollResponse, error)
	Account(ctx context.Context, id string, purpose wire.Purpose, side wire.Side, fence string) (wire.Account, error)
	Renew(ctx context.Context, id, leaseID string, ttl time.Duration) (time.Duration, error)
	Revoke(ctx context.Context, id string) error
	Plan(ctx context.Context, id, fence, text string) (wire.PlanResponse, error)
	Finish(ctx context.Context, id string, finish wire.FinishRequest) (wire.FinishResponse, error)
}

// Events is where audit events go: durable when Record returns.
type Events interface {
	Record(ctx context.Context, events ...wire.Event) error
	Flush(ctx context.Context, operationID string) error
	Observe(chain wire.Chain, asked time.Time) error
}

// Audit knows whether Vault's audit devices record events.
type Audit interface {
	Ready() bool
	Count() int
	// Problem is why Count is no more than 0; untuned says that the mount hides
	// events.
	Problem() (reason string, untuned bool)
	Check(ctx context.Context) error
	Await(ctx context.Context, patience time.Duration) error
}

// Facts fetches what the plugin wants to see in audit devices.
type Facts interface {
	// Wake says that there are some now. It does not wait.
	Wake()
}

// Journal is the durable record of what this host does.
type Journal interface {
	Put(e journal.Entry) error
	Delete(operationID string) error
	List() ([]journal.Entry, error)
}

// Planner is the part of an engine that decides; it runs in the agent.
type Planner interface {
	Plan(kind wire.Kind, options map[string]string, source, target json.RawMessage) (wire.Plan, error)
}

// Worker is the process in a sandbox. Errors are *operation.Error.
type Worker interface {
	Open(ctx context.Context, accounts map[wire.Side]wire.Account) error
	Inspect(ctx context.Context, side wire.Side) (json.RawMessage, error)
	Run(ctx context.Context, job worker.RunRequest, host engine.Host) (operation.Report, error)
	Cleanup(ctx context.Context, operationID string) (engine.CleanupResult, error)
	Done() <-chan struct{}
	Close() error
}

var _ Worker = (*worker.Client)(nil)

// Connect starts talking to the worker of a box.
type Connect func(box sandbox.Box, log hclog.Logger) Worker
