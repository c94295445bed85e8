package postgres

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// createSchema dumps the source's definitions and creates what must be there
// before rows can be.
func (c *clone) createSchema(ctx context.Context) error {
	if err := c.begin(ctx, wire.StepSchema, nil); err != nil {
		return err
	}
	var err error
	if c.dump, err = dumpSchema(ctx, c.job, c.program, c.from.Major, c.snapshot, c.options.keepACL); err != nil {
		return fault(wire.StepSchema, wire.Source, "dump the schema", err)
	}
	conn, err := c.open(ctx, c.target, c.names.staging)
	if err != nil {
		return fault(wire.StepSchema, wire.Target, "connect to the staging database", err)
	}
	if !c.holds("schema", "public") {
		if err := execute(ctx, conn, "DROP SCHEMA public"); err != nil && stateOf(err) != "42501" {
			return fault(wire.StepSchema, wire.Target, "drop schema public", err)
		}
	}
	method := ""
	for i := range c.dump.entries {
		e := &c.dump.entries[i]
		if e.section != sectionPreData || skipped(e) {
			continue
		}
		if e.method != "" && e.method != method && e.relkind != 'p' {
			if err := execute(ctx, conn, "SET default_table_access_method = "+quote(e.method)); err != nil {
				return c.refused(wire.StepSchema, e, err)
			}
			method = e.method
		}
		if err := execute(ctx, conn, c.statement(e)); err != nil {
			return c.refused(wire.StepSchema, e, err)
		}
	}
	return c.end(ctx, wire.StepSchema, 0, 0)
}

// holds reports whether the source has an object.
func (c *clone) holds(kind, identity string) bool {
	for i := range c.held.Objects {
		if c.held.Objects[i].Kind == kind && c.held.Objects[i].Identity == identity {
			return true
		}
	}
	return false
}

// skipped reports what a plan says is not copied, and what our own sessions
// have set already.
func skipped(e *entry) bool {
	switch e.desc {
	case "ENCODING", "STDSTRINGS", "SEARCHPATH", "DATABASE", "DATABASE PROPERTIES",
		"EVENT TRIGGER", "PUBLICATION", "PUBLICATION TABLE", "PUBLICATION TABLES IN SCHEMA", "SUBSCRIPTION", "SUBSCRIPTION TABLE",
		"USER MAPPING", "SECURITY LABEL", "BLOB", "BLOB METADATA", "BLOBS", "STATISTICS DATA":
		return true
	case "SCHEMA":
		return e.tag == "public" // every new database has it
	case "ACL":
		return strings.HasPrefix(e.tag, "DATABASE ") // under the source's name; see describeDatabase
	case "COMMENT":
		return strings.HasPrefix(e.tag, "DATABASE ") || strings.HasPrefix(e.tag, "EVENT TRIGGER ") || strings.HasPrefix(e.tag, "PUBLICATION ") || strings.HasPrefix(e.tag, "SUBSCRIPTION ")
	}
	return e.statement == ""
}

// statement is what to run for an entry: the dump's own, but for extensions,
// whose version a dump leaves open.
func (c *clone) statement(e *entry) string {
	if e.desc == "EXTENSION" {
		for _, x := range c.shape.Extensions {
			if x.Name == e.tag {
				return "CREATE EXTENSION IF NOT EXISTS " + quote(x.Name) + " WITH SCHEMA " + quote(x.Schema) +
					" VERSION " + literal(x.TargetVersion)
			}
		}
	}
	return e.statement
}

// refused names the object whose definition the target did not take.
func (c *clone) refused(step wire.Step, e *entry, err error) *operation.Error {
	failed := fault(step, wire.Target, "create "+strings.ToLower(e.desc)+" "+qualified(e.namespace, e.tag), err)
	if failed.Code == wire.CodePrivilege {
		failed.Hint = "only a superuser may create this, or the write purpose's role lacks a membership; remove it from the source or use another role"
	}
	return failed
}

// single reports whether text is one statement. It may say no for a statement
// with a semicolon inside, never yes for two.
func single(text string) bool {
	return strings.Count(strings.TrimSpace(text), ";") == 1 && strings.HasSuffix(strings.TrimSpace(text), ";")
}

// raiseMemory gives a session that builds indexes more room than the usual
// default, unless the server's own setting is higher.
func raiseMemory(ctx context.Context, conn *pgx.Conn) error {
	return execute(ctx, conn, `SELECT pg_catalog.set_config('maintenance_work_mem', '256MB', false)
 WHERE (SELECT setting::int8 FROM pg_catalog.pg_settings WHERE name = 'maintenance_work_mem') < 262144`)
}
