package postgres

import (
	"context"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// lockPatience is how long the session of a worker that has died may go on: the
// server looks for its client once a second.
const lockPatience = 15 * time.Second

// Cleanup removes what a run left at the target. The staging database tells that
// nothing was switched, the old one without it that everything was; when neither
// is there, the marker on the target database decides.
func (e *Engine) Cleanup(ctx context.Context, id string, target engine.Endpoint) (engine.CleanupResult, error) {
	own, err := namesOf(id)
	if err != nil {
		return engine.CleanupResult{}, fault(wire.StepCleanup, wire.Target, "clean up", err)
	}
	s := &server{side: wire.Target, endpoint: target, application: "dbops " + id}
	result, err := cleanup(ctx, s, own)
	if err != nil {
		failed := *fault(wire.StepCleanup, wire.Target, "clean up", interrupted(ctx, err))
		failed.Step = wire.StepCleanup
		return engine.CleanupResult{}, &failed
	}
	return result, nil
}

func cleanup(ctx context.Context, s *server, own names) (engine.CleanupResult, error) {
	result := engine.CleanupResult{Removed: []string{}}
	conn, err := s.openMaintenance(ctx)
	if err != nil {
		return result, err
	}
	defer closeSession(conn) //nolint:errcheck // its lock goes with the session
	if err := takeLock(ctx, conn, own.lock); err != nil {
		return result, err
	}
	staging, err := databaseExists(ctx, conn, own.staging)
	if err != nil {
		return result, err
	}
	old, err := databaseExists(ctx, conn, own.old)
	if err != nil {
		return result, err
	}
	remove := func(name string) error {
		if err := dropDatabase(ctx, conn, name); err != nil {
			return fault(wire.StepCleanup, wire.Target, "drop database "+name, err)
		}
		result.Removed = append(result.Removed, name)
		return nil
	}
	switch {
	case staging:
		return result, remove(own.staging)
	case old:
		result.Switched = true
		return result, remove(own.old)
	}
	var comment *string
	err = conn.QueryRow(ctx, `SELECT (SELECT pg_catalog.shobj_description(oid, 'pg_database') FROM pg_catalog.pg_database WHERE datname = $1)`,
		s.endpoint.Database).Scan(&comment)
	if err != nil {
		return result, err
	}
	if comment != nil {
		first, _, _ := strings.Cut(*comment, "\n")
		result.Switched = first == own.marker
	}
	return result, nil
}

// takeLock waits until no other session makes or removes databases for the
// operation. A worker that was killed may leave a CREATE DATABASE running, whose
// result would come after a clean-up that did not wait. Its session is ended
// where that is allowed; otherwise the server ends it by itself.
func takeLock(ctx context.Context, conn *pgx.Conn, key int64) error {
	limit := time.NewTimer(lockPatience)
	defer limit.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		var locked bool
		if err := conn.QueryRow(ctx, "SELECT pg_catalog.pg_try_advisory_lock($1)", key).Scan(&locked); err != nil {
			return err
		}
		if locked {
			return nil
		}
		// Being refused is fine: waiting is the other way.
		_, _ = conn.Exec(ctx, `SELECT pg_catalog.pg_terminate_backend(l.pid) FROM pg_catalog.pg_locks l
 WHERE l.locktype = 'advisory' AND l.granted AND l.pid <> pg_catalog.pg_backend_pid() AND l.objsubid = 1
   AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
   AND (l.classid::int8 << 32 | l.objid::int8) = $1`, key)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-limit.C:
			return &operation.Error{
				Step: wire.StepCleanup, Code: wire.CodeConflict, Reason: "another session still works on this operation at the target",
				Hint: "end it, or wait until it has ended",
			}
		case <-tick.C:
		}
	}
}
