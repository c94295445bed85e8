// Package operation holds what the parts of the agent say to each other about an
// operation: how it fails and what it reports. It does no I/O.
package operation

import (
	"fmt"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Error is a failure with the step it happened in, a code somebody can decide
// on and, where there is one, a way out. Reason and Hint never hold row data,
// SQL literals or secrets: they come from our own words, an SQLSTATE and object
// names. Err is for the local log at most, never for events or Vault.
type Error struct {
	Step   wire.Step
	Code   wire.Code
	Reason string
	Hint   string
	Err    error
}

// Error returns step, code and reason, not the cause.
func (e *Error) Error() string { return fmt.Sprintf("%s: %s: %s", e.Step, e.Code, e.Reason) }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// TableReport is the verified state of one table. Digest is the sum modulo 2^128
// of a 128-bit hash of each row, in 32 hex digits, and so independent of order.
type TableReport struct {
	Schema     string `json:"schema"`
	Name       string `json:"name"`
	Rows       int64  `json:"rows"`
	Bytes      int64  `json:"bytes"` // as streamed
	Digest     string `json:"digest"`
	SourceRows int64  `json:"source_rows"`
	// SourceDigest was taken from the stream in flight, Digest from the target
	// re-read by a second session.
	SourceDigest string `json:"source_digest"`
	Match        bool   `json:"match"`
}

// Report is what a run shows at its end.
type Report struct {
	Tables   []TableReport `json:"tables"`
	Rows     int64         `json:"rows"`
	Bytes    int64         `json:"bytes"`
	Objects  int           `json:"objects"`  // catalog objects compared
	Snapshot string        `json:"snapshot"` // the source's snapshot id
	// DurationsMS is the time spent in each step, by step name.
	DurationsMS map[wire.Step]int64 `json:"durations_ms"`
	// What the agent, not the worker, has to say; see [wire.ReportHead]. Sandbox and
	// Audit are nil when they were not observed.
	TablesRoot string             `json:"tables_root,omitempty"`
	Sandbox    *wire.SandboxFacts `json:"sandbox,omitempty"`
	Audit      *wire.AuditCheck   `json:"audit,omitempty"`
}
