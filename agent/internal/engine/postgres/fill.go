package postgres

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/jackc/pgx/v5"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// movement is one table on its way.
type movement struct {
	table    *Table
	format   format
	columns  string // quoted and in brackets, or empty for "all there are"
	encoding string // set when characters are not UTF-8
	copy     *task
	moved    tally // of the stream in flight
}

// fill copies the rows and builds on them: three steps that overlap. Tables are
// copied largest first; as soon as one is there, its indexes are built and it is
// read again, while others are still being copied.
func (c *clone) fill(ctx context.Context) error {
	if err := c.begin(ctx, wire.StepCopy, nil); err != nil {
		return err
	}
	if err := c.copySequences(ctx); err != nil {
		return err
	}
	g := &graph{}
	f := &filling{clone: c, graph: g, moves: map[uint32]*movement{}, tables: map[uint32]*Table{}}
	f.copySessions = make([]copySessions, c.options.jobs)
	f.indexSessions = make([]*pgx.Conn, max(2, c.options.jobs))
	f.verifySessions = make([]verifySession, c.options.jobs)
	f.planTables()
	f.planLargeObjects()
	f.planObjects()
	f.planAnalyze()
	f.copiesLeft.Store(int64(f.copies))
	if f.copies == 0 {
		if err := c.end(ctx, wire.StepCopy, 0, 0); err != nil {
			return err
		}
	}
	if err := g.run(ctx, [pools]int{len(f.copySessions), len(f.indexSessions), len(f.verifySessions)}); err != nil {
		return err
	}
	if err := c.begin(ctx, wire.StepIndex, nil); err != nil {
		return err
	}
	conn, err := c.open(ctx, c.target, c.names.staging)
	if err != nil {
		return fault(wire.StepIndex, wire.Target, "connect to the staging database", err)
	}
	if err := f.finish(ctx, conn); err != nil {
		return err
	}
	if err := c.end(ctx, wire.StepIndex, 0, 0); err != nil {
		return err
	}
	if err := c.begin(ctx, wire.StepVerify, nil); err != nil {
		return err
	}
	return c.verify(ctx, conn)
}

// filling is the work of fill, planned.
type filling struct {
	*clone
	graph  *graph
	moves  map[uint32]*movement // by oid of the table at the source
	tables map[uint32]*Table
	built  map[uint32][]*task // index work by table
	tail   []*entry

	copies         int // tasks of the copy step
	copiesLeft     atomic.Int64
	copySessions   []copySessions
	indexSessions  []*pgx.Conn
	verifySessions []verifySession
}

type copySessions struct {
	source, target *rawSession
	buffers        *bufferPool
}

type verifySession struct {
	session *rawSession
	buffers *bufferPool
}

func (f *filling) planTables() {
	formats := make(map[string]format, len(f.shape.Tables))
	for i := range f.shape.Tables {
		t := &f.shape.Tables[i]
		formats[qualified(t.Schema, t.Name)] = t.Format
	}
	for i := range f.held.Tables {
		t := &f.held.Tables[i]
		f.tables[t.oid] = t
		if !t.copies() {
			continue
		}
		m := &movement{table: t, format: formats[t.qualified()]}
		if e := f.from.Database.Encoding; e != "UTF8" && e != "SQL_ASCII" {
			m.encoding = e
		}
		var columns []string
		for _, column := range t.Columns {
			if !column.Generated {
				columns = append(columns, quote(column.Name))
			}
		}
		if len(columns) > 0 {
			m.columns = "(" + strings.Join(columns, ", ") + ")"
		}
		f.moves[t.oid] = m
		m.copy = f.graph.add(&task{
			pool: poolCopy, weight: t.Bytes, locks: []lock{{t.oid, lockExclusive}},
			run: func(ctx context.Context, worker int) error { return f.copyTable(ctx, worker, m) },
		})
		f.copies++
		check := f.graph.add(&task{
			pool: poolVerify, weight: t.Bytes, locks: []lock{{t.oid, lockRead}},
			run: func(ctx context.Context, worker int) error { return f.verifyTable(ctx, worker, m) },
		})
		check.after(m.copy)
	}
}

// with writes COPY's options.
func (m *movement) with(more ...string) string {
	list := append([]string{"FORMAT " + string(m.format)}, more...)
	if m.encoding != "" {
		list = append(list, "ENCODING "+literal(m.encoding))
	}
	return " WITH (" + strings.Join(list, ", ") + ")"
}

// out reads the table's own rows, without those of children. An extension's
// configuration table gives up those that are the user's.
func (m *movement) out() string {
	t := m.table
	if t.Extension == "" {
		return "COPY " + t.quoted() + " " + m.columns + " TO STDOUT" + m.with()
	}
	return "COPY (SELECT " + strings.Trim(m.columns, "()") + " FROM ONLY " + t.quoted() + " " + t.condition + ") TO STDOUT" + m.with()
}

// begin opens the target's transaction. Rows are frozen at once, which the
// server allows for a table emptied in the same transaction: nothing has to
// rewrite them later.
func (m *movement) begin() string {
	t := m.table
	if t.Extension != "" {
		return "BEGIN; COPY " + t.quoted() + " " + m.columns + " FROM STDIN" + m.with()
	}
	return "BEGIN; TRUNCATE ONLY " + t.quoted() + "; COPY " + t.quoted() + " " + m.columns + " FROM STDIN" + m.with("FREEZE")
}

func (f *filling) copyTable(ctx context.Context, worker int, m *movement) error {
	s := &f.copySessions[worker]
	if s.source == nil {
		if err := f.openCopy(ctx, s); err != nil {
			return err
		}
	}
	name := m.table.qualified()
	f.current.Store(name)
	moved, err := relay(ctx, s.source, s.target, m.out(), m.begin(), m.format, s.buffers, f.count)
	if err == nil {
		err = s.target.exec(ctx, "COMMIT")
	}
	if err != nil {
		failed := fault(wire.StepCopy, wire.Target, "copy table "+name, err)
		if failed.Code == wire.CodePrivilege && m.table.RowSecurity {
			failed.Hint = "the table has row security: give the read purpose's role BYPASSRLS"
		}
		return failed
	}
	m.moved = moved
	f.tablesDone.Add(1)
	return f.copied(ctx)
}

// copied ends the copy step with its last task.
func (f *filling) copied(ctx context.Context) error {
	if f.copiesLeft.Add(-1) > 0 {
		return nil
	}
	return f.end(ctx, wire.StepCopy, f.rows.Load(), f.bytes.Load())
}

// count adds to what was copied and stops at the approved limits.
func (c *clone) count(rows, bytes int64) error {
	total, size := c.rows.Add(rows), c.bytes.Add(bytes)
	if c.job.MaxRows > 0 && total > c.job.MaxRows {
		return &operation.Error{
			Step: wire.StepCopy, Code: wire.CodeLimitExceeded, Reason: fmt.Sprintf("more than %d rows", c.job.MaxRows),
			Hint: "ask for a higher max_rows in the policy",
		}
	}
	if c.job.MaxBytes > 0 && size > c.job.MaxBytes {
		return &operation.Error{
			Step: wire.StepCopy, Code: wire.CodeLimitExceeded, Reason: fmt.Sprintf("more than %d bytes", c.job.MaxBytes),
			Hint: "ask for a higher max_bytes in the policy",
		}
	}
	return nil
}

func (f *filling) openCopy(ctx context.Context, s *copySessions) error {
	source, err := f.openRaw(ctx, f.source, f.job.Source.Database)
	if err != nil {
		return fault(wire.StepCopy, wire.Source, "connect to the source", err)
	}
	err = source.exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT "+literal(f.snapshot))
	if err != nil {
		return fault(wire.StepCopy, wire.Source, "take over the snapshot", err)
	}
	target, err := f.openRaw(ctx, f.target, f.names.staging)
	if err != nil {
		return fault(wire.StepCopy, wire.Target, "connect to the staging database", err)
	}
	*s = copySessions{source: source, target: target, buffers: newBufferPool(relayBuffers)}
	return nil
}

// verifyTable reads a table again, by a session that did not write it.
func (f *filling) verifyTable(ctx context.Context, worker int, m *movement) error {
	if err := f.beginVerify(ctx); err != nil {
		return err
	}
	s := &f.verifySessions[worker]
	if s.session == nil {
		session, err := f.openRaw(ctx, f.target, f.names.staging)
		if err != nil {
			return fault(wire.StepVerify, wire.Target, "connect to the staging database", err)
		}
		*s = verifySession{session: session, buffers: newBufferPool(1)}
	}
	name := m.table.qualified()
	found, err := s.session.read(ctx, m.out(), m.format, nil, s.buffers, func(int64, int64) error { return nil })
	if err != nil {
		return fault(wire.StepVerify, wire.Target, "read table "+name+" again", err)
	}
	return f.verified(ctx, operation.TableReport{
		Schema: m.table.Schema, Name: m.table.Name, Rows: found.rows, Bytes: found.bytes, Digest: found.hex(),
		SourceRows: m.moved.rows, SourceDigest: m.moved.hex(), Match: found == m.moved,
	})
}

// beginVerify announces verification, which goes on beside the index builds, and
// these before it: steps begin in one order, whichever worker is first.
func (f *filling) beginVerify(ctx context.Context) error {
	if err := f.begin(ctx, wire.StepIndex, nil); err != nil {
		return err
	}
	return f.begin(ctx, wire.StepVerify, nil)
}

// verified tells the host of one table and stops on a difference.
func (c *clone) verified(ctx context.Context, t operation.TableReport) error {
	c.mutex.Lock()
	c.report.Tables = append(c.report.Tables, t)
	c.report.Rows += t.Rows
	c.report.Bytes += t.Bytes
	// The host gets one call at a time.
	err := c.host.Verified(ctx, t)
	c.mutex.Unlock()
	if err != nil {
		return err
	}
	if !t.Match {
		return &operation.Error{
			Step: wire.StepVerify, Code: wire.CodeCheckFailed,
			Reason: fmt.Sprintf("table %s has %d rows at the target and %d came from the source, or their contents differ", qualified(t.Schema, t.Name), t.Rows, t.SourceRows),
			Hint:   "something else writes to the staging database, or a disk or server is faulty",
		}
	}
	return nil
}
