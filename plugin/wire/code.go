package wire

import "sort"

// Code says in one stable word what went wrong. Each code has exactly one HTTP
// status, one retry rule and one CLI exit code ([Code.Info]); the README prints
// the same table.
type Code string

// The codes. Add a row to codeTable with each.
const (
	CodeUsage             Code = "usage"              // the command line is wrong
	CodeConfig            Code = "config"             // a configuration file is wrong
	CodeInvalid           Code = "invalid"            // a field of a request is wrong; names it
	CodeNotFound          Code = "not_found"          // no such object, or not yours
	CodeConflict          Code = "conflict"           // the object is not in a state that allows this
	CodeStaleClaim        Code = "stale_claim"        // the fencing number is not the current one
	CodeRequestIDReused   Code = "request_id_reused"  // same request_id, different content
	CodeChainBroken       Code = "chain_broken"       // events do not continue the agent's chain
	CodePlanChanged       Code = "plan_changed"       // what was planned is no longer what is there
	CodePlanTooLarge      Code = "plan_too_large"     // above 50 MiB
	CodeNoIdentity        Code = "no_identity"        // no entity behind the token, root included
	CodeDenied            Code = "denied"             // a policy, or its absence, refuses
	CodeRejected          Code = "rejected"           // an approver said no
	CodeUnclassified      Code = "unclassified"       // a connection lacks a label that policies mention
	CodeSameDatabase      Code = "same_database"      // source and target are one database
	CodeProtectedTarget   Code = "protected_target"   // the target is protected and no policy lifts it
	CodeNotYourOperation  Code = "not_your_operation" // an agent touches what another one holds
	CodeRateLimited       Code = "rate_limited"       // a limit of a policy is used up; retry_at says until when
	CodeUnavailable       Code = "unavailable"        // Vault or a database cannot be reached
	CodeLeaseLost         Code = "lease_lost"         // a credential ended while in use
	CodeLocked            Code = "locked"             // the mount is locked down
	CodeAgentLost         Code = "agent_lost"         // the agent fell silent longer than its grace
	CodeAgentRestarted    Code = "agent_restarted"    // the agent died during the operation and came back
	CodeDeadline          Code = "deadline_exceeded"  // longer than max_duration
	CodeExpired           Code = "expired"            // nobody took or approved it in time
	CodeCancelled         Code = "cancelled"          // on request
	CodeSourceUnavailable Code = "source_unavailable" // the source cannot be reached
	CodeTargetUnavailable Code = "target_unavailable" // the target cannot be reached
	CodeLoginRefused      Code = "login_refused"      // a database refused the leased login
	CodePrivilege         Code = "privilege"          // the leased login may not do what the plan needs
	CodeUnsupported       Code = "unsupported"        // the source holds something this version cannot copy
	CodeDiskFull          Code = "disk_full"          // no space at the target
	CodeLimitExceeded     Code = "limit_exceeded"     // max_rows or max_bytes reached on the real counts
	CodeCheckFailed       Code = "check_failed"       // the copy differs from the source
	CodeEngine            Code = "engine"             // the database or its tool failed
	CodeSandbox           Code = "sandbox"            // the sandbox failed
	CodeAuditUnavailable  Code = "audit_unavailable"  // no audit device takes events
	CodeCleanup           Code = "cleanup_incomplete" // done, but traces are left
	CodeReceiptInvalid    Code = "receipt_invalid"    // a receipt is not as one of the keys has signed it
	CodeInternal          Code = "internal"           // a defect of ours
)

// CodeInfo is what follows from a code.
type CodeInfo struct {
	HTTP  int  // status of the plugin's answer
	Retry bool // whether the same request may succeed later without a change
	Exit  int  // exit code of the dbops CLI
}

var codeTable = map[Code]CodeInfo{
	CodeUsage:             {400, false, 1},
	CodeConfig:            {400, false, 1},
	CodeInvalid:           {400, false, 2},
	CodeNotFound:          {404, false, 2},
	CodeConflict:          {409, false, 2},
	CodeStaleClaim:        {409, false, 2},
	CodeRequestIDReused:   {409, false, 2},
	CodeChainBroken:       {409, false, 14},
	CodePlanChanged:       {409, false, 15},
	CodePlanTooLarge:      {400, false, 2},
	CodeNoIdentity:        {403, false, 10},
	CodeDenied:            {403, false, 10},
	CodeRejected:          {403, false, 10},
	CodeUnclassified:      {403, false, 10},
	CodeSameDatabase:      {403, false, 10},
	CodeProtectedTarget:   {403, false, 10},
	CodeNotYourOperation:  {403, false, 10},
	CodeRateLimited:       {429, true, 10},
	CodeUnavailable:       {503, true, 2},
	CodeLeaseLost:         {409, false, 11},
	CodeLocked:            {423, true, 10},
	CodeAgentLost:         {409, true, 13},
	CodeAgentRestarted:    {409, true, 13},
	CodeDeadline:          {409, false, 13},
	CodeExpired:           {409, true, 13},
	CodeCancelled:         {409, false, 16},
	CodeSourceUnavailable: {503, true, 13},
	CodeTargetUnavailable: {503, true, 13},
	CodeLoginRefused:      {409, false, 13},
	CodePrivilege:         {409, false, 13},
	CodeUnsupported:       {409, false, 13},
	CodeDiskFull:          {409, false, 13},
	CodeLimitExceeded:     {403, false, 10},
	CodeCheckFailed:       {409, false, 12},
	CodeEngine:            {409, false, 13},
	CodeSandbox:           {409, true, 13},
	CodeAuditUnavailable:  {503, true, 14},
	CodeCleanup:           {409, true, 3},
	CodeReceiptInvalid:    {400, false, 17},
	CodeInternal:          {500, true, 13},
}

// Info returns the row of c; an unknown code has that of [CodeInternal].
func (c Code) Info() CodeInfo {
	if info, ok := codeTable[c]; ok {
		return info
	}
	return codeTable[CodeInternal]
}

// Valid reports whether c is in the table.
func (c Code) Valid() bool { _, ok := codeTable[c]; return ok }

// Codes lists every code, sorted.
func Codes() []Code {
	all := make([]Code, 0, len(codeTable))
	for c := range codeTable {
		all = append(all, c)
	}
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	return all
}

// ExitInterrupted is the exit code of a CLI ended by a signal.
const ExitInterrupted = 130

// hints are what a person can do about an operation that failed, where the part
// that failed has nothing better to say.
var hints = map[Code]string{
	CodePlanChanged:       "ask again: the new operation plans from what is there now",
	CodeUnavailable:       "look at the Vault server's log, then ask again",
	CodeLeaseLost:         "the credentials ended early: was a lease revoked by hand, or Vault away for longer than 15 minutes?",
	CodeLocked:            "ask again when the lockdown is over",
	CodeAgentLost:         "look at the agent's log and host, then ask again",
	CodeAgentRestarted:    "ask again",
	CodeDeadline:          "raise max_duration in the policy, or copy less",
	CodeSourceUnavailable: "check that the source runs and that Vault and the agent's host can reach it, then ask again",
	CodeTargetUnavailable: "check that the target runs and that Vault and the agent's host can reach it, then ask again",
	CodeLoginRefused:      "check the role's creation statements and the server's pg_hba.conf for the agent's host",
	CodePrivilege:         "compare the rights of the capability role with the table in the README",
	CodeDiskFull:          "free space on the target's server, then ask again",
	CodeLimitExceeded:     "raise max_rows or max_bytes in the policy, or copy less",
	CodeCheckFailed:       "the target is as it was; ask again, and report it if it happens twice",
	CodeEngine:            "look at the logs of both servers at the time of the step",
	CodeSandbox:           "look at the agent's log: Docker, the tools image or the memory limit",
	CodeAuditUnavailable:  "enable an audit device and tune the mount as dbops setup does, then ask again",
	CodeCleanup:           "the agent goes on trying; look at its log",
	CodeInternal:          "look at the logs of Vault and the agent, and report it",
}

// Hint returns what a person can do about an operation that failed with c, ""
// where only the reason can say.
func (c Code) Hint() string { return hints[c] }
