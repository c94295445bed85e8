package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

type serverConfig struct {
	out       io.Writer
	redact    *redactor
	log       hclog.Logger
	engines   []engine.Engine
	socketDir string
	tempDir   string
	stopTime  time.Duration
}

// server answers one agent.
type server struct {
	serverConfig
	send   *writer
	tools  *tools
	onStop func() // called once, when everything is being stopped

	work sync.WaitGroup // requests being worked on

	mu       sync.Mutex // guards the rest
	accounts map[wire.Side]wire.Account
	requests map[uint64]context.CancelFunc
	writing  bool // a run or a cleanup is going on
	lastCall uint64
	calls    map[uint64]chan errorBody
}

func newServer(config serverConfig) *server {
	return &server{
		serverConfig: config,
		send:         &writer{out: config.out},
		tools:        newTools(config.log),
		onStop:       func() {},
		accounts:     make(map[wire.Side]wire.Account),
		requests:     make(map[uint64]context.CancelFunc),
		calls:        make(map[uint64]chan errorBody),
	}
}

// serve works until in ends or ctx is done, and returns the exit code.
func (s *server) serve(ctx context.Context, in io.Reader) int {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	hello := helloBody{Version: Version}
	for _, e := range s.engines {
		hello.Engines = append(hello.Engines, e.Type())
	}
	if err := s.write(typeHello, 0, hello, nil); err != nil {
		s.log.Error("agent cannot be greeted", "error", err)
		return ExitBroken
	}

	// The read cannot be interrupted, so it is left behind when ctx ends first.
	ended := make(chan error, 1)
	go func() { ended <- s.read(ctx, in) }()
	code := ExitEnded
	select {
	case err := <-ended:
		if !errors.Is(err, io.EOF) {
			s.log.Error("conversation with the agent broke", "error", err)
			code = ExitBroken
		}
	case <-ctx.Done():
	}

	cancel()
	s.onStop()
	s.tools.close()
	stopped := make(chan struct{})
	go func() { s.work.Wait(); close(stopped) }()
	timer := time.NewTimer(s.stopTime)
	defer timer.Stop()
	select {
	case <-stopped:
		return code
	case <-timer.C:
		s.log.Error("an engine did not stop")
		return ExitStuck
	}
}

// read handles what arrives until the stream ends.
func (s *server) read(ctx context.Context, in io.Reader) error {
	messages := newReader(in)
	for {
		m, err := messages.next()
		if err != nil {
			return err
		}
		if err := s.handle(ctx, m); err != nil {
			return err
		}
	}
}

// handle starts what m asks for. Its error ends the conversation.
func (s *server) handle(ctx context.Context, m message) error {
	switch m.kind {
	case typeOpen:
		var body openBody
		err := m.decode(&body)
		clear(m.body)
		if err != nil {
			return err
		}
		s.open(body)
		return s.write(typeResult, m.id, nil, nil)
	case typeInspect:
		var body inspectBody
		if err := m.decode(&body); err != nil {
			return err
		}
		s.start(ctx, m.id, wire.StepInspect, func(ctx context.Context) (any, []byte, error) {
			content, err := s.inspect(ctx, body.Side)
			return nil, content, err
		})
		return nil
	case typeRun:
		var body RunRequest
		if err := m.decode(&body); err != nil {
			return err
		}
		body.Shape = m.raw
		s.startRun(ctx, m.id, body)
		return nil
	case typeCleanup:
		var body cleanupBody
		if err := m.decode(&body); err != nil {
			return err
		}
		s.start(ctx, m.id, wire.StepCleanup, func(ctx context.Context) (any, []byte, error) {
			result, err := s.cleanup(ctx, body.OperationID)
			return result, nil, err
		})
		return nil
	case typeCancel:
		s.cancel(m.id)
		return nil
	case typeAnswer:
		var body errorBody
		if err := m.decode(&body); err != nil {
			return err
		}
		s.answered(m.id, body)
		return nil
	default:
		return fmt.Errorf("agent sent a message of unknown type %q", m.kind)
	}
}

func (s *server) write(kind messageType, id uint64, body any, raw []byte) error {
	m, err := newMessage(kind, id, body, raw)
	if err != nil {
		return err
	}
	return s.send.send(m)
}

// open takes the accounts of the next phase.
func (s *server) open(body openBody) {
	accounts := make(map[wire.Side]wire.Account, len(body.Accounts))
	for side, account := range body.Accounts {
		s.redact.add(account.Password.secret)
		accounts[side] = wire.Account{
			Endpoint: account.Endpoint, Username: account.Username, Password: account.Password.secret,
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accounts = accounts
}

// start runs do for the request id and sends its outcome. Step is where an error
// that does not say happened.
func (s *server) start(ctx context.Context, id uint64, step wire.Step, do func(context.Context) (any, []byte, error)) {
	ctx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	s.requests[id] = cancel
	s.mu.Unlock()
	s.work.Add(1)
	go func() {
		defer s.work.Done()
		body, raw, err := s.guarded(ctx, do)
		cancel()
		s.mu.Lock()
		delete(s.requests, id)
		s.mu.Unlock()
		if err == nil {
			err = s.write(typeResult, id, body, raw)
			if err == nil {
				return
			}
			if errors.Is(err, errTooLong) {
				err = &operation.Error{Step: step, Code: wire.CodePlanTooLarge, Reason: "the database's description is larger than " +
					"what can be handled"}
			}
		}
		if err := s.write(typeError, id, s.errorBody(err, step), nil); err != nil {
			s.log.Error("outcome cannot be sent", "error", err)
		}
	}()
}

// errorBody is newErrorBody without passwords, whatever an engine put into it.
func (s *server) errorBody(err error, step wire.Step) errorBody {
	body := newErrorBody(err, step)
	body.Reason = s.redact.text(body.Reason)
	body.Hint = s.redact.text(body.Hint)
	return body
}

// guarded turns a panic into an error. The panic's value may quote data and is
// not shown; the stack does not hold any.
func (s *server) guarded(ctx context.Context, do func(context.Context) (any, []byte, error)) (body any, raw []byte, err error) {
	defer func() {
		if recover() != nil {
			s.log.Error("engine panicked", "stack", string(debug.Stack()))
			err = &operation.Error{Code: wire.CodeInternal, Reason: "the worker has a defect; the agent's log shows where"}
		}
	}()
	return do(ctx)
}

// cancel stops a request; one that has ended already needs nothing.
func (s *server) cancel(id uint64) {
	s.mu.Lock()
	cancel, ok := s.requests[id]
	s.mu.Unlock()
	if ok {
		cancel()
	}
}

func (s *server) inspect(ctx context.Context, side wire.Side) ([]byte, error) {
	endpoint, err := s.endpoint(side)
	if err != nil {
		return nil, err
	}
	e, err := s.engine(endpoint)
	if err != nil {
		return nil, err
	}
	return e.Inspect(ctx, side, endpoint)
}

func (s *server) cleanup(ctx context.Context, operationID string) (engine.CleanupResult, error) {
	done, err := s.begin()
	if err != nil {
		return engine.CleanupResult{}, err
	}
	defer done()
	endpoint, err := s.endpoint(wire.Target)
	if err != nil {
		return engine.CleanupResult{}, err
	}
	e, err := s.engine(endpoint)
	if err != nil {
		return engine.CleanupResult{}, err
	}
	return e.Cleanup(ctx, operationID, endpoint)
}

func (s *server) startRun(ctx context.Context, id uint64, request RunRequest) {
	host := newRemoteHost(s, id, request.OperationID)
	s.start(ctx, id, wire.StepSnapshot, func(ctx context.Context) (any, []byte, error) {
		report, err := s.run(ctx, request, host)
		if err != nil {
			return nil, nil, s.errorBody(err, host.lastStep()).error(host.lastStep())
		}
		return report, nil, nil
	})
}

func (s *server) run(ctx context.Context, request RunRequest, host *remoteHost) (report operation.Report, err error) {
	done, err := s.begin()
	if err != nil {
		return operation.Report{}, err
	}
	defer done()
	source, err := s.endpoint(wire.Source)
	if err != nil {
		return operation.Report{}, err
	}
	target, err := s.endpoint(wire.Target)
	if err != nil {
		return operation.Report{}, err
	}
	if source.Engine != target.Engine {
		return operation.Report{}, &operation.Error{Code: wire.CodeUnsupported, Reason: "source and target are different products"}
	}
	e, err := s.engine(source)
	if err != nil {
		return operation.Report{}, err
	}
	dir, err := os.MkdirTemp(s.tempDir, "run-")
	if err != nil {
		return operation.Report{}, &operation.Error{Step: wire.StepSandbox, Code: wire.CodeSandbox, Reason: "no temporary directory", Err: err}
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			s.log.Warn("temporary directory stays until the sandbox is removed", "error", err)
		}
	}()
	defer host.start(ctx)()
	return e.Run(ctx, engine.Job{
		OperationID: request.OperationID,
		Options:     request.Options,
		Shape:       request.Shape,
		MaxRows:     request.MaxRows,
		MaxBytes:    request.MaxBytes,
		Source:      source,
		Target:      target,
		TempDir:     dir,
	}, host)
}

// begin refuses a second run or cleanup at once: both change the target.
func (s *server) begin() (done func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writing {
		return nil, &operation.Error{Code: wire.CodeConflict, Reason: "another run is going on in this worker"}
	}
	s.writing = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.writing = false
	}, nil
}

func (s *server) engine(endpoint engine.Endpoint) (engine.Engine, error) {
	for _, e := range s.engines {
		if e.Type() == endpoint.Engine {
			return e, nil
		}
	}
	return nil, &operation.Error{
		Code:   wire.CodeUnsupported,
		Reason: fmt.Sprintf("this worker has no engine for %q", plain(string(endpoint.Engine))),
	}
}

// endpoint is the side's database as engines see it.
func (s *server) endpoint(side wire.Side) (engine.Endpoint, error) {
	s.mu.Lock()
	account, ok := s.accounts[side]
	s.mu.Unlock()
	if !ok || side != wire.Source && side != wire.Target {
		return engine.Endpoint{}, &operation.Error{
			Code: wire.CodeInternal, Reason: fmt.Sprintf("no account was opened for side %q", plain(string(side))),
		}
	}
	dial := s.dial(side)
	return engine.Endpoint{
		Endpoint: account.Endpoint,
		Username: account.Username,
		Password: account.Password,
		Dial:     dial,
		OpenTool: func() (string, int, error) { return s.tools.open(side, account.Endpoint, dial) },
		RunTool:  runTool,
	}, nil
}

// dial connects to the side's socket, which the agent forwards.
func (s *server) dial(side wire.Side) func(context.Context) (net.Conn, error) {
	path := filepath.Join(s.socketDir, sandbox.SocketName(side))
	return func(ctx context.Context) (net.Conn, error) {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "unix", path)
		if err != nil {
			return nil, fmt.Errorf("dial the %s's socket: %w", side, err)
		}
		if unix, ok := conn.(*net.UnixConn); ok {
			// The default, 208 KiB, makes bulk copies wait. Less is given when the
			// kernel's limit is lower.
			if err := unix.SetWriteBuffer(4 << 20); err != nil {
				return nil, errors.Join(fmt.Errorf("set write buffer: %w", err), conn.Close())
			}
		}
		return conn, nil
	}
}
