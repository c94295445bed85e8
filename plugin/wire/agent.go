package wire

// Endpoint is how an agent reaches one database: where its forwarder dials and
// what the worker expects there. It holds no secret.
type Endpoint struct {
	Connection string     `json:"connection"`
	Engine     EngineType `json:"engine"`
	Host       string     `json:"host"`
	Port       int        `json:"port"`
	Database   string     `json:"database"`
	// SSLMode is libpq's word: disable, allow, prefer, require, verify-ca or
	// verify-full.
	SSLMode string `json:"ssl_mode"`
	// RootCA is the PEM bundle the server's certificate is verified with; empty
	// means the system's.
	RootCA string `json:"root_ca,omitempty"`
}

// Account is a leased login on an endpoint. In answers of the plugin the
// password stands under "password", which no mount is tuned to show in audit
// devices; here it is boxed and set by hand after decoding.
type Account struct {
	Endpoint Endpoint `json:"endpoint"`
	Username string   `json:"username"`
	Password Secret   `json:"-"`
	LeaseID  string   `json:"-"`
	TTLMilli int64    `json:"ttl_ms"`
}

// PollRequest is the body of agents/:name/poll.
type PollRequest struct {
	Version int    `json:"version"` // [Version]
	Boot    string `json:"boot"`    // random per start of the agent
	// FreeSlots is how many more operations it would take now. An agent without
	// a working audit device sends 0.
	FreeSlots int `json:"free_slots"`
	// Held lists the claims it works on, "<operation id>:<fence>".
	Held []string `json:"held"`
	// Progress holds one JSON [Progress] per claim.
	Progress []string `json:"progress"`
	// AuditDevices is the number of enabled audit devices it saw; "-1" when it
	// could not look.
	AuditDevices string `json:"audit_devices"`
	// AuditProblem is why no audit device records events, without secrets; empty
	// when some does. AuditUntuned says that the mount hides events from them.
	AuditProblem string `json:"audit_problem,omitempty"`
	AuditUntuned bool   `json:"audit_untuned,omitempty"`
}

// PollResponse is the answer. It comes at once; nothing is held open.
type PollResponse struct {
	Claims []Claim `json:"claims"`
	// Cancel lists operations to stop and finish as cancelled.
	Cancel []string `json:"cancel"`
	// Drop lists held claims that are no longer valid: stop, clean up locally.
	Drop       []string `json:"drop"`
	NextPollMS int64    `json:"next_poll_ms"`
	Chain      Chain    `json:"chain"`
	// Facts is how many facts this agent is to fetch and acknowledge now, decimal;
	// empty when there are none, or another agent does it.
	Facts string `json:"facts,omitempty"`
}

// Claim is an agent's right to work on an operation.
type Claim struct {
	OperationID string            `json:"operation_id"`
	Fence       string            `json:"fence"` // decimal, grows with each claim of the operation
	Phase       Phase             `json:"phase"`
	Kind        Kind              `json:"kind"`
	Source      Endpoint          `json:"source"`
	Target      Endpoint          `json:"target"`
	Options     map[string]string `json:"options"`
	Requester   User              `json:"requester"`
	PlanDigest  string            `json:"plan_digest,omitempty"` // running only
	// AccountTTLMilli is the ttl of the accounts; renew at a third of it.
	AccountTTLMilli int64 `json:"account_ttl_ms"`
	// MaxDurationMilli is what is left of it for this claim.
	MaxDurationMilli int64 `json:"max_duration_ms"`
	MaxBytes         int64 `json:"max_bytes"` // 0: no limit
	MaxRows          int64 `json:"max_rows"`
}

// AccountRequest is the body of accounts/….
type AccountRequest struct {
	Fence string `json:"fence"`
}

// PlanRequest is the body of agents/:name/operations/:id/plan. In a planning
// claim the text is the plan; in a running claim it is the shape as seen inside
// the copying snapshot.
type PlanRequest struct {
	Fence string `json:"fence"`
	Part  string `json:"part"`  // decimal, from 0
	Parts string `json:"parts"` // decimal
	Text  string `json:"text"`  // at most [PlanPartBytes]
}

// PlanResponse answers the last part; earlier parts are answered with an empty
// one.
type PlanResponse struct {
	State       State     `json:"state"`
	PlanDigest  string    `json:"plan_digest,omitempty"`
	ShapeDigest string    `json:"shape_digest,omitempty"`
	Decision    *Decision `json:"decision,omitempty"`
	// Claim is the running claim, when no approval is needed and the same agent
	// may go on.
	Claim *Claim `json:"claim,omitempty"`
}

// FinishRequest is the body of agents/:name/operations/:id/finish. A repeat with
// the same content is answered like the first.
type FinishRequest struct {
	Fence   string `json:"fence"`
	Outcome State  `json:"outcome"` // succeeded, failed or cancelled
	Code    Code   `json:"code,omitempty"`
	Reason  string `json:"reason,omitempty"`
	Hint    string `json:"hint,omitempty"`
	Step    Step   `json:"step,omitempty"`
	Rows    string `json:"rows,omitempty"`
	Bytes   string `json:"bytes,omitempty"`
	Tables  string `json:"tables,omitempty"`
	// Report is the JSON text of the report (tables, rows, digests).
	Report string `json:"report,omitempty"`
	// CleanupNeeded says that something of ours is left at the target and a
	// cleanup claim is wanted.
	CleanupNeeded bool `json:"cleanup_needed,omitempty"`
}

// FinishResponse answers a finish.
type FinishResponse struct {
	State State `json:"state"`
}
