// Package sandbox is the isolated place an operation runs in: no network, one
// unix socket per allowed database, a hardened container, and a worker that ends
// when the agent does.
package sandbox

import (
	"context"
	"io"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Spec describes one sandbox.
type Spec struct {
	OperationID string
	Fence       string
	Endpoints   map[wire.Side]wire.Endpoint // where the gateway forwards to, and nothing else
	MaxBytes    int64                       // cut off above this many forwarded bytes per side and direction; 0: none
}

// Facts are what a receipt and an event say about a sandbox.
type Facts struct {
	ContainerID string `json:"container_id"`
	wire.SandboxFacts
}

// Exit is how a worker ended.
type Exit struct {
	Code      int
	OOMKilled bool
}

// Box is one running sandbox. Its worker waits for orders on Stdin.
type Box interface {
	Facts() Facts
	// Stdin is the control channel; closing it ends the worker.
	Stdin() io.WriteCloser
	// Stdout carries the worker's messages, Stderr its log lines.
	Stdout() io.Reader
	Stderr() io.Reader
	// Wait returns when the worker has ended.
	Wait(ctx context.Context) (Exit, error)
	// Remove ends the worker if it still runs and removes every trace: the
	// container, the sockets, the directory. Removing twice is fine.
	Remove(ctx context.Context) error
}

// Info is a trace of a sandbox found on the host.
type Info struct {
	ID          string // container id, empty for a directory alone
	OperationID string
	Agent       string
	Running     bool
}

// Sandbox makes sandboxes on this host.
type Sandbox interface {
	// Prepare makes sure the worker image exists. Repeatable.
	Prepare(ctx context.Context) error
	// Start makes and starts a sandbox.
	Start(ctx context.Context, spec Spec) (Box, error)
	// List finds what this agent has made and not removed, by label.
	List(ctx context.Context) ([]Info, error)
	// Clean removes every trace of an operation. Nothing left is success.
	Clean(ctx context.Context, operationID string) error
}
