package wire

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
)

// Limits on plans in transit and at rest, in bytes.
const (
	PlanPartBytes = 256 << 10 // one part of a plan in a request
	PlanMaxBytes  = 50 << 20  // a whole plan
)

// Plan is the envelope every plan text has. Shape and Estimates are kept as the
// bytes the agent sent: digests are taken over bytes, never over a re-encoding.
// Logins are put behind them by the plugin, which knows them; agents send none.
type Plan struct {
	Version   int             `json:"version"` // 1
	Shape     json.RawMessage `json:"shape"`
	Estimates Estimates       `json:"estimates"`
	Logins    []PlannedLogin  `json:"logins,omitempty"`
}

// PlanLogins is the key of [Plan.Logins] in a plan's text.
const PlanLogins = "logins"

// PlannedLogin is what the login of one side is granted while the operation runs: its
// role as the plugin uses it. One that changed after the plan makes no login.
type PlannedLogin struct {
	Side             Side              `json:"side"`
	Purpose          Purpose           `json:"purpose"`
	Connection       string            `json:"connection"`
	Role             string            `json:"role"`
	Preset           string            `json:"preset,omitempty"`
	CredentialType   string            `json:"credential_type"`
	CredentialConfig map[string]string `json:"credential_config,omitempty"`
	Creation         []string          `json:"creation_statements"`
	// Without statements a login is ended, and renewed, in the plugin's own way.
	Revocation []string `json:"revocation_statements,omitempty"`
	Renew      []string `json:"renew_statements,omitempty"`
	// Preparation is what a preset needs once on the server.
	Preparation []string `json:"preparation_statements,omitempty"`
}

// ShapeHead is the part of a shape that the plugin reads, for every engine.
// Engines embed it at the top of their own shape.
type ShapeHead struct {
	Kind     Kind              `json:"kind"`
	Strategy string            `json:"strategy"` // how data moves, e.g. "stream"
	Why      string            `json:"why"`      // reason for the strategy
	Source   ServerIdentity    `json:"source"`
	Target   ServerIdentity    `json:"target"`
	Tables   int               `json:"tables"`
	Options  map[string]string `json:"options"`
}

// ServerIdentity says which database a connection really leads to.
type ServerIdentity struct {
	Engine   EngineType `json:"engine"`
	Server   string     `json:"server"`   // PostgreSQL: system_identifier
	Database string     `json:"database"` // its name
	// DatabaseID is the database's own identity within the server (PostgreSQL:
	// oid, decimal), empty when the database does not exist yet.
	DatabaseID string `json:"database_id,omitempty"`
	Version    string `json:"version"` // e.g. "15.18"
	TLS        bool   `json:"tls"`     // whether the inspecting session was encrypted
}

// Same reports whether a and b are one database of one server.
func (a ServerIdentity) Same(b ServerIdentity) bool {
	return a.Server != "" && a.Engine == b.Engine && a.Server == b.Server && a.Database == b.Database
}

// Estimates is the part of a plan that may change without voiding it.
type Estimates struct {
	Tables int   `json:"tables"`
	Rows   int64 `json:"rows"`  // from the catalogs, may be off
	Bytes  int64 `json:"bytes"` // heap and toast on disk
}

// Digest is the digest form used everywhere: "sha256:" and 64 hex digits.
func Digest(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256:" + hex.EncodeToString(sum[:])
}
