package postgres

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// lockBatch is how many tables are locked by one statement.
const lockBatch = 200

// takeSnapshot freezes the source's view and shows the host what is in it.
//
// The approved tables are locked before the snapshot is taken (LOCK does not
// take one itself): a TRUNCATE or a rewrite in between would make a table look
// empty to an older snapshot. Tables that are not in the approved shape change
// the shape and stop the run.
func (c *clone) takeSnapshot(ctx context.Context) error {
	var err error
	if c.admin, err = c.target.openMaintenance(ctx); err != nil {
		return fault(wire.StepSnapshot, wire.Target, "connect to the target", err)
	}
	if c.to, err = inspectTarget(ctx, c.admin, c.job.Target.Database); err != nil {
		return fault(wire.StepSnapshot, wire.Target, "inspect the target", err)
	}
	if err := c.checkTarget(ctx); err != nil {
		return err
	}
	if c.keeper, err = c.open(ctx, c.source, c.job.Source.Database); err != nil {
		return fault(wire.StepSnapshot, wire.Source, "connect to the source", err)
	}
	if err := execute(ctx, c.keeper, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"); err != nil {
		return fault(wire.StepSnapshot, wire.Source, "take a snapshot", err)
	}
	if err := c.lockTables(ctx); err != nil {
		return err
	}
	if err := c.keeper.QueryRow(ctx, "SELECT pg_catalog.pg_export_snapshot()").Scan(&c.snapshot); err != nil {
		return fault(wire.StepSnapshot, wire.Source, "take a snapshot", err)
	}
	c.report.Snapshot = c.snapshot
	if c.from, c.held, err = inspectSource(ctx, c.keeper); err != nil {
		return fault(wire.StepSnapshot, wire.Source, "inspect the source", err)
	}
	if c.program, err = c.engine.findDump(ctx, c.job.Source, c.from.Major); err != nil {
		return err
	}
	planned, err := plan(c.job.Options, &c.from, &c.to)
	if err != nil {
		return err
	}
	if err := c.begin(ctx, wire.StepSnapshot, planned.Shape); err != nil {
		return err
	}
	// The host compares, by way of Vault. A run without such a host must not go
	// on with another shape either.
	if string(planned.Shape) != string(c.job.Shape) {
		return &operation.Error{
			Step: wire.StepSnapshot, Code: wire.CodePlanChanged, Reason: "the databases are no longer what the plan was made for",
			Hint: "ask for the operation again",
		}
	}
	c.mutex.Lock()
	c.estimate = planned.Estimates.Bytes
	c.mutex.Unlock()
	return c.end(ctx, wire.StepSnapshot, 0, 0)
}

func (c *clone) lockTables(ctx context.Context) error {
	var tables []string
	for i := range c.shape.Tables {
		if t := &c.shape.Tables[i]; t.Kind != "foreign" {
			tables = append(tables, pgx.Identifier{t.Schema, t.Name}.Sanitize())
		}
	}
	for len(tables) > 0 {
		n := min(lockBatch, len(tables))
		err := execute(ctx, c.keeper, "LOCK TABLE ONLY "+strings.Join(tables[:n], ", ONLY ")+" IN ACCESS SHARE MODE")
		if state := stateOf(err); state == "42P01" || state == "3F000" {
			return &operation.Error{
				Step: wire.StepSnapshot, Code: wire.CodePlanChanged, Reason: "a table of the plan is gone",
				Hint: "ask for the operation again",
			}
		}
		if err != nil {
			return fault(wire.StepSnapshot, wire.Source, "lock the tables for reading", err)
		}
		tables = tables[n:]
	}
	return nil
}

// checkTarget finds out, before anything is made, whether the account may do
// what a clone needs.
func (c *clone) checkTarget(ctx context.Context) error {
	var super, create, owner bool
	err := c.admin.QueryRow(ctx, `
SELECT r.rolsuper, r.rolcreatedb,
       coalesce((SELECT pg_catalog.pg_has_role(r.oid, d.datdba, 'USAGE') FROM pg_catalog.pg_database d WHERE d.datname = $1), true)
  FROM pg_catalog.pg_roles r WHERE r.rolname = current_user`, c.job.Target.Database).Scan(&super, &create, &owner)
	if err != nil {
		return fault(wire.StepSnapshot, wire.Target, "inspect the target", err)
	}
	lacks := func(hint, reason string, args ...any) error {
		return &operation.Error{Step: wire.StepSnapshot, Code: wire.CodePrivilege, Reason: fmt.Sprintf(reason, args...), Hint: hint}
	}
	switch {
	case super:
		return nil
	case !create:
		return lacks("give the write purpose's role CREATEDB", "the account may not create databases at the target")
	case !owner:
		return lacks("make the write purpose's role, or one it is a member of, owner of the database",
			"the account may not rename the database it is to replace")
	}
	for _, x := range c.shape.Extensions {
		for _, a := range c.to.Available {
			if a.Name == x.Name && !a.Trusted && a.Name != "plpgsql" {
				return lacks("mark the extension trusted at the target, or use a superuser's role",
					"extension %s can be installed by a superuser only", x.Name)
			}
		}
	}
	return nil
}
