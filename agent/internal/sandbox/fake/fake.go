// Package fake is a sandbox without isolation, for tests of what uses one: the
// worker runs in this process, behind the real gateway and the real protocol. It
// passes the same suite as the real one, isolation excepted.
package fake

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/gateway"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/worker"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// ExitKilled is the exit code of a worker ended by Kill or Remove.
const ExitKilled = 137

// Sandbox makes fake sandboxes. Set its hooks before use.
type Sandbox struct {
	// OnStart and OnRemove, when set, may fail a Start, or a Remove and Clean.
	OnStart  func(sandbox.Spec) error
	OnRemove func(operationID string) error

	agent   string
	runDir  string
	engines []engine.Engine
	log     hclog.Logger

	mu    sync.Mutex
	boxes map[string]*Box // nil while one is starting
}

var (
	_ sandbox.Sandbox = (*Sandbox)(nil)
	_ sandbox.Box     = (*Box)(nil)
)

// New makes sandboxes for an agent, with their sockets below runDir, which must
// exist. Directories left there by an earlier one count as traces.
func New(agent, runDir string, log hclog.Logger, engines ...engine.Engine) *Sandbox {
	return &Sandbox{agent: agent, runDir: runDir, engines: engines, log: log, boxes: make(map[string]*Box)}
}

// Prepare has nothing to do.
func (*Sandbox) Prepare(ctx context.Context) error { return ctx.Err() }

// Start starts a worker in this process.
func (s *Sandbox) Start(ctx context.Context, spec sandbox.Spec) (sandbox.Box, error) {
	if err := sandbox.CheckOperationID(spec.OperationID); err != nil {
		return nil, failure("the operation's id is not one", err)
	}
	if len(spec.Endpoints) == 0 {
		return nil, failure("the sandbox would reach no database", nil)
	}
	if err := ctx.Err(); err != nil {
		return nil, failure("the sandbox cannot be started", err)
	}
	if s.OnStart != nil {
		if err := s.OnStart(spec); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.boxes[spec.OperationID]; ok {
		return nil, &operation.Error{Step: wire.StepSandbox, Code: wire.CodeConflict, Reason: "the operation has a sandbox already"}
	}
	dir := filepath.Join(s.runDir, spec.OperationID)
	forward, err := gateway.Open(gateway.Config{Dir: dir, Endpoints: spec.Endpoints, MaxBytes: spec.MaxBytes}, s.log)
	if err != nil {
		return nil, failure("the sandbox's sockets cannot be made", err)
	}
	running, kill := context.WithCancel(context.Background())
	b := &Box{sandbox: s, spec: spec, gateway: forward, kill: kill, exited: make(chan struct{})}
	var in io.Reader
	var out, errOut *io.PipeWriter
	in, b.stdin = io.Pipe()
	b.stdout, out = io.Pipe()
	b.stderr, errOut = io.Pipe()
	go func() {
		code := worker.ServeAt(running, dir, in, out, errOut, s.engines)
		if running.Err() != nil {
			code = ExitKilled
		}
		b.exit.Code = code
		_ = out.Close() // never fails
		_ = errOut.Close()
		close(b.exited)
	}()
	s.boxes[spec.OperationID] = b
	return b, nil
}

// List finds what runs and the directories of what ran.
func (s *Sandbox) List(ctx context.Context) ([]sandbox.Info, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(s.runDir)
	if err != nil {
		return nil, fmt.Errorf("read run directory: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var infos []sandbox.Info
	for _, entry := range entries {
		info := sandbox.Info{OperationID: entry.Name(), Agent: s.agent}
		if b := s.boxes[entry.Name()]; b != nil {
			info.ID = b.id()
			select {
			case <-b.exited:
			default:
				info.Running = true
			}
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// Clean removes an operation's box and directory.
func (s *Sandbox) Clean(ctx context.Context, operationID string) error {
	if err := sandbox.CheckOperationID(operationID); err != nil {
		return failure("the operation's id is not one", err)
	}
	s.mu.Lock()
	b := s.boxes[operationID]
	s.mu.Unlock()
	if b != nil {
		return b.Remove(ctx)
	}
	if s.OnRemove != nil {
		if err := s.OnRemove(operationID); err != nil {
			return err
		}
	}
	return gateway.Remove(filepath.Join(s.runDir, operationID))
}

// Box is one fake sandbox.
type Box struct {
	sandbox        *Sandbox
	spec           sandbox.Spec
	gateway        *gateway.Gateway
	stdin          *io.PipeWriter
	stdout, stderr *io.PipeReader
	kill           context.CancelFunc
	exited         chan struct{}
	exit           sandbox.Exit
}

func (b *Box) id() string { return "fake-" + b.spec.OperationID }

// Facts are made up but not empty.
func (b *Box) Facts() sandbox.Facts {
	return sandbox.Facts{ContainerID: b.id(), SandboxFacts: wire.SandboxFacts{WorkerImageID: "sha256:fake-worker", BaseImageID: "sha256:fake-base", Runtime: "fake"}}
}

// Spec is what the box was started with.
func (b *Box) Spec() sandbox.Spec { return b.spec }

func (b *Box) Stdin() io.WriteCloser { return b.stdin }
func (b *Box) Stdout() io.Reader     { return b.stdout }
func (b *Box) Stderr() io.Reader     { return b.stderr }

// Kill ends the worker as the kernel would: the box stays.
func (b *Box) Kill() {
	b.kill()
	b.cut()
}

// cut ends whatever the worker waits for in its pipes.
func (b *Box) cut() {
	_ = b.stdin.Close() // these never fail
	_ = b.stdout.Close()
	_ = b.stderr.Close()
}

// Wait returns when the worker has ended.
func (b *Box) Wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-b.exited:
		return b.exit, nil
	case <-ctx.Done():
		return sandbox.Exit{}, ctx.Err()
	}
}

// Remove ends the worker and removes its directory.
func (b *Box) Remove(ctx context.Context) error {
	if b.sandbox.OnRemove != nil {
		if err := b.sandbox.OnRemove(b.spec.OperationID); err != nil {
			return err
		}
	}
	if err := b.gateway.Close(); err != nil {
		return failure("the sandbox cannot be removed", err)
	}
	b.Kill()
	if _, err := b.Wait(ctx); err != nil {
		return failure("the sandbox cannot be removed", err)
	}
	b.sandbox.mu.Lock()
	defer b.sandbox.mu.Unlock()
	if b.sandbox.boxes[b.spec.OperationID] == b {
		delete(b.sandbox.boxes, b.spec.OperationID)
	}
	return nil
}

func failure(reason string, cause error) error {
	return &operation.Error{Step: wire.StepSandbox, Code: wire.CodeSandbox, Reason: reason, Err: cause}
}
