package postgres

import (
	"context"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

const (
	classRelation = 1259 // pg_class
)

// planObjects turns what comes after the data into tasks. What takes time goes
// into the graph: indexes, keys, foreign keys. The rest is for finish, one after
// the other.
func (f *filling) planObjects() {
	f.built = map[uint32][]*task{}
	last := map[int]*task{}  // the task that completes an entry
	late := map[int]bool{}   // entries left to finish
	of := map[int][]uint32{} // tables an entry is about
	for i := range f.dump.entries {
		if e := &f.dump.entries[i]; e.class == classRelation && f.tables[e.oid] != nil {
			of[e.id] = []uint32{e.oid}
		}
	}
	for i := range f.dump.entries {
		e := &f.dump.entries[i]
		if e.section != sectionPostData && e.section != sectionNone || skipped(e) {
			continue
		}
		tables, mode := f.concerns(e, of)
		waitsForLate := slices.ContainsFunc(e.needs, func(id int) bool { return late[id] })
		if len(tables) == 0 || waitsForLate {
			late[e.id] = true
			f.tail = append(f.tail, e)
			continue
		}
		of[e.id] = tables
		tasks := f.objectTasks(e, tables, mode)
		for _, t := range tasks {
			for _, id := range e.needs {
				t.after(last[id])
			}
			for _, table := range f.below(tables) {
				if m := f.moves[table]; m != nil {
					t.after(m.copy)
				}
			}
		}
		if e.desc != "FK CONSTRAINT" {
			for _, table := range tables {
				f.built[table] = append(f.built[table], tasks[0])
			}
		}
		last[e.id] = tasks[len(tasks)-1]
	}
}

// concerns returns the tables an entry works on and the lock it takes, or none
// when the entry is not for the graph.
func (f *filling) concerns(e *entry, of map[int][]uint32) ([]uint32, lockMode) {
	known := func(oids ...uint32) []uint32 {
		for _, oid := range oids {
			if f.tables[oid] == nil {
				return nil // of a materialized view, filled at the end
			}
		}
		return oids
	}
	switch e.desc {
	case "INDEX":
		return known(f.held.indexTable[e.oid]), lockShare
	case "CONSTRAINT", "CHECK CONSTRAINT":
		return known(f.held.constraint[e.oid].table), lockExclusive
	case "FK CONSTRAINT":
		k := f.held.constraint[e.oid]
		return known(k.table, k.referenced), lockRow
	case "INDEX ATTACH":
		return f.tablesOfNeeds(e, of), lockExclusive
	case "STATISTICS":
		return f.tablesOfNeeds(e, of), lockAnalyze
	}
	return nil, lockExclusive
}

func (f *filling) tablesOfNeeds(e *entry, of map[int][]uint32) []uint32 {
	var tables []uint32
	for _, id := range e.needs {
		for _, table := range of[id] {
			if !slices.Contains(tables, table) {
				tables = append(tables, table)
			}
		}
	}
	return tables
}

// below returns tables with all their children: a statement on a partitioned
// table reaches into its partitions.
func (f *filling) below(tables []uint32) []uint32 {
	all := slices.Clone(tables)
	for at := 0; at < len(all); at++ {
		for i := range f.held.Tables {
			t := &f.held.Tables[i]
			if slices.Contains(t.parents, all[at]) && !slices.Contains(all, t.oid) {
				all = append(all, t.oid)
			}
		}
	}
	return all
}

// objectTasks makes the tasks of one entry, the completing one last. A key is
// built as a plain unique index first, which lets the table be read meanwhile,
// and becomes the key in a moment.
func (f *filling) objectTasks(e *entry, tables []uint32, mode lockMode) []*task {
	weight := int64(0)
	for _, table := range tables {
		weight += f.tables[table].Bytes
	}
	locks := func(mode lockMode) []lock {
		var list []lock
		for _, table := range f.below(tables) {
			list = append(list, lock{table, mode})
		}
		return list
	}
	if k, ok := f.held.constraint[e.oid]; ok && e.desc == "CONSTRAINT" && k.indexDefinition != "" && single(e.statement) {
		build := f.graph.add(&task{pool: poolIndex, weight: weight, locks: locks(lockShare), run: f.object(e, k.indexDefinition)})
		become := f.graph.add(&task{pool: poolIndex, weight: weight, locks: locks(lockExclusive), run: f.object(e, becomeKey(f.tables[k.table], &k))})
		become.after(build)
		return []*task{build, become}
	}
	return []*task{f.graph.add(&task{pool: poolIndex, weight: weight, locks: locks(mode), run: f.object(e, e.statement)})}
}

// becomeKey writes the statement that turns a built index into a key.
func becomeKey(t *Table, k *constraint) string {
	var b strings.Builder
	b.WriteString("ALTER TABLE ONLY " + t.quoted() + " ADD CONSTRAINT " + quote(k.name))
	if k.kind == "p" {
		b.WriteString(" PRIMARY KEY")
	} else {
		b.WriteString(" UNIQUE")
	}
	b.WriteString(" USING INDEX " + quote(k.indexName))
	if k.deferrable {
		b.WriteString(" DEFERRABLE")
	}
	if k.defers {
		b.WriteString(" INITIALLY DEFERRED")
	}
	return b.String()
}

func (f *filling) object(e *entry, statement string) func(context.Context, int) error {
	return func(ctx context.Context, worker int) error {
		conn, err := f.indexSession(ctx, worker)
		if err != nil {
			return err
		}
		if err := execute(ctx, conn, statement); err != nil {
			return f.refused(wire.StepIndex, e, err)
		}
		return nil
	}
}

func (f *filling) indexSession(ctx context.Context, worker int) (*pgx.Conn, error) {
	if err := f.begin(ctx, wire.StepIndex, nil); err != nil {
		return nil, err
	}
	if f.indexSessions[worker] == nil {
		conn, err := f.open(ctx, f.target, f.names.staging)
		if err == nil {
			err = raiseMemory(ctx, conn)
		}
		if err != nil {
			return nil, fault(wire.StepIndex, wire.Target, "connect to the staging database", err)
		}
		f.indexSessions[worker] = conn
	}
	return f.indexSessions[worker], nil
}

// planAnalyze gives every copied table its statistics once its indexes are built,
// whose expressions have some of their own. It does not wait for the moment in
// which an index becomes a key, and so runs beside the reading again.
func (f *filling) planAnalyze() {
	for oid, m := range f.moves {
		if m.table.Extension != "" {
			continue
		}
		t := f.graph.add(&task{
			pool: poolIndex, weight: -1, locks: []lock{{oid, lockAnalyze}},
			run: func(ctx context.Context, worker int) error {
				conn, err := f.indexSession(ctx, worker)
				if err != nil {
					return err
				}
				if err := execute(ctx, conn, "ANALYZE "+m.table.quoted()); err != nil {
					return fault(wire.StepIndex, wire.Target, "analyze table "+m.table.qualified(), err)
				}
				return nil
			},
		})
		t.after(m.copy)
		for _, before := range f.built[oid] {
			t.after(before)
		}
	}
}

// Order of what is left, by kind; within a kind as dumped. Materialized views are
// filled before row security could hide rows from them, comments and grants need
// everything else.
func tailOrder(e *entry) int {
	switch e.desc {
	case "MATERIALIZED VIEW DATA":
		return 1
	case "POLICY", "ROW SECURITY":
		return 2
	case "COMMENT":
		return 3
	case "ACL", "DEFAULT ACL":
		return 4
	}
	return 0
}

// finish creates what is left, in one session.
func (f *filling) finish(ctx context.Context, conn *pgx.Conn) error {
	if err := raiseMemory(ctx, conn); err != nil {
		return fault(wire.StepIndex, wire.Target, "connect to the staging database", err)
	}
	slices.SortStableFunc(f.tail, func(a, b *entry) int { return tailOrder(a) - tailOrder(b) })
	for _, e := range f.tail {
		err := execute(ctx, conn, e.statement)
		if err != nil && e.desc == "COMMENT" && e.tag == "SCHEMA public" && stateOf(err) == "42501" {
			continue // before version 15 it belongs to a superuser in every database
		}
		if err != nil {
			return f.refused(wire.StepIndex, e, err)
		}
	}
	if err := f.setOwners(ctx, conn); err != nil {
		return err
	}
	return f.describeDatabase(ctx)
}
