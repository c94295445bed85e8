package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

const password = "correct horse battery"

// scripted is an engine whose methods are given by the test.
type scripted struct {
	inspect func(context.Context, wire.Side, engine.Endpoint) (json.RawMessage, error)
	run     func(context.Context, engine.Job, engine.Host) (operation.Report, error)
	cleanup func(context.Context, string, engine.Endpoint) (engine.CleanupResult, error)
}

func (scripted) Type() wire.EngineType { return "scripted" }

func (e scripted) Inspect(ctx context.Context, side wire.Side, p engine.Endpoint) (json.RawMessage, error) {
	return e.inspect(ctx, side, p)
}

func (scripted) Plan(wire.Kind, map[string]string, json.RawMessage, json.RawMessage) (wire.Plan, error) {
	return wire.Plan{}, errors.New("not in the worker")
}

func (e scripted) Run(ctx context.Context, job engine.Job, host engine.Host) (operation.Report, error) {
	return e.run(ctx, job, host)
}

func (e scripted) Cleanup(ctx context.Context, id string, p engine.Endpoint) (engine.CleanupResult, error) {
	return e.cleanup(ctx, id, p)
}

// recorder is the agent: it notes the calls and answers as the test says.
type recorder struct {
	begin func(context.Context, wire.Step, json.RawMessage) error

	mu       sync.Mutex
	calls    []string
	progress []wire.Progress
	times    []time.Time
}

func (r *recorder) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, fmt.Sprintf(format, args...))
}

func (r *recorder) Begin(ctx context.Context, step wire.Step, detail json.RawMessage) error {
	r.note("begin %s %s", step, detail)
	if r.begin != nil {
		return r.begin(ctx, step, detail)
	}
	return nil
}

func (r *recorder) End(_ context.Context, step wire.Step, rows, bytes int64) error {
	r.note("end %s %d %d", step, rows, bytes)
	return nil
}

func (r *recorder) Progress(p wire.Progress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.progress = append(r.progress, p)
	r.times = append(r.times, time.Now())
}

func (r *recorder) Verified(_ context.Context, t operation.TableReport) error {
	r.note("verified %s.%s", t.Schema, t.Name)
	return nil
}

// pair is a client and the worker it talks to, over pipes.
type pair struct {
	*Client
	stdin     *io.PipeWriter
	stdout    *io.PipeReader
	stderr    *io.PipeReader
	exit      chan int
	socketDir string
	log       *testenv.Buffer
}

func (p *pair) Stdin() io.WriteCloser { return p.stdin }
func (p *pair) Stdout() io.Reader     { return p.stdout }
func (p *pair) Stderr() io.Reader     { return p.stderr }

// begin runs an operation and tells how it ended.
func (p *pair) begin(t *testing.T) <-chan error {
	t.Helper()
	result := make(chan error, 1)
	go func() {
		_, err := p.Run(t.Context(), RunRequest{OperationID: "clone-1"}, &recorder{})
		result <- err
	}()
	return result
}

func start(t *testing.T, e engine.Engine) *pair {
	t.Helper()
	inReader, inWriter := io.Pipe()
	outReader, outWriter := io.Pipe()
	errReader, errWriter := io.Pipe()
	p := &pair{
		stdin: inWriter, stdout: outReader, stderr: errReader, exit: make(chan int, 1),
		socketDir: t.TempDir(), log: &testenv.Buffer{},
	}
	redact := newRedactor(errWriter)
	s := newServer(serverConfig{
		out: outWriter, redact: redact, engines: []engine.Engine{e},
		log:       hclog.New(&hclog.LoggerOptions{Output: redact, JSONFormat: true}),
		socketDir: p.socketDir, tempDir: t.TempDir(), stopTime: 300 * time.Millisecond,
	})
	go func() {
		p.exit <- s.serve(context.Background(), inReader)
		_ = outWriter.Close()
		_ = errWriter.Close()
	}()
	p.Client = NewClient(p, hclog.New(&hclog.LoggerOptions{Output: p.log, Level: hclog.Trace}))
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func accounts(host string, port int) map[wire.Side]wire.Account {
	both := make(map[wire.Side]wire.Account)
	for _, side := range sandbox.Sides() {
		both[side] = wire.Account{
			Endpoint: wire.Endpoint{Connection: "c-" + string(side), Engine: "scripted", Host: host, Port: port},
			Username: "v-" + string(side),
			Password: wire.NewSecret(password),
		}
	}
	return both
}

func open(t *testing.T, p *pair) {
	t.Helper()
	require.NoError(t, p.Open(t.Context(), accounts("localhost", 1)))
}

// An inspection comes back byte for byte, however JSON may be written, and the
// engine gets the account that was opened.
func TestClient_InspectIsByteForByte(t *testing.T) {
	t.Parallel()
	odd := json.RawMessage("{\"a\" :\t\"<&>\\u2028\",  \"b\":[1.50 ,2e1]}\n")
	p := start(t, scripted{inspect: func(_ context.Context, side wire.Side, e engine.Endpoint) (json.RawMessage, error) {
		if e.Password.Reveal() != password || e.Username != "v-"+string(side) || e.Connection != "c-"+string(side) {
			return nil, errors.New("wrong account")
		}
		return odd, nil
	}})
	open(t, p)
	for _, side := range sandbox.Sides() {
		got, err := p.Inspect(t.Context(), side)
		require.NoError(t, err)
		require.Equal(t, string(odd), string(got))
	}
}

// Tens of megabytes pass, both sides at the same time.
func TestClient_LargeInspections(t *testing.T) {
	t.Parallel()
	large := json.RawMessage(`"` + strings.Repeat("x", 30<<20) + `"`)
	p := start(t, scripted{inspect: func(context.Context, wire.Side, engine.Endpoint) (json.RawMessage, error) { return large, nil }})
	open(t, p)
	var both sync.WaitGroup
	for _, side := range sandbox.Sides() {
		both.Go(func() {
			got, err := p.Inspect(t.Context(), side)
			if err != nil || len(got) != len(large) {
				t.Errorf("%s: %d bytes, %v", side, len(got), err)
			}
		})
	}
	both.Wait()
}

// What is larger than a message is refused with a code, and the worker lives on.
func TestClient_InspectionTooLarge(t *testing.T) {
	t.Parallel()
	size := MaxMessage
	p := start(t, scripted{inspect: func(context.Context, wire.Side, engine.Endpoint) (json.RawMessage, error) {
		return json.RawMessage(`"` + strings.Repeat("x", size) + `"`), nil
	}})
	open(t, p)
	_, err := p.Inspect(t.Context(), wire.Source)
	requireCode(t, err, wire.CodePlanTooLarge)
	size = 10
	_, err = p.Inspect(t.Context(), wire.Source)
	require.NoError(t, err)
}

func requireCode(t *testing.T, err error, code wire.Code) *operation.Error {
	t.Helper()
	var e *operation.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, code, e.Code, e.Error())
	return e
}

// A run's calls reach the host in order, its shape and details byte for byte.
func TestClient_Run(t *testing.T) {
	t.Parallel()
	shape := json.RawMessage(`{"t": "<a>"}`)
	table := operation.TableReport{Schema: "s", Name: "t", Rows: 3, Match: true}
	p := start(t, scripted{run: func(ctx context.Context, job engine.Job, host engine.Host) (operation.Report, error) {
		if string(job.Shape) != string(shape) || job.MaxRows != 5 || job.Options["jobs"] != "2" || job.OperationID != "clone-1" {
			return operation.Report{}, fmt.Errorf("wrong job")
		}
		if matches, err := filepath.Glob(job.TempDir); err != nil || len(matches) != 1 {
			return operation.Report{}, fmt.Errorf("no temporary directory")
		}
		if err := host.Begin(ctx, wire.StepSnapshot, shape); err != nil {
			return operation.Report{}, err
		}
		if err := host.End(ctx, wire.StepSnapshot, 7, 8); err != nil {
			return operation.Report{}, err
		}
		if err := host.Verified(ctx, table); err != nil {
			return operation.Report{}, err
		}
		host.Progress(wire.Progress{Step: wire.StepCopy, Rows: 9})
		return operation.Report{Tables: []operation.TableReport{table}, Rows: 3}, nil
	}})
	open(t, p)
	host := &recorder{}
	report, err := p.Run(t.Context(), RunRequest{
		OperationID: "clone-1", Shape: shape, MaxRows: 5, Options: map[string]string{"jobs": "2"},
	}, host)
	require.NoError(t, err)
	require.Equal(t, []operation.TableReport{table}, report.Tables)
	require.Equal(t, []string{`begin snapshot {"t": "<a>"}`, "end snapshot 7 8", "verified s.t"}, host.calls)
	require.Len(t, host.progress, 1)
	require.Equal(t, wire.Progress{OperationID: "clone-1", Step: wire.StepCopy, Rows: 9}, host.progress[0])
}

// The host's refusal of a step reaches the engine with its code, and the
// engine's error comes back with code, step and hint but without the cause.
func TestClient_HostRefusesBegin(t *testing.T) {
	t.Parallel()
	p := start(t, scripted{run: func(ctx context.Context, _ engine.Job, host engine.Host) (operation.Report, error) {
		err := host.Begin(ctx, wire.StepSwitch, nil)
		var refusal *operation.Error
		if !errors.As(err, &refusal) {
			return operation.Report{}, fmt.Errorf("not refused: %w", err)
		}
		refusal.Err = errors.New("row data")
		return operation.Report{}, refusal
	}})
	open(t, p)
	host := &recorder{begin: func(context.Context, wire.Step, json.RawMessage) error {
		return &operation.Error{Step: wire.StepSwitch, Code: wire.CodeAuditUnavailable, Reason: "no device", Hint: "enable one"}
	}}
	_, err := p.Run(t.Context(), RunRequest{OperationID: "clone-1"}, host)
	e := requireCode(t, err, wire.CodeAuditUnavailable)
	require.Equal(t, &operation.Error{Step: wire.StepSwitch, Code: wire.CodeAuditUnavailable, Reason: "no device", Hint: "enable one"}, e)
}

// An error without a code may quote rows; its text does not leave the worker.
func TestClient_UnknownErrorIsNotQuoted(t *testing.T) {
	t.Parallel()
	p := start(t, scripted{run: func(ctx context.Context, _ engine.Job, host engine.Host) (operation.Report, error) {
		if err := host.Begin(ctx, wire.StepIndex, nil); err != nil {
			return operation.Report{}, err
		}
		return operation.Report{}, errors.New("Key (email)=(alice@example.com) already exists")
	}})
	open(t, p)
	_, err := p.Run(t.Context(), RunRequest{OperationID: "clone-1"}, &recorder{})
	e := requireCode(t, err, wire.CodeInternal)
	require.Equal(t, wire.StepIndex, e.Step)
	require.NotContains(t, fmt.Sprintf("%+v", e), "alice")
	require.NotContains(t, p.log.String(), "alice")
}

// A panic of an engine is an error with a code; its value is not shown and the
// worker lives on.
func TestClient_EnginePanics(t *testing.T) {
	t.Parallel()
	p := start(t, scripted{inspect: func(context.Context, wire.Side, engine.Endpoint) (json.RawMessage, error) {
		panic("alice@example.com")
	}})
	open(t, p)
	_, err := p.Inspect(t.Context(), wire.Source)
	requireCode(t, err, wire.CodeInternal)
	_, err = p.Inspect(t.Context(), wire.Source)
	requireCode(t, err, wire.CodeInternal)
	require.Eventually(t, func() bool { return strings.Contains(p.log.String(), "engine panicked") }, 30*time.Second, time.Millisecond)
	require.NotContains(t, p.log.String(), "alice")
}

// Cancelling reaches the engine and the answer is what the engine says about it.
func TestClient_Cancel(t *testing.T) {
	t.Parallel()
	begun := make(chan struct{})
	p := start(t, scripted{run: func(ctx context.Context, _ engine.Job, host engine.Host) (operation.Report, error) {
		close(begun)
		<-ctx.Done()
		// The undo can still be recorded.
		if err := host.Begin(context.WithoutCancel(ctx), wire.StepCleanup, nil); err != nil {
			return operation.Report{}, err
		}
		return operation.Report{}, ctx.Err()
	}})
	open(t, p)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-begun; cancel() }()
	host := &recorder{begin: func(ctx context.Context, _ wire.Step, _ json.RawMessage) error { return ctx.Err() }}
	_, err := p.Run(ctx, RunRequest{OperationID: "clone-1"}, host)
	e := requireCode(t, err, wire.CodeCancelled)
	require.Equal(t, wire.StepCleanup, e.Step)
	require.Equal(t, []string{"begin cleanup "}, host.calls)
}

// A run that was done before the cancel arrived has succeeded.
func TestClient_CancelTooLate(t *testing.T) {
	t.Parallel()
	begun := make(chan struct{})
	p := start(t, scripted{run: func(ctx context.Context, _ engine.Job, _ engine.Host) (operation.Report, error) {
		close(begun)
		<-ctx.Done()
		return operation.Report{Rows: 1}, nil
	}})
	open(t, p)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-begun; cancel() }()
	report, err := p.Run(ctx, RunRequest{OperationID: "clone-1"}, &recorder{})
	require.NoError(t, err)
	require.EqualValues(t, 1, report.Rows)
}

// An engine that does not stop is not waited for without end.
func TestClient_CancelIsBounded(t *testing.T) {
	t.Parallel()
	begun, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	p := start(t, scripted{run: func(context.Context, engine.Job, engine.Host) (operation.Report, error) {
		close(begun)
		<-release
		return operation.Report{}, nil
	}})
	p.undoTime = 50 * time.Millisecond
	open(t, p)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-begun; cancel() }()
	_, err := p.Run(ctx, RunRequest{OperationID: "clone-1"}, &recorder{})
	e := requireCode(t, err, wire.CodeCancelled)
	require.Contains(t, e.Reason, "did not stop")
}

// A call the engine gives up ends at the host too, and later calls get through.
func TestClient_CallGivenUp(t *testing.T) {
	t.Parallel()
	p := start(t, scripted{run: func(ctx context.Context, _ engine.Job, host engine.Host) (operation.Report, error) {
		short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		defer cancel()
		if err := host.Begin(short, wire.StepSwitch, nil); !errors.Is(err, context.DeadlineExceeded) {
			return operation.Report{}, fmt.Errorf("begin: %w", err)
		}
		return operation.Report{}, host.End(ctx, wire.StepSwitch, 0, 0)
	}})
	open(t, p)
	host := &recorder{begin: func(ctx context.Context, _ wire.Step, _ json.RawMessage) error { <-ctx.Done(); return ctx.Err() }}
	_, err := p.Run(t.Context(), RunRequest{OperationID: "clone-1"}, host)
	require.NoError(t, err)
}

// When stdin ends everything is cancelled and the worker ends by itself.
func TestServer_EndOfStdin(t *testing.T) {
	t.Parallel()
	begun := make(chan struct{})
	stopped := make(chan error, 1)
	p := start(t, scripted{run: func(ctx context.Context, _ engine.Job, _ engine.Host) (operation.Report, error) {
		close(begun)
		<-ctx.Done()
		stopped <- ctx.Err()
		return operation.Report{}, ctx.Err()
	}})
	open(t, p)
	result := p.begin(t)
	<-begun
	require.NoError(t, p.stdin.Close())
	require.ErrorIs(t, <-stopped, context.Canceled)
	require.Equal(t, ExitEnded, <-p.exit)
	require.Error(t, <-result)
}

// An engine that ignores its context does not keep the worker.
func TestServer_StuckEngine(t *testing.T) {
	t.Parallel()
	begun, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	p := start(t, scripted{run: func(context.Context, engine.Job, engine.Host) (operation.Report, error) {
		close(begun)
		<-release
		return operation.Report{}, nil
	}})
	open(t, p)
	result := p.begin(t)
	<-begun
	require.NoError(t, p.Close())
	require.Equal(t, ExitStuck, <-p.exit)
	requireCode(t, <-result, wire.CodeSandbox)
}

// A second run is refused while one goes on.
func TestServer_OneRunAtATime(t *testing.T) {
	t.Parallel()
	begun, release := make(chan struct{}), make(chan struct{})
	p := start(t, scripted{
		run: func(context.Context, engine.Job, engine.Host) (operation.Report, error) {
			close(begun)
			<-release
			return operation.Report{}, nil
		},
		cleanup: func(context.Context, string, engine.Endpoint) (engine.CleanupResult, error) {
			return engine.CleanupResult{Switched: true, Removed: []string{"x"}}, nil
		},
	})
	open(t, p)
	result := p.begin(t)
	<-begun
	_, err := p.Run(t.Context(), RunRequest{OperationID: "clone-1"}, &recorder{})
	requireCode(t, err, wire.CodeConflict)
	_, err = p.Cleanup(t.Context(), "clone-1")
	requireCode(t, err, wire.CodeConflict)
	close(release)
	require.NoError(t, <-result)
	done, err := p.Cleanup(t.Context(), "clone-1")
	require.NoError(t, err)
	require.Equal(t, engine.CleanupResult{Switched: true, Removed: []string{"x"}}, done)
}

// Progress is thinned out and the last state arrives.
func TestServer_ProgressIsThinned(t *testing.T) {
	t.Parallel()
	p := start(t, scripted{run: func(_ context.Context, _ engine.Job, host engine.Host) (operation.Report, error) {
		for began := time.Now(); time.Since(began) < 450*time.Millisecond; {
			host.Progress(wire.Progress{Rows: 1})
		}
		host.Progress(wire.Progress{Rows: 2})
		return operation.Report{}, nil
	}})
	open(t, p)
	host := &recorder{}
	_, err := p.Run(t.Context(), RunRequest{OperationID: "clone-1"}, host)
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(host.progress), 2)
	require.LessOrEqual(t, len(host.progress), 7)
	require.EqualValues(t, 2, host.progress[len(host.progress)-1].Rows)
}

// Requests without an account, or for an engine the worker lacks, have codes.
func TestServer_Refusals(t *testing.T) {
	t.Parallel()
	p := start(t, scripted{})
	_, err := p.Inspect(t.Context(), wire.Source)
	requireCode(t, err, wire.CodeInternal)
	foreign := accounts("localhost", 1)
	for side, account := range foreign {
		account.Endpoint.Engine = "oracle"
		foreign[side] = account
	}
	require.NoError(t, p.Open(t.Context(), foreign))
	_, err = p.Inspect(t.Context(), wire.Source)
	requireCode(t, err, wire.CodeUnsupported)
}

// A password never shows, in whatever verb a message is printed, nor in the
// worker's log or errors.
func TestSecretsAreRedacted(t *testing.T) {
	t.Parallel()
	body := newOpenBody(accounts("h", 1))
	m, err := newMessage(typeOpen, 1, body, nil)
	require.NoError(t, err)
	require.Contains(t, string(m.body), password, "the worker must get it")
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d"} {
		for _, value := range []any{m, &m, body, &body, body.Accounts[wire.Source]} {
			require.NotContains(t, fmt.Sprintf(verb, value), password, verb)
		}
	}
	p := start(t, scripted{inspect: func(_ context.Context, _ wire.Side, e engine.Endpoint) (json.RawMessage, error) {
		return nil, &operation.Error{Code: wire.CodeEngine, Reason: "login with " + e.Password.Reveal(), Hint: e.Password.Reveal()}
	}})
	open(t, p)
	_, err = p.Inspect(t.Context(), wire.Source)
	e := requireCode(t, err, wire.CodeEngine)
	require.NotContains(t, fmt.Sprintf("%#v", *e), password)
}

// Engines dial the side's socket, and tools reach the same one through loopback
// at the real port.
func TestServer_DialAndTool(t *testing.T) {
	t.Parallel()
	dialled := make(chan string, 2)
	p := start(t, scripted{inspect: func(ctx context.Context, side wire.Side, e engine.Endpoint) (json.RawMessage, error) {
		conn, err := e.Dial(ctx)
		if err != nil {
			return nil, err
		}
		banner, err := io.ReadAll(conn)
		if err != nil {
			return nil, err
		}
		dialled <- string(banner)
		for range 2 { // opening twice is one listener
			host, port, err := e.OpenTool()
			if err != nil {
				return nil, err
			}
			tool, err := net.Dial("tcp", net.JoinHostPort(host, fmt.Sprint(port)))
			if err != nil {
				return nil, err
			}
			if banner, err = io.ReadAll(tool); err != nil {
				return nil, err
			}
		}
		dialled <- string(banner)
		return json.RawMessage(`{}`), nil
	}})
	listener, err := net.Listen("unix", filepath.Join(p.socketDir, "source.sock"))
	require.NoError(t, err)
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "I am the source")
			_ = conn.Close()
		}
	}()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	port := free.Addr().(*net.TCPAddr).Port
	require.NoError(t, free.Close())
	require.NoError(t, p.Open(t.Context(), accounts("localhost", port)))
	_, err = p.Inspect(t.Context(), wire.Source)
	require.NoError(t, err)
	require.Equal(t, "I am the source", <-dialled)
	require.Equal(t, "I am the source", <-dialled)
}

// Tools are not sent where a certificate cannot be verified or out of the
// sandbox.
func TestTools_Addresses(t *testing.T) {
	t.Parallel()
	tools := newTools(hclog.NewNullLogger())
	host, addresses, err := tools.addresses(wire.Source, wire.Endpoint{Host: "127.0.0.1"})
	require.NoError(t, err)
	require.Equal(t, "127.0.0.1", host)
	require.Len(t, addresses, 1)
	host, _, err = tools.addresses(wire.Source, wire.Endpoint{Host: "10.1.2.3", SSLMode: "verify-ca"})
	require.NoError(t, err)
	require.Equal(t, "127.0.0.4", host)
	host, _, err = tools.addresses(wire.Target, wire.Endpoint{Host: "fd00::1"})
	require.NoError(t, err)
	require.Equal(t, "127.0.0.5", host)
	_, _, err = tools.addresses(wire.Source, wire.Endpoint{Host: "10.1.2.3", SSLMode: "verify-full"})
	requireCode(t, err, wire.CodeUnsupported)
	_, _, err = tools.addresses(wire.Source, wire.Endpoint{Host: "no-such-name.invalid"})
	requireCode(t, err, wire.CodeSandbox)
}
