package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/gateway"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox"
)

// box is one container with its gateway.
type box struct {
	sandbox     *Sandbox
	operationID string
	id          string
	facts       sandbox.Facts
	gateway     *gateway.Gateway

	attached       types.HijackedResponse
	stdout, stderr *io.PipeReader
	reading        sync.WaitGroup

	exited  chan struct{} // closed when exit and exitErr are set
	exit    sandbox.Exit
	exitErr error
	unwatch context.CancelFunc

	removing sync.Mutex // one Remove at a time
	removed  bool       // guarded by removing
}

var _ sandbox.Box = (*box)(nil)

func (b *box) Facts() sandbox.Facts  { return b.facts }
func (b *box) Stdin() io.WriteCloser { return stdin{b.attached} }
func (b *box) Stdout() io.Reader     { return b.stdout }
func (b *box) Stderr() io.Reader     { return b.stderr }

// stdin is the writing half of the attached connection. Closing it leaves the
// outputs open.
type stdin struct{ attached types.HijackedResponse }

func (s stdin) Write(content []byte) (int, error) { return s.attached.Conn.Write(content) }
func (s stdin) Close() error                      { return s.attached.CloseWrite() }

// attach begins to take the two outputs apart. Unread output waits: it fills no
// memory, here or in the daemon.
func (b *box) attach(attached types.HijackedResponse) {
	b.attached = attached
	var stdout, stderr *io.PipeWriter
	b.stdout, stdout = io.Pipe()
	b.stderr, stderr = io.Pipe()
	b.reading.Go(func() {
		_, err := stdcopy.StdCopy(stdout, stderr, attached.Reader)
		stdout.CloseWithError(err) // nil reads as io.EOF
		stderr.CloseWithError(err)
	})
}

// watch waits for the worker's end in the background.
func (b *box) watch() {
	ctx, cancel := context.WithCancel(context.Background())
	b.unwatch = cancel
	b.exited = make(chan struct{})
	go func() {
		defer close(b.exited)
		defer cancel()
		ended, failed := b.sandbox.docker.ContainerWait(ctx, b.id, container.WaitConditionNotRunning)
		select {
		case answer := <-ended:
			b.exit.Code = int(answer.StatusCode)
			if answer.Error != nil {
				b.exitErr = errors.New(answer.Error.Message)
			}
		case b.exitErr = <-failed:
		}
		// Out of memory is known to inspect only, and a daemon that was restarted
		// in between knows how it ended.
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		state, err := b.sandbox.docker.ContainerInspect(ctx, b.id)
		if err == nil && state.State != nil && !state.State.Running {
			b.exit = sandbox.Exit{Code: state.State.ExitCode, OOMKilled: state.State.OOMKilled}
			b.exitErr = nil
		}
	}()
}

// Wait returns when the worker has ended.
func (b *box) Wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-b.exited:
		if b.exitErr != nil {
			return b.exit, fmt.Errorf("wait for the worker: %w", b.exitErr)
		}
		return b.exit, nil
	case <-ctx.Done():
		return sandbox.Exit{}, ctx.Err()
	}
}

// Remove cuts the database connections first, then ends the worker.
func (b *box) Remove(ctx context.Context) error {
	b.removing.Lock()
	defer b.removing.Unlock()
	if b.removed {
		return nil
	}
	if err := b.undo(ctx); err != nil {
		return failure("the sandbox cannot be removed", "", err)
	}
	b.removed = true
	b.sandbox.release(b.operationID)
	b.sandbox.log.Debug("sandbox removed", "operation_id", b.operationID, "container_id", b.id)
	return nil
}

// undo takes back as much of a sandbox as there is; repeatable.
func (b *box) undo(ctx context.Context) error {
	var errs []error
	if b.gateway != nil {
		errs = append(errs, b.gateway.Close())
	}
	if b.attached.Conn != nil {
		// Before the container, since the daemon would wait until somebody has
		// taken what the worker wrote.
		b.attached.Close()
		errs = append(errs, b.stdout.Close(), b.stderr.Close())
		b.reading.Wait()
	}
	if b.id != "" {
		errs = append(errs, b.sandbox.removeContainer(ctx, b.id))
	}
	if b.exited != nil {
		b.unwatch()
		<-b.exited
	}
	return errors.Join(errs...)
}

// removeContainer ends and removes a container; one that is gone is fine.
func (s *Sandbox) removeContainer(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := s.docker.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})
	if errdefs.IsConflict(err) {
		// Somebody else is removing it.
		gone, failed := s.docker.ContainerWait(ctx, id, container.WaitConditionRemoved)
		select {
		case <-gone:
			return nil
		case err = <-failed:
		}
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove container: %w", err)
	}
	return nil
}
