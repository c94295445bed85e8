package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Pipes are the ends of a worker's standard streams; a sandbox.Box is one.
type Pipes interface {
	Stdin() io.WriteCloser
	Stdout() io.Reader
	Stderr() io.Reader
}

// undoTime is how long a cancelled request may take to undo what it did.
const undoTime = 30 * time.Second

// maxOpenCalls is how many calls to the host may wait at once. An engine waits
// for each, so more of them is a worker out of its mind.
const maxOpenCalls = 64

// Client talks to one worker. It may be used by several goroutines. Its errors
// are *operation.Error.
type Client struct {
	log      hclog.Logger
	pipes    Pipes
	send     *writer
	undoTime time.Duration
	done     chan struct{} // closed when the worker can no longer be talked to
	stopped  sync.WaitGroup

	mu       sync.Mutex // guards the rest
	err      error      // why done is closed
	greeted  chan struct{}
	engines  []wire.EngineType
	lastID   uint64
	requests map[uint64]*request
	current  *run
}

// request is one that waits for its outcome.
type request struct {
	step    wire.Step
	outcome chan outcome
}

type outcome struct {
	body []byte
	raw  []byte
	err  *operation.Error
}

// run is the run going on, the receiver of calls.
type run struct {
	id    uint64
	host  engine.Host
	calls chan hostCall

	mu      sync.Mutex
	step    wire.Step // last begun
	pending map[uint64]context.CancelFunc
}

type hostCall struct {
	ctx context.Context
	message
}

// NewClient starts talking to the worker behind pipes and reads both its
// outputs until they end; its log lines go to log. It returns at once: the
// worker may still be starting.
func NewClient(pipes Pipes, log hclog.Logger) *Client {
	c := &Client{
		log:      log,
		pipes:    pipes,
		send:     &writer{out: pipes.Stdin()},
		undoTime: undoTime,
		done:     make(chan struct{}),
		greeted:  make(chan struct{}),
		requests: make(map[uint64]*request),
	}
	c.stopped.Add(2)
	go func() {
		defer c.stopped.Done()
		c.fail(c.read())
	}()
	go func() {
		defer c.stopped.Done()
		copyLog(pipes.Stderr(), log)
	}()
	return c
}

// Close ends the worker by closing its stdin. Requests still waiting fail.
func (c *Client) Close() error {
	c.fail(errors.New("closed by the agent"))
	if err := c.pipes.Stdin().Close(); err != nil {
		return fmt.Errorf("close the worker's stdin: %w", err)
	}
	return nil
}

// Done is closed when the worker can no longer be talked to: it ended, broke the
// protocol, or the client was closed.
func (c *Client) Done() <-chan struct{} { return c.done }

// Ready waits until the worker has started and speaks our protocol.
func (c *Client) Ready(ctx context.Context) error {
	select {
	case <-c.greeted:
		return nil
	case <-c.done:
		return c.lost(wire.StepSandbox)
	case <-ctx.Done():
		return &operation.Error{
			Step: wire.StepSandbox, Code: newErrorBody(ctx.Err(), "").Code, Reason: "the worker did not start in time", Err: ctx.Err(),
		}
	}
}

// Open hands the worker the endpoints and credentials of a phase. They replace
// earlier ones; a run going on keeps those it began with.
func (c *Client) Open(ctx context.Context, accounts map[wire.Side]wire.Account) error {
	if err := c.Ready(ctx); err != nil {
		return err
	}
	m, err := newMessage(typeOpen, 0, newOpenBody(accounts), nil)
	if err != nil {
		return &operation.Error{Step: wire.StepSandbox, Code: wire.CodeInternal, Reason: "accounts cannot be encoded", Err: err}
	}
	defer clear(m.body)
	_, err = c.ask(ctx, m, wire.StepSandbox, nil)
	return err
}

// Inspect returns what the engine says about a side, byte for byte.
func (c *Client) Inspect(ctx context.Context, side wire.Side) (json.RawMessage, error) {
	m, err := newMessage(typeInspect, 0, inspectBody{Side: side}, nil)
	if err != nil {
		return nil, &operation.Error{Step: wire.StepInspect, Code: wire.CodeInternal, Reason: "request cannot be encoded", Err: err}
	}
	answer, err := c.ask(ctx, m, wire.StepInspect, nil)
	if err != nil {
		return nil, err
	}
	if !json.Valid(answer.raw) {
		return nil, c.broken(wire.StepInspect, errors.New("inspection is not JSON"))
	}
	return answer.raw, nil
}

// Run does the planned work. The engine's calls reach host one at a time, under a
// context that outlives the cancellation of ctx, so that an undo can still be
// recorded, and that ends when the engine gives a call up or Run returns.
//
// When ctx ends, the worker is told to stop and Run waits, at most 30 s, for what
// it says about that: a run that was switched already succeeds.
func (c *Client) Run(ctx context.Context, job RunRequest, host engine.Host) (operation.Report, error) {
	m, err := newMessage(typeRun, 0, job, job.Shape)
	if err != nil {
		return operation.Report{}, &operation.Error{Step: wire.StepSnapshot, Code: wire.CodeInternal, Reason: "job cannot be encoded", Err: err}
	}
	answer, err := c.ask(ctx, m, wire.StepSnapshot, host)
	if err != nil {
		return operation.Report{}, err
	}
	var report operation.Report
	if err := json.Unmarshal(answer.body, &report); err != nil {
		return operation.Report{}, c.broken(wire.StepFinish, errors.New("report cannot be read"))
	}
	return report, nil
}

// Cleanup removes what a run of the operation left at the target.
func (c *Client) Cleanup(ctx context.Context, operationID string) (engine.CleanupResult, error) {
	m, err := newMessage(typeCleanup, 0, cleanupBody{OperationID: operationID}, nil)
	if err != nil {
		return engine.CleanupResult{}, &operation.Error{Step: wire.StepCleanup, Code: wire.CodeInternal, Reason: "request cannot be encoded", Err: err}
	}
	answer, err := c.ask(ctx, m, wire.StepCleanup, nil)
	if err != nil {
		return engine.CleanupResult{}, err
	}
	var result engine.CleanupResult
	if err := json.Unmarshal(answer.body, &result); err != nil {
		return engine.CleanupResult{}, c.broken(wire.StepCleanup, errors.New("cleanup result cannot be read"))
	}
	return result, nil
}

// ask sends a request and waits for its outcome. With a host the request is a
// run, and calls are served meanwhile.
func (c *Client) ask(ctx context.Context, m message, step wire.Step, host engine.Host) (outcome, error) {
	if err := c.Ready(ctx); err != nil {
		return outcome{}, err
	}
	if err := ctx.Err(); err != nil {
		return outcome{}, newErrorBody(err, step).error(step)
	}
	waiting := &request{step: step, outcome: make(chan outcome, 1)}
	c.mu.Lock()
	if host != nil && c.current != nil {
		c.mu.Unlock()
		return outcome{}, &operation.Error{Step: step, Code: wire.CodeConflict, Reason: "another run is going on in this worker"}
	}
	c.lastID++
	m.id = c.lastID
	c.requests[m.id] = waiting
	if host != nil {
		c.current = newRun(m.id, host)
	}
	active := c.current
	c.mu.Unlock()

	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.requests, m.id)
		if host != nil {
			c.current = nil
		}
	}()
	if host != nil {
		defer active.serve(context.WithoutCancel(ctx), c)()
	}

	sent := make(chan error, 1)
	go func() { sent <- c.send.send(m) }() // a worker that does not read must not hold us
	cancelled := ctx.Done()
	var late <-chan time.Time
	for {
		select {
		case answer := <-waiting.outcome:
			if answer.err != nil {
				return outcome{}, answer.err
			}
			return answer, nil
		case err := <-sent:
			if err == nil {
				sent = nil
				continue
			}
			if errors.Is(err, errTooLong) {
				return outcome{}, &operation.Error{Step: step, Code: wire.CodePlanTooLarge, Reason: "the plan is larger than what can be handled"}
			}
			c.fail(err)
			return outcome{}, c.lost(step)
		case <-c.done:
			if host != nil {
				step = active.lastStep()
			}
			return outcome{}, c.lost(step)
		case <-cancelled:
			cancelled = nil
			timer := time.NewTimer(c.undoTime)
			defer timer.Stop()
			late = timer.C
			go func() {
				if err := c.send.send(message{kind: typeCancel, id: m.id}); err != nil {
					c.fail(err)
				}
			}()
		case <-late:
			e := newErrorBody(ctx.Err(), step).error(step)
			e.Reason = "the worker did not stop when told to"
			return outcome{}, e
		}
	}
}

// read handles what the worker says until that ends.
func (c *Client) read() error {
	messages := newReader(c.pipes.Stdout())
	first, err := messages.next()
	if err != nil {
		return err
	}
	if err := c.greet(first); err != nil {
		return err
	}
	for {
		m, err := messages.next()
		if err != nil {
			return err
		}
		if err := c.handle(m); err != nil {
			return err
		}
	}
}

func (c *Client) greet(m message) error {
	if m.kind != typeHello {
		return fmt.Errorf("worker begins with %q", plain(string(m.kind)))
	}
	var hello helloBody
	if err := m.decode(&hello); err != nil {
		return err
	}
	if hello.Version != Version {
		return fmt.Errorf("worker speaks version %d of the protocol, the agent %d", hello.Version, Version)
	}
	c.mu.Lock()
	c.engines = hello.Engines
	c.mu.Unlock()
	close(c.greeted)
	return nil
}

func (c *Client) handle(m message) error {
	switch m.kind {
	case typeResult:
		c.finish(m.id, outcome{body: m.body, raw: m.raw})
		return nil
	case typeError:
		var body errorBody
		if err := m.decode(&body); err != nil {
			return err
		}
		c.mu.Lock()
		waiting, ok := c.requests[m.id]
		c.mu.Unlock()
		if ok {
			c.finish(m.id, outcome{err: body.error(waiting.step)})
		}
		return nil
	case typeBegin, typeEnd, typeVerified:
		if active := c.active(); active != nil {
			return active.take(m)
		}
		// A run given up by us may still say something.
		return nil
	case typeProgress:
		active := c.active()
		if active == nil || active.id != m.id {
			return nil
		}
		var progress wire.Progress
		if err := m.decode(&progress); err != nil {
			return err
		}
		progress.Table = plain(progress.Table)
		active.host.Progress(progress)
		return nil
	case typeCancel:
		if active := c.active(); active != nil {
			active.giveUp(m.id)
		}
		return nil
	default:
		return fmt.Errorf("worker sent a message of unknown type %q", plain(string(m.kind)))
	}
}

func (c *Client) active() *run {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current
}

// finish hands the outcome to the request that waits for it, once.
func (c *Client) finish(id uint64, o outcome) {
	c.mu.Lock()
	waiting, ok := c.requests[id]
	delete(c.requests, id)
	c.mu.Unlock()
	if ok {
		waiting.outcome <- o
	}
}

// fail ends the conversation; the first reason stays.
func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	close(c.done)
}

// lost is the error of a request that will not be answered any more.
func (c *Client) lost(step wire.Step) *operation.Error {
	c.mu.Lock()
	defer c.mu.Unlock()
	reason := "the worker broke the protocol"
	if errors.Is(c.err, io.EOF) || errors.Is(c.err, io.ErrUnexpectedEOF) || errors.Is(c.err, io.ErrClosedPipe) {
		reason = "the worker ended"
	}
	return &operation.Error{Step: step, Code: wire.CodeSandbox, Reason: reason, Err: c.err}
}

// broken ends the conversation with a worker that answers nonsense.
func (c *Client) broken(step wire.Step, err error) *operation.Error {
	c.fail(err)
	return c.lost(step)
}

func newRun(id uint64, host engine.Host) *run {
	return &run{
		id: id, host: host, step: wire.StepSnapshot,
		calls: make(chan hostCall, maxOpenCalls), pending: make(map[uint64]context.CancelFunc),
	}
}

// serve hands calls to the host, in their order, until the returned function is
// called, which ends the one going on and waits for it.
func (r *run) serve(ctx context.Context, c *Client) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ctx.Done():
				return
			case call := <-r.calls:
				stopped := context.AfterFunc(ctx, func() { r.giveUp(call.id) })
				err := r.answer(call)
				stopped()
				r.giveUp(call.id)
				reply := errorBody{}
				if err != nil {
					reply = newErrorBody(err, r.lastStep())
				}
				m, err := newMessage(typeAnswer, call.id, reply, nil)
				if err == nil {
					err = c.send.send(m)
				}
				if err != nil {
					c.fail(err)
					return
				}
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// take queues a call. The queue is as long as the number of calls allowed to
// wait, so the reader is never held up by the host.
func (r *run) take(m message) error {
	ctx, cancel := context.WithCancel(context.Background())
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, twice := r.pending[m.id]; twice || len(r.pending) >= maxOpenCalls {
		cancel()
		return errors.New("worker makes more calls than an engine can wait for")
	}
	select {
	case r.calls <- hostCall{ctx: ctx, message: m}:
		r.pending[m.id] = cancel
		return nil
	default:
		cancel()
		return errors.New("worker makes more calls than an engine can wait for")
	}
}

// giveUp ends the context of a call, if it is still waiting.
func (r *run) giveUp(id uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if cancel, ok := r.pending[id]; ok {
		cancel()
		delete(r.pending, id)
	}
}

func (r *run) lastStep() wire.Step {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.step
}

// answer lets the host decide about a call.
func (r *run) answer(call hostCall) error {
	if err := call.ctx.Err(); err != nil {
		return err
	}
	if call.kind == typeVerified {
		var table operation.TableReport
		if err := call.decode(&table); err != nil {
			return err
		}
		return r.host.Verified(call.ctx, table)
	}
	var body stepBody
	if err := call.decode(&body); err != nil {
		return err
	}
	if !known(body.Step) {
		return &operation.Error{Code: wire.CodeInternal, Reason: "the worker names a step that does not exist"}
	}
	if call.kind == typeEnd {
		return r.host.End(call.ctx, body.Step, body.Rows, body.Bytes)
	}
	if len(call.raw) > 0 && !json.Valid(call.raw) {
		return &operation.Error{Step: body.Step, Code: wire.CodeInternal, Reason: "the worker's detail is not JSON"}
	}
	r.mu.Lock()
	r.step = body.Step
	r.mu.Unlock()
	return r.host.Begin(call.ctx, body.Step, call.raw)
}
