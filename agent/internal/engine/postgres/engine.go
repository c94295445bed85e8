// Package postgres clones PostgreSQL databases.
//
// A clone is a stream: one snapshot of the source, held by a keeper session,
// the rows of each table as COPY data passed on byte for byte into a staging
// database, and everything else from a schema dump of the same snapshot. Each
// row is hashed in passing; each table is read again from the target by another
// session and must have the same rows. Only then the staging database takes the
// target's name, in one transaction.
//
// Start reading at [Engine.Run] in run.go. plan.go decides, everything else acts.
package postgres

import (
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Options are what an engine may be told about its surroundings. The zero value
// is right in the worker's image.
type Options struct {
	// ToolDirs are searched for pg_dump before the usual places.
	ToolDirs []string
}

// Engine is the PostgreSQL engine. It keeps no state between calls.
type Engine struct {
	options Options
}

var _ engine.Engine = (*Engine)(nil)

// New returns the engine.
func New(options Options) *Engine { return &Engine{options: options} }

// Type returns [wire.EnginePostgres].
func (*Engine) Type() wire.EngineType { return wire.EnginePostgres }
