package wire

import "time"

// Kind is what an operation does.
type Kind string

// The kinds. Policies name them; which of them this version can run is the
// engines' matter.
const (
	KindClone   Kind = "clone"
	KindMerge   Kind = "merge"
	KindMigrate Kind = "migrate"
	KindBackup  Kind = "backup"
	KindRestore Kind = "restore"
)

// Kinds lists every kind.
func Kinds() []Kind { return []Kind{KindClone, KindMerge, KindMigrate, KindBackup, KindRestore} }

// Valid reports whether k is a known kind.
func (k Kind) Valid() bool {
	switch k {
	case KindClone, KindMerge, KindMigrate, KindBackup, KindRestore:
		return true
	}
	return false
}

// EngineType is a database product family.
type EngineType string

// The engines.
const (
	EnginePostgres EngineType = "postgres"
	EngineMySQL    EngineType = "mysql"
	EngineRedis    EngineType = "redis"
	EngineMongoDB  EngineType = "mongodb"
)

// Side is one end of an operation.
type Side string

// The sides.
const (
	Source Side = "source"
	Target Side = "target"
)

// Purpose is what an account is for; connections map it to a role.
type Purpose string

// The purposes.
const (
	PurposeInspect Purpose = "inspect" // catalogs only
	PurposeRead    Purpose = "read"    // the source while running
	PurposeWrite   Purpose = "write"   // the target while running
)

// User is who asked, as Vault's identity knows them.
type User struct {
	EntityID string `json:"entity_id"`
	Name     string `json:"name"`
}

// Decision is the outcome of policy for one request, at the time of the request
// and again on the plan.
type Decision struct {
	Allowed  bool     `json:"allowed"`
	Code     Code     `json:"code,omitempty"`     // why not
	Policies []string `json:"policies,omitempty"` // all that matched
	Policy   string   `json:"policy,omitempty"`   // the one that decided
	Rule     string   `json:"rule,omitempty"`
	Reason   string   `json:"reason"`
	// Obligations hold for the operation when it is allowed.
	MaxBytes    int64         `json:"max_bytes,omitempty"`    // 0: no limit
	MaxRows     int64         `json:"max_rows,omitempty"`     // 0: no limit
	MaxDuration time.Duration `json:"max_duration,omitempty"` // nanoseconds; 0: the engine's default
	RequireTLS  bool          `json:"require_tls,omitempty"`
	// Approvals are what must be agreed to before the operation runs; each of
	// them has to be met. One approval may count for several.
	Approvals []ApprovalNeed `json:"approvals,omitempty"`
	// Agents restrict who may take the operation; an agent has to satisfy each.
	Agents []AgentNeed `json:"agents,omitempty"`
	// Masks are the masking profiles that have to be applied, all of them.
	Masks []string `json:"masks,omitempty"`
	// UndecidedColumns says what becomes of a column that looks personal and has
	// no treatment: "stop" the plan, or "copy"; empty where nobody asked.
	UndecidedColumns string `json:"undecided_columns,omitempty"`
	// Preview permits reading rows while planning.
	Preview bool `json:"preview,omitempty"`
	// CloneTTL is how long the clone may live, in nanoseconds; 0: for ever.
	CloneTTL time.Duration `json:"clone_ttl,omitempty"`
	// RetryAt is when a refusal that time lifts is lifted.
	RetryAt time.Time `json:"retry_at,omitzero"`
}

// AgentNeed is what one policy asks of the agent.
type AgentNeed struct {
	Policy string `json:"policy"`
	// Names are globs of which one has to match the agent's name; none means any.
	Names []string `json:"names,omitempty"`
	// Labels are globs of which each has to match that label of the agent.
	Labels map[string]string `json:"labels,omitempty"`
}

// ApprovalNeed is what one policy asks of approvers.
type ApprovalNeed struct {
	Policy string `json:"policy"`
	// Count is how many different people have to approve, at least 1.
	Count int `json:"count"`
	// Groups are ids of identity groups; an approver is a member of one of them.
	Groups []string `json:"groups"`
	// TTL is how long an approval holds, in nanoseconds; 0 is the plugin's default.
	TTL time.Duration `json:"ttl,omitempty"`
}

// Result is how an operation ended.
type Result struct {
	Code   Code   `json:"code,omitempty"` // empty on success
	Reason string `json:"reason,omitempty"`
	Hint   string `json:"hint,omitempty"`
	// CleanupHint is what the last claim for cleaning the target has told, beside Hint.
	CleanupHint string `json:"cleanup_hint,omitempty"`
	Step        Step   `json:"step,omitempty"` // where it failed
	Rows        string `json:"rows,omitempty"` // decimal
	Bytes       string `json:"bytes,omitempty"`
	Tables      string `json:"tables,omitempty"`
	// ReportDigest is the SHA-256 (hex) of the report text the agent sent.
	ReportDigest string `json:"report_digest,omitempty"`
}

// Cancellation is who asked for an operation to be cancelled, and was the first to. A
// token without an entity is told by its display name.
type Cancellation struct {
	User
	Time   time.Time `json:"time"`
	Reason string    `json:"reason,omitempty"` // in their words
}

// Operation is what operations/:id answers.
type Operation struct {
	ID              string            `json:"id"`
	Kind            Kind              `json:"kind"`
	Source          string            `json:"source"` // connection name
	Target          string            `json:"target"`
	State           State             `json:"state"`
	Requester       User              `json:"requester"`
	Reason          string            `json:"reason,omitempty"` // the requester's words
	RequestID       string            `json:"request_id,omitempty"`
	Options         map[string]string `json:"options,omitempty"`
	CreatedAt       time.Time         `json:"created_at"`
	UpdatedAt       time.Time         `json:"updated_at"`
	Decision        Decision          `json:"decision"`
	PlanDigest      string            `json:"plan_digest,omitempty"`  // sha256:<hex> of the plan's bytes
	ShapeDigest     string            `json:"shape_digest,omitempty"` // sha256:<hex> of its shape
	Estimates       *Estimates        `json:"estimates,omitempty"`
	Approvals       []Approval        `json:"approvals,omitempty"`      // given so far; some may not count any more
	ApprovalNeeds   []ApprovalStatus  `json:"approval_needs,omitempty"` // while it waits for approval or an agent; not stored
	NotBefore       time.Time         `json:"not_before,omitzero"`      // when allowed_hours let it run, while it is queued outside of them
	Rejection       *Rejection        `json:"rejection,omitempty"`
	Agent           string            `json:"agent,omitempty"` // holder of the claim, last one at the end
	Fence           string            `json:"fence,omitempty"`
	CancelRequested bool              `json:"cancel_requested,omitempty"`
	Cancellation    *Cancellation     `json:"cancellation,omitempty"` // none where an earlier version was asked
	Progress        *Progress         `json:"progress,omitempty"`     // as last heard; not stored
	Result          *Result           `json:"result,omitempty"`
	// Cleanup is what becomes of what the run left at the target; empty when nothing
	// had to be removed by a claim of its own. Stored beside the operation.
	Cleanup CleanupState `json:"cleanup,omitempty"`
	// CleanupAttempts is how many claims for that there were. Stored beside the operation.
	CleanupAttempts int `json:"cleanup_attempts"`
	// Acknowledged is who said that the target was cleaned by hand, while Cleanup says so.
	Acknowledged *ReceiptAcknowledgement `json:"cleanup_acknowledged,omitempty"`
}

// CleanupState says how far agents are with what a run left at its target.
type CleanupState string

// The states of a cleanup.
const (
	CleanupPending      CleanupState = "pending"      // wanted, perhaps at work
	CleanupDone         CleanupState = "done"         // nothing is left
	CleanupFailed       CleanupState = "failed"       // given up; a person must look
	CleanupAcknowledged CleanupState = "acknowledged" // given up, and a person says to have cleaned by hand
)

// Options of a clone, all strings as they travel in requests.
const (
	// OptionOwner is who owns the copied objects: "stable" (default), the
	// NOLOGIN role behind the target's write purpose, or "source", the same
	// role names as at the source, which must exist at the target.
	OptionOwner = "owner"
	// OptionACL says whether grants are copied: "drop" (default) or "keep".
	OptionACL = "acl"
	// OptionJobs is the number of tables copied at once, 1 to 16; default 2.
	OptionJobs = "jobs"
	// OptionReplace says what happens to an existing target database:
	// "true" (default) replaces it on success, "false" refuses.
	OptionReplace = "replace"
)

// OptionNames lists the options that clone requests accept.
func OptionNames() []string { return []string{OptionOwner, OptionACL, OptionJobs, OptionReplace} }
