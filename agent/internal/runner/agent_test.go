package runner_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/audit"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/journal"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/metrics"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/runner"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox/fake"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/vault"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/worker"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// fileEngine clones into a directory: a staging file is renamed into place. What
// it leaves behind outlives the process, as a database would.
type fileEngine struct {
	dir string
	// at is called after each step has begun, within its effect; it may block,
	// fail or end the process.
	at func(ctx context.Context, step wire.Step) error
	// switched is called right after the rename, before anybody was told.
	switched func()
}

// failsAt fails at a step.
func failsAt(step wire.Step, with *operation.Error) func(context.Context, wire.Step) error {
	return func(_ context.Context, at wire.Step) error {
		if at != step {
			return nil
		}
		failed := *with
		failed.Step = step
		return &failed
	}
}

// staysAt does something at a step and goes on only when it is stopped.
func staysAt(step wire.Step, do func()) func(context.Context, wire.Step) error {
	return func(ctx context.Context, at wire.Step) error {
		if at != step {
			return nil
		}
		do()
		<-ctx.Done()
		return ctx.Err()
	}
}

func (*fileEngine) Type() wire.EngineType { return wire.EnginePostgres }

func (e *fileEngine) staging(id string) string { return filepath.Join(e.dir, "staging-"+id) }
func (e *fileEngine) live() string             { return filepath.Join(e.dir, "live") }

func (e *fileEngine) Inspect(_ context.Context, side wire.Side, _ engine.Endpoint) (json.RawMessage, error) {
	return json.RawMessage(`{"side": "` + string(side) + `"}`), nil
}

// Plan keeps a space and a sign that encoding/json would rewrite: the digest of
// the shape is over its bytes.
func (*fileEngine) Plan(wire.Kind, map[string]string, json.RawMessage, json.RawMessage) (wire.Plan, error) {
	return wire.Plan{Version: 1, Shape: json.RawMessage(`{"kind": "clone", "check": "a<b"}`)}, nil
}

func (e *fileEngine) Run(ctx context.Context, job engine.Job, host engine.Host) (operation.Report, error) {
	table := operation.TableReport{Schema: "public", Name: "t", Rows: 3, SourceRows: 3, Bytes: 30, Digest: "aa", SourceDigest: "aa", Match: true}
	effects := []struct {
		step wire.Step
		do   func() error
	}{
		{wire.StepSnapshot, func() error { return nil }},
		{wire.StepStage, func() error { return os.WriteFile(e.staging(job.OperationID), []byte(job.OperationID), 0o600) }},
		{wire.StepCopy, func() error { return nil }},
		{wire.StepVerify, func() error { return host.Verified(ctx, table) }},
		{wire.StepSwitch, func() error {
			err := os.Rename(e.staging(job.OperationID), e.live())
			if e.switched != nil {
				e.switched()
			}
			return err
		}},
		{wire.StepDropOld, func() error { return nil }},
	}
	for _, effect := range effects {
		var detail json.RawMessage
		if effect.step == wire.StepSnapshot {
			detail = job.Shape
		}
		if err := host.Begin(ctx, effect.step, detail); err != nil {
			return operation.Report{}, err
		}
		host.Progress(wire.Progress{Step: effect.step, Rows: 3})
		if e.at != nil {
			if err := e.at(ctx, effect.step); err != nil {
				return operation.Report{}, err
			}
		}
		if err := effect.do(); err != nil {
			return operation.Report{}, err
		}
		if err := host.End(ctx, effect.step, 3, 30); err != nil {
			return operation.Report{}, err
		}
	}
	return operation.Report{Tables: []operation.TableReport{table}, Rows: 3, Bytes: 30}, nil
}

func (e *fileEngine) Cleanup(_ context.Context, id string, _ engine.Endpoint) (engine.CleanupResult, error) {
	err := os.Remove(e.staging(id))
	if err == nil {
		return engine.CleanupResult{Removed: []string{"staging"}}, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return engine.CleanupResult{}, err
	}
	content, err := os.ReadFile(e.live())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return engine.CleanupResult{}, err
	}
	return engine.CleanupResult{Switched: string(content) == id}, nil
}

var _ engine.Engine = (*fileEngine)(nil)

// host is one machine: what is on its disks stays when the agent ends.
type host struct {
	dir    string
	vault  string // address
	engine *fileEngine
	limits runner.Limits
	counts *metrics.Metrics // nil: nobody counts
	// tap sees each event after it is durable, and each journal entry.
	tapEvent func(e wire.Event)
	tapEntry func(e journal.Entry)
	onStart  func(sandbox.Spec) error
	onRemove func(string) error
}

func newHost(dir, address string) *host {
	h := &host{dir: dir, vault: address, engine: &fileEngine{dir: filepath.Join(dir, "db")}, limits: runner.Limits{
		AuditWait: 300 * time.Millisecond, Cleanup: 5 * time.Second, Flush: 5 * time.Second, Shutdown: 5 * time.Second,
		Forget: 300 * time.Millisecond, RetryFirst: 5 * time.Millisecond, RetryMax: 50 * time.Millisecond,
	}}
	return h
}

type tappedEvents struct {
	*audit.Sink
	tap func(e wire.Event)
}

func (e tappedEvents) Record(ctx context.Context, events ...wire.Event) error {
	err := e.Sink.Record(ctx, events...)
	if err == nil && e.tap != nil {
		for _, each := range events {
			e.tap(each)
		}
	}
	return err
}

type tappedJournal struct {
	*journal.Journal
	tap func(e journal.Entry)
}

func (j tappedJournal) Put(e journal.Entry) error {
	err := j.Journal.Put(e)
	if err == nil && j.tap != nil {
		j.tap(e)
	}
	return err
}

// work is the agent, until ctx ends.
func (h *host) work(ctx context.Context, log hclog.Logger) error {
	for _, dir := range []string{h.engine.dir, filepath.Join(h.dir, "run")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	settings := vault.Config{Address: h.vault, Token: wire.NewSecret("t"), WithoutEnvironmentToken: true}
	if h.counts != nil {
		settings.Observer = h.counts
	}
	client, err := vault.Dial(settings)
	if err != nil {
		return err
	}
	work := vault.NewWork(client, agentName)
	watch := audit.NewWatch(work, log)
	sink, err := audit.Open(audit.Options{
		Dir: filepath.Join(h.dir, "spool"), Agent: agentName, Delay: 20 * time.Millisecond, Ready: watch.Ready, Log: log,
	}, work)
	if err != nil {
		return err
	}
	book, err := journal.Open(filepath.Join(h.dir, "journal"))
	if err != nil {
		return err
	}
	boxes := fake.New(agentName, filepath.Join(h.dir, "run"), log, h.engine)
	boxes.OnStart, boxes.OnRemove = h.onStart, h.onRemove
	options := runner.Options{
		MaxOperations: 1, Vault: work, Events: tappedEvents{sink, h.tapEvent}, Audit: watch, Journal: tappedJournal{book, h.tapEntry},
		Sandbox: boxes, Planners: map[wire.EngineType]runner.Planner{wire.EnginePostgres: h.engine}, Limits: h.limits, Log: log,
		Connect: func(box sandbox.Box, log hclog.Logger) runner.Worker { return worker.NewClient(box, log) },
	}
	if h.counts != nil {
		options.Observer = h.counts
	}
	r := runner.New(options)
	background, end := context.WithCancel(context.Background())
	var services sync.WaitGroup
	services.Go(func() { sink.Run(background) })
	services.Go(func() { watch.Run(background) })
	err = r.Run(ctx)
	end()
	services.Wait()
	return errors.Join(err, sink.Close())
}

// start runs the agent in this process until stop.
func (h *host) start(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	log := hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, Output: testWriter{t}})
	go func() { ended <- h.work(ctx, log) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			require.NoError(t, <-ended)
		})
	}
	t.Cleanup(stop)
	return stop
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}

// settled waits for the end of the operation and checks what must hold then,
// however it ended: nothing is left anywhere, and the target tells the truth.
func settled(t *testing.T, h *host, v *fakeVault, want wire.State, code wire.Code) {
	t.Helper()
	require.Eventually(t, func() bool {
		return get(v, func(v *fakeVault) bool { return v.finishes > 0 && v.state.Final() })
	}, 25*time.Second, 5*time.Millisecond, "the operation has a final state")
	finish := get(v, func(v *fakeVault) wire.FinishRequest { return *v.finish })
	require.Equal(t, want, finish.Outcome, "%+v", finish)
	require.Equal(t, code, finish.Code, "%+v", finish)
	nothingLeft(t, h)
	require.Empty(t, get(v, func(v *fakeVault) map[string]wire.Side { return maps.Clone(v.leases) }), "every lease was given back")
	require.NoFileExists(t, h.engine.staging(opID))
	live, err := os.ReadFile(h.engine.live())
	if want == wire.StateSucceeded {
		require.NoError(t, err)
		require.Equal(t, opID, string(live))
	} else {
		require.Equal(t, "before", string(live), "the target is as it was")
	}
	require.Eventually(t, func() bool { return len(finished(v)) > 0 }, 30*time.Second, 5*time.Millisecond, "the end is in the record")
}

func finished(v *fakeVault) []wire.Event {
	return get(v, func(v *fakeVault) []wire.Event {
		var ends []wire.Event
		for _, e := range v.delivered {
			if e.EventType == wire.EventOperationFinished {
				ends = append(ends, e)
			}
		}
		return ends
	})
}

func nothingLeft(t *testing.T, h *host) {
	t.Helper()
	require.Eventually(t, func() bool {
		left := 0
		for _, dir := range []string{"journal", "run"} {
			entries, err := os.ReadDir(filepath.Join(h.dir, dir))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("look for traces: %v", err)
			}
			left += len(entries)
		}
		return left == 0
	}, 30*time.Second, 5*time.Millisecond, "no journal entry and no sandbox is left")
}

// prepared is a host whose target holds an older database.
func prepared(t *testing.T, v *fakeVault) *host {
	t.Helper()
	// In memory, where there is such a place: a killed process leaves the same there,
	// and the disk of a loaded machine can take longer to sync than a test waits. The
	// name is short, for sockets live in it.
	dir, err := os.MkdirTemp("/dev/shm", "r")
	if err != nil {
		dir, err = os.MkdirTemp("", "r")
	}
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	h := newHost(dir, v.server.URL)
	require.NoError(t, os.MkdirAll(h.engine.dir, 0o700))
	require.NoError(t, os.WriteFile(h.engine.live(), []byte("before"), 0o600))
	return h
}

func fatal(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
