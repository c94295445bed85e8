package postgres

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// stage makes the database the copy is built in.
func (c *clone) stage(ctx context.Context) error {
	if err := c.begin(ctx, wire.StepStage, nil); err != nil {
		return err
	}
	var locked bool
	if err := c.admin.QueryRow(ctx, "SELECT pg_catalog.pg_try_advisory_lock($1)", c.names.lock).Scan(&locked); err != nil {
		return fault(wire.StepStage, wire.Target, "lock the operation's staging place", err)
	}
	if !locked {
		return &operation.Error{
			Step: wire.StepStage, Code: wire.CodeConflict, Reason: "another session works on this operation at the target",
			Hint: "wait until it has ended",
		}
	}
	c.staged = true
	// Left by an earlier attempt of this very operation.
	if err := dropDatabase(ctx, c.admin, c.names.staging); err != nil {
		return fault(wire.StepStage, wire.Target, "drop an earlier staging database", err)
	}
	if err := execute(ctx, c.admin, createDatabase(c.names.staging, &c.shape.Database, c.to.Major)); err != nil {
		failed := fault(wire.StepStage, wire.Target, "create the staging database", err)
		switch stateOf(err) {
		case "22023", "42809", "42704": // a locale or an encoding that the server does not have
			failed.Code, failed.Hint = wire.CodeUnsupported, "install the source's locale on the target server"
		}
		return failed
	}
	return c.end(ctx, wire.StepStage, 0, 0)
}

func createDatabase(name string, d *databaseShape, major int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "CREATE DATABASE %s TEMPLATE template0 ENCODING %s LC_COLLATE %s LC_CTYPE %s",
		quote(name), literal(d.Encoding), literal(d.Collate), literal(d.CType))
	switch d.Provider {
	case "icu":
		fmt.Fprintf(&b, " LOCALE_PROVIDER icu ICU_LOCALE %s", literal(d.Locale))
		if d.Rules != "" {
			fmt.Fprintf(&b, " ICU_RULES %s", literal(d.Rules))
		}
	case "builtin":
		fmt.Fprintf(&b, " LOCALE_PROVIDER builtin BUILTIN_LOCALE %s", literal(d.Locale))
	default:
		if major >= 15 {
			b.WriteString(" LOCALE_PROVIDER libc")
		}
	}
	return b.String()
}

// dropDatabase removes a database with its sessions; none is fine.
func dropDatabase(ctx context.Context, conn *pgx.Conn, name string) error {
	return execute(ctx, conn, "DROP DATABASE IF EXISTS "+quote(name)+" WITH (FORCE)")
}
