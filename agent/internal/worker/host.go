package worker

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// progressEvery is the least time between two progress messages of a run.
const progressEvery = 100 * time.Millisecond

// remoteHost is the agent's [engine.Host] as seen from inside the worker.
type remoteHost struct {
	server      *server
	run         uint64 // id of the request
	operationID string
	wake        chan struct{} // holds a token when latest is news

	mu     sync.Mutex
	step   wire.Step // the last one begun
	latest wire.Progress
}

var _ engine.Host = (*remoteHost)(nil)

func newRemoteHost(s *server, run uint64, operationID string) *remoteHost {
	return &remoteHost{server: s, run: run, operationID: operationID, wake: make(chan struct{}, 1), step: wire.StepSnapshot}
}

func (h *remoteHost) lastStep() wire.Step {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.step
}

// Begin asks the agent and returns its answer.
func (h *remoteHost) Begin(ctx context.Context, step wire.Step, detail json.RawMessage) error {
	h.mu.Lock()
	h.step = step
	h.mu.Unlock()
	return h.server.call(ctx, typeBegin, stepBody{Step: step}, detail, step)
}

// End tells the agent and waits until it knows.
func (h *remoteHost) End(ctx context.Context, step wire.Step, rows, bytes int64) error {
	return h.server.call(ctx, typeEnd, stepBody{Step: step, Rows: rows, Bytes: bytes}, nil, step)
}

// Verified tells the agent and waits until it knows.
func (h *remoteHost) Verified(ctx context.Context, t operation.TableReport) error {
	return h.server.call(ctx, typeVerified, t, nil, wire.StepVerify)
}

// Progress keeps the latest state for the sender started by start.
func (h *remoteHost) Progress(p wire.Progress) {
	p.OperationID = h.operationID
	h.mu.Lock()
	h.latest = p
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// start sends progress until the returned function is called, which sends the
// last state and waits.
func (h *remoteHost) start(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		pause := time.NewTimer(0)
		defer pause.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-pause.C:
			}
			select {
			case <-ctx.Done():
				return
			case <-h.wake:
				h.sendProgress()
				pause.Reset(progressEvery)
			}
		}
	}()
	return func() {
		cancel()
		<-done
		select {
		case <-h.wake:
			h.sendProgress()
		default:
		}
	}
}

func (h *remoteHost) sendProgress() {
	h.mu.Lock()
	latest := h.latest
	h.mu.Unlock()
	if err := h.server.write(typeProgress, h.run, latest, nil); err != nil {
		h.server.log.Warn("progress cannot be sent", "error", err)
	}
}

// call asks the agent and waits for its answer. When ctx ends first the agent is
// told not to go on with it.
func (s *server) call(ctx context.Context, kind messageType, body any, raw []byte, step wire.Step) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	answer := make(chan errorBody, 1)
	s.mu.Lock()
	s.lastCall++
	id := s.lastCall
	s.calls[id] = answer
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.calls, id)
		s.mu.Unlock()
	}()
	if err := s.write(kind, id, body, raw); err != nil {
		return &operation.Error{Step: step, Code: wire.CodeSandbox, Reason: "the agent cannot be reached", Err: err}
	}
	select {
	case reply := <-answer:
		if reply.Code == "" {
			return nil
		}
		return reply.error(step)
	case <-ctx.Done():
		if err := s.write(typeCancel, id, nil, nil); err != nil {
			s.log.Warn("call cannot be given up", "error", err)
		}
		return ctx.Err()
	}
}

// answered hands an answer to the call that waits for it, if it still does.
func (s *server) answered(id uint64, body errorBody) {
	s.mu.Lock()
	answer, ok := s.calls[id]
	delete(s.calls, id)
	s.mu.Unlock()
	if ok {
		answer <- body
	}
}
