package policy

import (
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Any stands for every entity in [Policy.Entities] and for every kind in
// [Policy.AllowedOperations].
const Any = "*"

// Values of [Policy.UndecidedColumns].
const (
	UndecidedStop = "stop" // a column that looks personal and has no treatment stops the plan
	UndecidedCopy = "copy" // it is copied as it is
)

// Policy says who may do what under which rules. Who and what select the
// requests it speaks about; the rules restrict them.
//
// Fields that came later are left out of the JSON while they are not set: the
// digest of a policy is pinned by operations, and an upgrade must not change it.
type Policy struct {
	Name    string `json:"name"`
	Version int64  `json:"version"` // grows with each write
	// Preset is the template the rules were filled from, "" for none.
	Preset string `json:"preset,omitempty"`

	// Who: an entity id of Entities, [Any], or membership of a group id of
	// Groups. A policy without any of them speaks about nobody.
	Entities []string `json:"entities"`
	Groups   []string `json:"groups"`

	// What. Operations selects by kind, empty means every kind. Sources and
	// Targets are globs of connection names; none matches nothing. Labels
	// select by glob on the value of each key; a connection must match all.
	Operations   []wire.Kind       `json:"operations"`
	Sources      []string          `json:"sources"`
	Targets      []string          `json:"targets"`
	SourceLabels map[string]string `json:"source_labels,omitempty"`
	TargetLabels map[string]string `json:"target_labels,omitempty"`

	// The six rules of the seed.

	// RequireAuthentication: an entity must stand behind the request. One is
	// needed anyway; false, which only the preset minimum may say, lifts nothing.
	RequireAuthentication bool `json:"require_authentication"`
	// AllowCrossEngineOperations permits source and target of different engines.
	AllowCrossEngineOperations bool `json:"allow_cross_engine_operations"`
	// EnableNetworkIsolation: only in a sandbox without any network. Every
	// sandbox is one; false, which only the preset minimum may say, lifts nothing.
	EnableNetworkIsolation bool `json:"enable_network_isolation"`
	// AuditOperations: only on agents that see a working audit device. Others
	// get no claim; false lifts nothing.
	AuditOperations bool `json:"audit_operations"`
	// MaxOperationsPerHour limits the operations of one entity in any 60
	// minutes; 0 means no limit.
	MaxOperationsPerHour int `json:"max_operations_per_hour"`
	// AllowedOperations are the kinds permitted, or [Any]. None permits nothing,
	// which makes the policy a prohibition.
	AllowedOperations []string `json:"allowed_operations"`

	// Limits of the same kind on other things than the entity, because one
	// person may be two entities. 0 means no limit.
	MaxOperationsPerHourSource int `json:"max_operations_per_hour_source"`
	MaxOperationsPerHourTarget int `json:"max_operations_per_hour_target"`
	MaxOperationsPerHourMount  int `json:"max_operations_per_hour_mount"`

	MaxConcurrent        int           `json:"max_concurrent"` // unfinished operations of one entity; 0: no limit
	MaxDuration          time.Duration `json:"max_duration"`   // nanoseconds; 0: the plugin's default
	MaxBytes             int64         `json:"max_bytes"`      // 0: no limit
	MaxRows              int64         `json:"max_rows"`       // 0: no limit
	RequireTLS           bool          `json:"require_tls"`    // on both sides
	AllowProtectedTarget bool          `json:"allow_protected_target"`

	// AllowCrossZone permits source and target of different zones.
	AllowCrossZone bool `json:"allow_cross_zone,omitempty"`
	// AllowedHours are windows of the week ([ParseHours]), read on the clock of
	// AllowedHoursTimeZone, an IANA name; "" is UTC. None means always.
	AllowedHours         []string `json:"allowed_hours,omitempty"`
	AllowedHoursTimeZone string   `json:"allowed_hours_time_zone,omitempty"`
	// Agents are globs of the names of agents that may take the operation,
	// AgentLabels globs of their labels' values; none means every agent.
	Agents      []string          `json:"agents,omitempty"`
	AgentLabels map[string]string `json:"agent_labels,omitempty"`
	// Approvals asks for people's consent to the plan; nil asks for none.
	Approvals *Approvals `json:"approvals,omitempty"`

	// Mask is the masking profile that must be applied; "" asks for none.
	Mask string `json:"mask,omitempty"`
	// UndecidedColumns is [UndecidedStop], [UndecidedCopy], or "", which stops
	// where there is a mask and copies where there is none.
	UndecidedColumns string `json:"undecided_columns,omitempty"`
	// Preview permits reading rows while planning: samples, the preview of a merge.
	Preview bool `json:"preview,omitempty"`
	// CloneTTL is how long a clone may live at most, in nanoseconds; 0: for ever.
	CloneTTL time.Duration `json:"clone_ttl,omitempty"`
}

// Approvals says who has to agree to an operation before it runs.
type Approvals struct {
	Count  int           `json:"count"`  // different people, at least 1
	Groups []string      `json:"groups"` // ids; an approver is a member of one of them
	TTL    time.Duration `json:"ttl"`    // nanoseconds an approval holds; 0: the plugin's default
}

// undecided is the value of undecided_columns with its default filled in.
func (p Policy) undecided() string {
	if p.UndecidedColumns == "" && p.Mask != "" {
		return UndecidedStop
	}
	return p.UndecidedColumns
}

// Connection is one name of a database, as policies see it.
type Connection struct {
	Name      string
	Engine    wire.EngineType
	Labels    map[string]string
	Zone      string `json:",omitempty"`
	Protected bool
	TLS       bool // the connection is encrypted
}

// History is what the stored operations say about the recent past. Times are
// those of admission, in any order; older ones than the window are ignored.
type History struct {
	Entity []time.Time // of operations of the same entity
	Source []time.Time // of operations from the same database, under any name
	Target []time.Time // of operations into the same database, under any name
	Mount  []time.Time // of all operations
	// Unfinished is the number of the entity's operations that have not ended.
	Unfinished int
}

// Request is what is to be decided.
type Request struct {
	Entity string   // id; empty means nobody
	Groups []string // group ids of the entity, inherited ones included
	Kind   wire.Kind
	// Source and Target list the names of each side's database: the one asked for
	// first, then every other connection known to lead to the same database.
	// Policies that match by any of them restrict; only those that match as asked
	// permit. Empty when the kind has no such side.
	Source []Connection
	Target []Connection
	// ZonesInUse: some connection of the mount has a zone, so that one without is
	// in an unknown place.
	ZonesInUse bool `json:",omitempty"`

	Isolated bool // it would run in a sandbox without a network
	Audited  bool // it would run only where audit devices work

	// History is nil when the operation was admitted before; limits on rates and
	// concurrency are then not applied again.
	History *History
	// Estimates is nil before there is a plan.
	Estimates *wire.Estimates
}
