// Package engine is the seam between an operation and one database product.
//
// Plan is pure and runs in the agent. Everything that talks to a database runs
// in the worker, inside the sandbox: Inspect, Run and Cleanup. An engine starts
// no process outside the worker and never touches Vault.
package engine

import (
	"context"
	"encoding/json"
	"io"
	"net"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Endpoint is one database as the worker reaches it.
type Endpoint struct {
	wire.Endpoint
	Username string
	Password wire.Secret
	// Dial opens one more connection to the database, through the sandbox's
	// socket. TLS is the engine's matter, end to end: Host and SSLMode are those
	// of the real server.
	Dial func(ctx context.Context) (net.Conn, error)
	// Tool is where a client tool started by the worker connects: the real host
	// name (which leads to the worker's own loopback) and a port. Nothing listens
	// there before OpenTool was called once.
	OpenTool func() (host string, port int, err error)
	// RunTool runs a client program in the worker to its end. The program is killed
	// when ctx ends.
	RunTool func(ctx context.Context, t Tool) error
}

// Job is everything a run needs. Shape is the approved one.
type Job struct {
	OperationID string
	Options     map[string]string
	Shape       json.RawMessage
	MaxRows     int64 // 0: no limit
	MaxBytes    int64
	Source      Endpoint
	Target      Endpoint
	TempDir     string // in memory, private to the worker
}

// Tool is one run of a client program. Arguments and environment hold no secret.
type Tool struct {
	Path           string
	Args           []string  // without the program's name
	Env            []string  // all there is
	Stdout, Stderr io.Writer // nil: thrown away
}

// Host is the agent as seen by a running engine.
type Host interface {
	// Begin says that a step is about to start and returns once the agent has
	// recorded the intention durably. Detail is what the step is about, for the
	// agent: at StepSnapshot the shape as seen inside the snapshot
	// (json.RawMessage), at StepSwitch nil. An error means stop: undo what is
	// staged and return it.
	Begin(ctx context.Context, step wire.Step, detail json.RawMessage) error
	// End says that the step is done, with its rows and bytes.
	End(ctx context.Context, step wire.Step, rows, bytes int64) error
	// Progress may be called often; the host thins it out. Never blocks.
	Progress(p wire.Progress)
	// Verified reports one verified table.
	Verified(ctx context.Context, t operation.TableReport) error
}

// Engine is one database product. Errors are *operation.Error wherever a code is
// known.
type Engine interface {
	Type() wire.EngineType
	// Inspect reads the catalogs of one side, nothing else. The answer is the
	// engine's own JSON, given back to Plan. At the target the database may not
	// exist yet. A source that the worker has no client tools for is refused here.
	Inspect(ctx context.Context, side wire.Side, e Endpoint) (json.RawMessage, error)
	// Plan decides what the operation will do, from data alone. The result is
	// deterministic: equal inputs give equal bytes of Shape.
	Plan(kind wire.Kind, options map[string]string, source, target json.RawMessage) (wire.Plan, error)
	// Run does the planned work up to the switched, verified target. When it
	// returns an error the target is as it was, or Cleanup makes it so.
	Run(ctx context.Context, job Job, host Host) (operation.Report, error)
	// Cleanup removes whatever a run of this operation left at the target, at
	// whatever step it died. It is repeatable. Switched tells that the copy had
	// been put in place: then only the replaced database is removed.
	Cleanup(ctx context.Context, operationID string, target Endpoint) (CleanupResult, error)
}

// CleanupResult is what Cleanup found.
type CleanupResult struct {
	Switched bool     `json:"switched"`
	Removed  []string `json:"removed"`
}
