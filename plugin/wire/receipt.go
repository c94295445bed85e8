package wire

import "time"

// What a receipt is made of. The envelope is a DSSE one, its payload an in-toto
// statement, the statement's predicate a [Receipt].
const (
	ReceiptPayloadType   = "application/vnd.in-toto+json"
	ReceiptPredicateType = "https://github.com/dbops-io/vault-plugin-secrets-dbops/receipt/v1"
)

// Names of the subjects of a receipt's statement. Each has the SHA-256 of bytes
// that the plugin itself has seen.
const (
	ReceiptSubjectRequest = "request" // [ReceiptRequest.Digest]
	ReceiptSubjectPlan    = "plan"    // the plan's text
	ReceiptSubjectReport  = "report"  // the report's text
)

// Receipt is the predicate. Attested is what the plugin did, decided or saw by
// itself; ReportedByAgent is what it was told. Numbers that may grow large, and
// counters, are decimal strings: JSON's are floats to many readers. Times are UTC.
type Receipt struct {
	Attested        Attested  `json:"attested"`
	ReportedByAgent *Reported `json:"reported_by_agent,omitempty"` // nothing was reported
}

// Attested is the plugin's own part.
type Attested struct {
	Mount    ReceiptMount    `json:"mount"`
	Request  ReceiptRequest  `json:"request"`
	Decision ReceiptDecision `json:"decision"`
	// Pins are digests of the configuration the plan was decided on, by what they
	// are taken over.
	Pins           map[string]string `json:"pins,omitempty"`
	PlanDigest     string            `json:"plan_digest,omitempty"`
	ShapeDigest    string            `json:"shape_digest,omitempty"`
	ShapeConfirmed bool              `json:"shape_confirmed"` // the copying snapshot had the planned shape
	// Approvals are all that were given. ApprovalsCheckedAt is when the last login that
	// reaches data was asked for, and each was judged; zero when none ever was.
	Approvals          []ReceiptApproval `json:"approvals,omitempty"`
	ApprovalsCheckedAt time.Time         `json:"approvals_checked_at,omitzero"`
	// Claims and Accounts are in order. Where there were too many, the ones in the
	// middle are counted only.
	Claims          []ReceiptClaim   `json:"claims,omitempty"`
	ClaimsOmitted   int              `json:"claims_omitted,omitempty"`
	Accounts        []ReceiptAccount `json:"accounts,omitempty"`
	AccountsOmitted int              `json:"accounts_omitted,omitempty"`
	End             ReceiptEnd       `json:"end"`
	// Incomplete: the operation began under a version of the plugin that did not
	// keep claims and accounts.
	Incomplete bool `json:"incomplete,omitempty"`
	// Supersedes is the digest of an earlier receipt of the same operation, after
	// which something had to be cleaned up at the target.
	Supersedes string `json:"supersedes,omitempty"`
}

// ReceiptMount says who attests.
type ReceiptMount struct {
	ID            string `json:"id"` // the one in the names of its logins
	PluginVersion string `json:"plugin_version"`
}

// ReceiptRequest is what was asked for, by whom and when.
type ReceiptRequest struct {
	OperationID string            `json:"operation_id"`
	Kind        Kind              `json:"kind"`
	Source      string            `json:"source"` // connection name
	Target      string            `json:"target"`
	Options     map[string]string `json:"options,omitempty"`
	Requester   User              `json:"requester"`
	Reason      string            `json:"reason,omitempty"`
	RequestID   string            `json:"request_id,omitempty"`
	Digest      string            `json:"digest"`
	At          time.Time         `json:"at"`
}

// ReceiptDecision is the last decision of policy about the operation.
type ReceiptDecision struct {
	Allowed     bool              `json:"allowed"`
	Code        Code              `json:"code,omitempty"`
	Policies    []ReceiptPolicy   `json:"policies,omitempty"` // all that matched
	Policy      string            `json:"policy,omitempty"`   // the one that decided
	Rule        string            `json:"rule,omitempty"`
	Reason      string            `json:"reason,omitempty"`
	Obligations map[string]string `json:"obligations,omitempty"`
}

// ReceiptPolicy is one policy as it was when it decided.
type ReceiptPolicy struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"` // empty: decided under a version of the plugin that did not keep it
}

// ReceiptApproval is one person's approval.
type ReceiptApproval struct {
	EntityID   string    `json:"entity_id"`
	Name       string    `json:"name"`
	PlanDigest string    `json:"plan_digest"` // what was reviewed
	At         time.Time `json:"at"`
	// NotCounted is why it did not count for the run, empty when it did.
	NotCounted NotCounted `json:"not_counted,omitempty"`
}

// ReceiptClaim is one claim, from its beginning to its end.
type ReceiptClaim struct {
	Agent string    `json:"agent"`
	Fence string    `json:"fence"`
	Phase Phase     `json:"phase"`
	From  time.Time `json:"from"`
	To    time.Time `json:"to"`
	// Chain is where the agent's chain of events stood at the claim's end.
	Chain *Chain `json:"chain,omitempty"`
}

// ReceiptAccount is one login that was made for the operation.
type ReceiptAccount struct {
	Side       Side    `json:"side"`
	Connection string  `json:"connection"`
	Purpose    Purpose `json:"purpose"`
	Username   string  `json:"username"`
	Fence      string  `json:"fence,omitempty"` // of the claim it was made for
	// Unconfirmed: the server never answered that it had made it; whatever there
	// was has been ended.
	Unconfirmed bool      `json:"unconfirmed,omitempty"`
	IssuedAt    time.Time `json:"issued_at"`
	EndedAt     time.Time `json:"ended_at"` // the server had ended it by then
}

// Who ended an operation.
const (
	EndedByAgent  = "agent"  // its claim was finished
	EndedByPlugin = "plugin" // a refusal, a deadline, a lost agent, a cancellation in time
)

// ReceiptEnd is how it ended. Code and reason stand here when the plugin ended
// the operation, else the agent gave them.
type ReceiptEnd struct {
	State     State  `json:"state"`
	By        string `json:"by"`
	Code      Code   `json:"code,omitempty"`
	Reason    string `json:"reason,omitempty"`
	Step      Step   `json:"step,omitempty"`
	Cancelled bool   `json:"cancel_requested"`
	// Cancellation is who asked for that; an end in another state came before it.
	Cancellation *Cancellation `json:"cancellation,omitempty"`
	Switched     bool          `json:"switched"` // events told that the copy was put in place
	Cleanup      string        `json:"cleanup,omitempty"`
	// Acknowledged is who said that the target was cleaned by hand, after agents had
	// given up; whether it was, nobody attests.
	Acknowledged *ReceiptAcknowledgement `json:"cleanup_acknowledged,omitempty"`
	StartedAt    time.Time               `json:"started_at,omitzero"` // of the claim that led to the end
	At           time.Time               `json:"at,omitzero"`
}

// ReceiptAcknowledgement is a person's word about a target.
type ReceiptAcknowledgement struct {
	User
	At     time.Time `json:"at"`
	Reason string    `json:"reason"`
}

// Reported is what the agent told with its finish and in its report. The plugin
// has not seen any of it happen.
type Reported struct {
	Outcome State  `json:"outcome,omitempty"`
	Code    Code   `json:"code,omitempty"`
	Reason  string `json:"reason,omitempty"`
	Step    Step   `json:"step,omitempty"`
	Rows    string `json:"rows,omitempty"`
	Bytes   string `json:"bytes,omitempty"`
	Tables  string `json:"tables,omitempty"`
	// ReportDigest is taken by the plugin over the text it was sent.
	ReportDigest string `json:"report_digest,omitempty"`
	ReportHead
}

// ReportHead is the part of a report that the plugin reads, for every engine.
type ReportHead struct {
	// TablesRoot is the Merkle root over the verified tables (RFC 6962, SHA-256),
	// "sha256:" and 64 hex digits.
	TablesRoot    string        `json:"tables_root,omitempty"`
	Snapshot      string        `json:"snapshot,omitempty"` // the source's snapshot id
	MaskedColumns []string      `json:"masked_columns,omitempty"`
	Sandbox       *SandboxFacts `json:"sandbox,omitempty"`
	Audit         *AuditCheck   `json:"audit,omitempty"`
}

// SandboxFacts are what the container runtime told of the running sandbox.
type SandboxFacts struct {
	WorkerImageID string `json:"worker_image_id"`
	BaseImageID   string `json:"base_image_id"`
	Runtime       string `json:"runtime"` // e.g. "docker 20.10.24, api 1.41"
	// Container is what the runtime answered when asked after the start; nil when
	// it did not answer.
	Container *ContainerFacts `json:"container,omitempty"`
}

// ContainerFacts are the walls of a sandbox.
type ContainerFacts struct {
	Network             string `json:"network"` // "none"
	User                string `json:"user"`
	ReadOnlyRoot        bool   `json:"read_only_root"`
	CapabilitiesDropped string `json:"capabilities_dropped"` // comma-separated
	CapabilitiesAdded   string `json:"capabilities_added,omitempty"`
	MemoryBytes         string `json:"memory_bytes"`
}

// AuditCheck is the last look at Vault's audit devices before the end.
type AuditCheck struct {
	Devices   int       `json:"devices"` // that record events in clear
	CheckedAt time.Time `json:"checked_at"`
}
