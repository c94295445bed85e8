package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

const (
	// switchPatience is how long other sessions may take to leave.
	switchPatience = 15 * time.Second
	// terminateInterval is how often they are told to.
	terminateInterval = 100 * time.Millisecond
	// commitTimeout bounds the one statement that is not given up when the
	// operation is cancelled: its outcome must be known.
	commitTimeout = 10 * time.Second
)

// putInPlace gives the staging database the target's name, in one transaction
// with the renaming of what is there.
func (c *clone) putInPlace(ctx context.Context) error {
	if err := c.begin(ctx, wire.StepSwitch, nil); err != nil {
		return err
	}
	comment, err := c.comment(ctx)
	if err != nil {
		return err
	}
	// Nobody may be connected to a database that is renamed, ourselves included.
	c.closeSessions()
	helper, err := c.target.openMaintenance(ctx)
	if err != nil {
		return fault(wire.StepSwitch, wire.Target, "connect to the target", err)
	}
	defer closeSession(helper) //nolint:errcheck // nothing is left to do in it
	limit := time.NewTimer(switchPatience)
	defer limit.Stop()
	for {
		err := c.trySwitch(ctx, helper, comment)
		if err == nil {
			break
		}
		if stateOf(err) != "55006" { // object_in_use
			return fault(wire.StepSwitch, wire.Target, "rename the databases", err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-limit.C:
			return &operation.Error{
				Step: wire.StepSwitch, Code: wire.CodeConflict, Reason: "sessions or prepared transactions stay in the database that is to be replaced",
				Hint: "end them, or keep clients from connecting while the copy is put in place",
			}
		default:
		}
	}
	return c.end(ctx, wire.StepSwitch, 0, 0)
}

// comment is the comment of the new database: our marker, and below it the
// source's own.
func (c *clone) comment(ctx context.Context) (string, error) {
	var own *string
	err := c.keeper.QueryRow(ctx, `SELECT pg_catalog.shobj_description(oid, 'pg_database') FROM pg_catalog.pg_database
 WHERE datname = pg_catalog.current_database()`).Scan(&own)
	if err != nil {
		return "", fault(wire.StepSwitch, wire.Source, "read the database's comment", err)
	}
	text := c.names.marker
	if own != nil {
		text += "\n" + *own
	}
	return text, nil
}

// trySwitch renames in one transaction. While it waits for other sessions to
// leave, the server lets no new ones in; helper ends those that are there.
func (c *clone) trySwitch(ctx context.Context, helper *pgx.Conn, comment string) error {
	replaces, err := databaseExists(ctx, c.admin, c.job.Target.Database)
	if err != nil {
		return err
	}
	if replaces != c.to.Exists {
		return &operation.Error{
			Step: wire.StepSwitch, Code: wire.CodePlanChanged, Reason: "the target database came or went while the copy was made",
			Hint: "ask for the operation again",
		}
	}
	statements := "BEGIN; "
	if replaces {
		statements += "ALTER DATABASE " + quote(c.job.Target.Database) + " RENAME TO " + quote(c.names.old) + "; "
	}
	statements += "ALTER DATABASE " + quote(c.names.staging) + " RENAME TO " + quote(c.job.Target.Database) + "; " +
		"COMMENT ON DATABASE " + quote(c.job.Target.Database) + " IS " + literal(comment)
	if c.options.keepOwner {
		statements += "; ALTER DATABASE " + quote(c.job.Target.Database) + " OWNER TO " + quote(c.shape.Database.Owner)
	}
	renamed := make(chan error, 1)
	go func() { renamed <- execute(ctx, c.admin, statements) }()
	denied := c.terminateUntil(ctx, helper, renamed)
	if err := <-renamed; err != nil {
		rollback, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		// A session that cannot roll back is closed by undo.
		_ = execute(rollback, c.admin, "ROLLBACK")
		if stateOf(err) == "55006" && denied {
			return &operation.Error{
				Step: wire.StepSwitch, Code: wire.CodePrivilege, Reason: "the account may not end sessions in the database that is to be replaced",
				Hint: "grant pg_signal_backend to the write purpose's role, and keep superusers' sessions out",
			}
		}
		return err
	}
	return c.commitSwitch(ctx)
}

// terminateUntil ends foreign sessions in both databases until the renaming has
// an answer, which is put back. It reports whether the server denied it.
func (c *clone) terminateUntil(ctx context.Context, helper *pgx.Conn, renamed chan error) bool {
	denied := false
	tick := time.NewTicker(terminateInterval)
	defer tick.Stop()
	for {
		if err := terminateSessions(ctx, helper, c.job.Target.Database, c.names.staging); stateOf(err) == "42501" {
			denied = true
		}
		select {
		case err := <-renamed:
			renamed <- err
			return denied
		case <-tick.C:
		}
	}
}

// terminateSessions ends the sessions in the databases, each by itself: one that
// may not be ended does not save the others. Its kind is hidden from those who
// may not see its statements; that it has a user tells it from a background
// worker, which the server itself sends away.
func terminateSessions(ctx context.Context, conn *pgx.Conn, databases ...string) error {
	rows, err := conn.Query(ctx, `SELECT pid FROM pg_catalog.pg_stat_activity
 WHERE datname = ANY ($1::text[]) AND usesysid IS NOT NULL AND pid <> pg_catalog.pg_backend_pid()`, databases)
	if err != nil {
		return err
	}
	pids, err := pgx.CollectRows(rows, pgx.RowTo[int32])
	if err != nil {
		return err
	}
	var failed error
	for _, pid := range pids {
		if _, err := conn.Exec(ctx, "SELECT pg_catalog.pg_terminate_backend($1)", pid); err != nil {
			failed = errors.Join(failed, err)
		}
	}
	return failed
}

// commitSwitch commits. Once sent, the outcome is found out whatever happens to
// the connection or to ctx.
func (c *clone) commitSwitch(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	err := execute(ctx, c.admin, "COMMIT")
	if err == nil {
		c.switched = true
		return nil
	}
	_ = closeSession(c.admin)
	fresh, again := c.target.openMaintenance(ctx)
	if again != nil {
		return errors.Join(err, again)
	}
	c.admin = fresh
	staging, again := databaseExists(ctx, fresh, c.names.staging)
	if again != nil {
		return errors.Join(err, again)
	}
	if staging {
		return err
	}
	c.switched = true
	return nil
}

func databaseExists(ctx context.Context, conn *pgx.Conn, name string) (bool, error) {
	var exists bool
	err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_database WHERE datname = $1)", name).Scan(&exists)
	return exists, err
}

// dropReplaced removes the database that the copy took the place of.
func (c *clone) dropReplaced(ctx context.Context) error {
	if err := c.begin(ctx, wire.StepDropOld, nil); err != nil {
		return err
	}
	if err := dropDatabase(ctx, c.admin, c.names.old); err != nil {
		return fault(wire.StepDropOld, wire.Target, "drop the replaced database", err)
	}
	return c.end(ctx, wire.StepDropOld, 0, 0)
}
