package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// undoTimeout bounds the removal of what was staged, in its own context: the
// operation's may be what ended.
const undoTimeout = 20 * time.Second

// progressInterval is how often the host is told how far a run has come.
const progressInterval = 250 * time.Millisecond

// clone is one run. Its sessions live as long as it does.
type clone struct {
	engine  *Engine
	job     engine.Job
	host    engine.Host
	names   names
	options options
	source  *server
	target  *server

	admin    *pgx.Conn // at the target, in a maintenance database; holds the operation's lock
	keeper   *pgx.Conn // at the source; its transaction holds the snapshot
	snapshot string
	from, to inspection
	shape    Shape
	held     *catalog // of the source, inside the snapshot
	program  string   // pg_dump's path in the worker
	dump     *archive
	values   []sequenceValue
	staged   bool
	switched bool

	rows, bytes atomic.Int64
	tablesDone  atomic.Int64
	current     atomic.Value // name of the table being copied
	step        atomic.Value // wire.Step

	mutex    sync.Mutex // guards what follows
	sessions []io.Closer
	begun    map[wire.Step]*begun
	report   operation.Report
	estimate int64 // bytes to copy
}

// Run carries out an approved clone. Steps are announced in the order of
// [wire.Steps]; copy, index and verify overlap: each begins when its first piece
// of work does and ends when its last one has.
//
// On an error the staging database is dropped again, within 20 s and whatever
// ended ctx. After the switch the only error left is [wire.CodeCleanup]: the
// copy is in place and what it replaced is still to be removed.
func (e *Engine) Run(ctx context.Context, job engine.Job, host engine.Host) (operation.Report, error) {
	c := &clone{
		engine: e, job: job, host: host, begun: map[wire.Step]*begun{},
		report: operation.Report{Tables: []operation.TableReport{}, DurationsMS: map[wire.Step]int64{}},
		source: &server{side: wire.Source, endpoint: job.Source, application: "dbops " + job.OperationID},
		target: &server{side: wire.Target, endpoint: job.Target, application: "dbops " + job.OperationID},
	}
	c.step.Store(wire.StepSnapshot)
	err := c.prepare()
	if err == nil {
		err = c.run(ctx)
	}
	if err == nil {
		c.closeSessions()
		return c.report, nil
	}
	if c.switched {
		c.closeSessions()
		return c.report, &operation.Error{
			Step: wire.StepDropOld, Code: wire.CodeCleanup, Reason: "the copy is in place, what it replaced is not removed yet", Err: clean(err),
		}
	}
	failed := c.failure(ctx, err)
	if undone := c.undo(ctx); undone != nil {
		failed.Err = errors.Join(failed.Err, fmt.Errorf("undo: %w", clean(undone)))
	}
	return operation.Report{}, failed
}

// failure gives err the step it happened in, and the reason ctx ended when that
// is behind it.
func (c *clone) failure(ctx context.Context, err error) *operation.Error {
	step, _ := c.step.Load().(wire.Step) // always a Step
	failed := *fault(step, wire.Target, "clone", interrupted(ctx, err))
	if failed.Step == "" {
		failed.Step = step
	}
	return &failed
}

func (c *clone) prepare() error {
	var err error
	if c.names, err = namesOf(c.job.OperationID); err != nil {
		return err
	}
	if err := json.Unmarshal(c.job.Shape, &c.shape); err != nil {
		return &operation.Error{Code: wire.CodeInternal, Reason: "the approved shape cannot be read"}
	}
	c.options, _, err = parseOptions(c.job.Options)
	return err
}

func (c *clone) run(ctx context.Context) error {
	stop := c.reportProgress(ctx)
	defer stop()
	for _, part := range []func(context.Context) error{
		c.takeSnapshot, c.stage, c.createSchema, c.fill, c.putInPlace, c.dropReplaced,
	} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}

// begun is a step that was announced, or is just being announced.
type begun struct {
	at   time.Time
	told chan struct{} // closed once the host has answered
	err  error         // its answer, to be read after told
}

var errHostGone = errors.New("the host gave no answer")

// begin announces a step once; further calls wait for the host's answer to the
// first.
func (c *clone) begin(ctx context.Context, step wire.Step, detail json.RawMessage) error {
	c.mutex.Lock()
	b, again := c.begun[step]
	if !again {
		b = &begun{at: time.Now(), told: make(chan struct{})}
		c.begun[step] = b
	}
	c.mutex.Unlock()
	if again {
		select {
		case <-b.told:
			return b.err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	c.step.Store(step)
	// Whoever waits is told something even if the host never returns to us.
	b.err = errHostGone
	defer close(b.told)
	b.err = c.host.Begin(ctx, step, detail)
	return b.err
}

func (c *clone) end(ctx context.Context, step wire.Step, rows, bytes int64) error {
	c.mutex.Lock()
	c.report.DurationsMS[step] = time.Since(c.begun[step].at).Milliseconds()
	c.mutex.Unlock()
	return c.host.End(ctx, step, rows, bytes)
}

// keep makes sure that a session is closed when the run ends.
func (c *clone) keep(session io.Closer) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.sessions = append(c.sessions, session)
}

type closer func() error

func (f closer) Close() error { return f() }

// open starts a session that lives as long as the run.
func (c *clone) open(ctx context.Context, s *server, database string) (*pgx.Conn, error) {
	conn, err := s.open(ctx, database)
	if err != nil {
		return nil, &sideError{s.side, err}
	}
	c.keep(closer(func() error { return closeSession(conn) }))
	return conn, nil
}

func (c *clone) openRaw(ctx context.Context, s *server, database string) (*rawSession, error) {
	raw, err := s.openRaw(ctx, database)
	if err != nil {
		return nil, &sideError{s.side, err}
	}
	c.keep(closer(raw.close))
	return raw, nil
}

// closeSessions ends every session but the admin's. A session that cannot be
// closed properly is gone all the same.
func (c *clone) closeSessions() {
	c.mutex.Lock()
	sessions := c.sessions
	c.sessions = nil
	c.mutex.Unlock()
	var group sync.WaitGroup
	for _, session := range sessions {
		group.Go(func() { _ = session.Close() })
	}
	group.Wait()
	if c.switched || !c.staged {
		_ = closeSession(c.admin)
		c.admin = nil
	}
}

// undo removes the staging database.
func (c *clone) undo(ctx context.Context) error {
	c.closeSessions()
	if !c.staged {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	// The admin's session may have been in the middle of something, or lost with
	// the server: a new one is certain.
	_ = closeSession(c.admin)
	_, err := cleanup(ctx, c.target, c.names)
	return err
}

// reportProgress tells the host how far the run is, until the returned function
// is called.
func (c *clone) reportProgress(ctx context.Context) func() {
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() {
		tick := time.NewTicker(progressInterval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				c.host.Progress(c.progress())
			}
		}
	})
	return func() {
		cancel()
		group.Wait()
		c.host.Progress(c.progress())
	}
}

func (c *clone) progress() wire.Progress {
	p := wire.Progress{
		OperationID: c.job.OperationID, TablesDone: int(c.tablesDone.Load()), TablesTotal: c.shape.copied(),
		Rows: c.rows.Load(), Bytes: c.bytes.Load(),
	}
	p.Step, _ = c.step.Load().(wire.Step)
	p.Table, _ = c.current.Load().(string)
	c.mutex.Lock()
	defer c.mutex.Unlock()
	p.BytesTotal = c.estimate
	return p
}

// copied is the number of tables whose rows are copied.
func (s *Shape) copied() int {
	n := 0
	for i := range s.Tables {
		if s.Tables[i].Treatment == "copy" {
			n++
		}
	}
	return n
}
