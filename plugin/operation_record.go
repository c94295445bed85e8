package plugin

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/approval"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Fixed times of an operation's life.
const (
	// defaultMaxDuration holds where no policy says less.
	defaultMaxDuration = 4 * time.Hour
	// maxWait is how long an operation may wait for an agent.
	maxWait = time.Hour
	// defaultGrace is how long an agent may be silent about a claim.
	defaultGrace = 60 * time.Second
	// deadlineSlack lets an agent end an overdue operation by itself, which
	// leaves less behind than being ended.
	deadlineSlack = 30 * time.Second

	maxPlanningAttempts  = 3
	maxCleanupAttempts   = 5
	maxAccountsPerClaim  = 3 // per side
	operationAccountTTL  = 15 * time.Minute
	inspectAccountTTL    = 5 * time.Minute
	operationConnections = 20 // CONNECTION LIMIT of an operation's login
)

// cleanupState says whether an ended operation left something at the target.
type cleanupState string

const (
	cleanupNone    cleanupState = ""
	cleanupPending cleanupState = "pending" // wanted, perhaps claimed
	cleanupDone    cleanupState = "done"
	cleanupFailed  cleanupState = "failed" // given up; a person must look
	// cleanupAcknowledged: given up, and a person says to have cleaned by hand.
	cleanupAcknowledged cleanupState = "acknowledged"
)

// operationRecord is what is stored of an operation. Records in memory are never
// changed in place: a change makes a copy, stores it and puts it in place of the
// old one ([backend.updateOperation]).
type operationRecord struct {
	wire.Operation
	operationHistory

	// ContentDigest is the digest of what was asked for; a repeated request_id
	// must have the same.
	ContentDigest string `json:"content_digest"`
	// RequestKey is what the request_id is known by where the one that is kept is not
	// the one that was given; see [keyOfRequest].
	RequestKey string `json:"request_key,omitempty"`

	// AdmittedAt is the time at which it counts in the rate windows: that of the
	// latest admission before it, where Vault's clock had gone back.
	AdmittedAt time.Time `json:"admitted_at,omitzero"`
	// Databases are those that source and target led to when it was asked for, as
	// far as their servers said. Rate windows count by them too.
	Databases map[wire.Side]wire.ServerIdentity `json:"databases,omitempty"`

	Claim *claimRecord `json:"claim,omitempty"`
	// LastClaim is the claim that ended last. Its agent may still say how it went.
	LastClaim *claimRecord `json:"last_claim,omitempty"`
	FenceUsed int64        `json:"fence_used"` // the highest number given out
	// Agents had a claim at some time: they may send events about it.
	Agents           []string `json:"agents,omitempty"`
	PlanningAttempts int      `json:"planning_attempts,omitempty"`

	// StartedAt is when the claim began that led where the operation is now;
	// max_duration counts from it.
	StartedAt time.Time `json:"started_at,omitzero"`
	Pins      *pins     `json:"pins,omitempty"`
	// RequesterAliases are the logins of the requester's entity when it asked, in
	// the form of [caller].Aliases.
	RequesterAliases []string `json:"requester_aliases,omitempty"`
	// Given are the approvals of the plan, one for each entity; wire.Operation
	// shows them. Those that do not count any more stay.
	Given []approval.Given `json:"given_approvals,omitempty"`
	// ApprovalsAt is when a login that reaches data was last asked for, and it was noted
	// which of them counted.
	ApprovalsAt time.Time `json:"approvals_at,omitzero"`
	// PlannedAt is when the plan was accepted.
	PlannedAt time.Time `json:"planned_at,omitzero"`
	// PlanFence and PlanLastPart recognise a repeated last part of the plan.
	PlanFence    string `json:"plan_fence,omitempty"`
	PlanLastPart string `json:"plan_last_part,omitempty"`
	// ShapeConfirmed: the shape seen in the copying snapshot was the planned one.
	ShapeConfirmed bool `json:"shape_confirmed,omitempty"`
	// Switched: the agent's events say that the copy was put in place.
	Switched bool `json:"switched,omitempty"`

	// EndAccounts: accounts of it may exist and must be ended.
	EndAccounts      bool         `json:"end_accounts,omitempty"`
	Cleanup          cleanupState `json:"cleanup,omitempty"`
	CleanupSince     time.Time    `json:"cleanup_since,omitzero"`
	CleanupAttempts  int          `json:"cleanup_attempts,omitempty"`
	CleanupNotBefore time.Time    `json:"cleanup_not_before,omitzero"`
	// Acknowledged is who said that the target was cleaned by hand.
	Acknowledged *acknowledgement `json:"cleanup_acknowledged,omitempty"`

	// Pruned: its retention is over and it is being removed. For whoever reads it is
	// gone; see retention.go.
	Pruned bool `json:"pruned,omitempty"`
}

// claimRecord is one claim of an agent.
type claimRecord struct {
	Agent     string     `json:"agent"`
	Fence     string     `json:"fence"`
	Phase     wire.Phase `json:"phase"`
	ClaimedAt time.Time  `json:"claimed_at"`
	// Issued counts the accounts given out on each side.
	Issued map[wire.Side]int `json:"issued,omitempty"`
	// Finish is the digest of the finish request that ended the claim.
	Finish string `json:"finish,omitempty"`
}

// pins are the facts a plan was decided on. None of them may change before
// accounts that reach data are issued.
type pins struct {
	SourceConfig string `json:"source_config"`
	TargetConfig string `json:"target_config"`
	SourceFacts  string `json:"source_facts"`
	TargetFacts  string `json:"target_facts"`
	Policies     string `json:"policies"` // digest over names and versions of all that match
	// SourceLogin and TargetLogin are what the logins that reach data are granted.
	SourceLogin pinnedLogin `json:"source_login,omitzero"`
	TargetLogin pinnedLogin `json:"target_login,omitzero"`
	// SourceServer and TargetServer are the servers that the plan was made on.
	SourceServer string `json:"source_server,omitempty"`
	TargetServer string `json:"target_server,omitempty"`
	// PolicyVersions are for the receipt; the digest is what is compared.
	PolicyVersions map[string]string `json:"policy_versions,omitempty"`
}

// clone returns a deep copy.
func (r *operationRecord) clone() (*operationRecord, error) {
	content, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode operation %s: %w", r.ID, err)
	}
	next := new(operationRecord)
	if err := json.Unmarshal(content, next); err != nil {
		return nil, fmt.Errorf("decode operation %s: %w", r.ID, err)
	}
	return next, nil
}

// requestKey is what the operation's request_id is known by, "" when it has none.
func (r *operationRecord) requestKey() string {
	if r.RequestKey != "" {
		return r.RequestKey
	}
	return keyOfRequest(r.RequestID)
}

// become moves the operation to next, as the table in wire permits.
func (r *operationRecord) become(next wire.State, now time.Time) error {
	if !r.State.CanBecome(next) {
		return &wire.Error{
			Code:   wire.CodeConflict,
			Reason: fmt.Sprintf("operation %s is %s and cannot become %s", r.ID, r.State, next),
		}
	}
	r.State = next
	r.UpdatedAt = now
	if next.Final() {
		r.end(now)
	}
	return nil
}

// startClaim gives the operation to agent under a new fencing number.
func (r *operationRecord) startClaim(agent string, phase wire.Phase, now time.Time) {
	r.FenceUsed++
	r.Claim = &claimRecord{
		Agent: agent, Fence: strconv.FormatInt(r.FenceUsed, 10), Phase: phase, ClaimedAt: now,
		Issued: map[wire.Side]int{},
	}
	r.Agent, r.Fence = agent, r.Claim.Fence
	if !slices.Contains(r.Agents, agent) {
		r.Agents = append(r.Agents, agent)
	}
	r.UpdatedAt = now
}

// endClaim takes the operation away from its agent.
func (r *operationRecord) endClaim(now time.Time) {
	if r.Claim == nil {
		return
	}
	for _, issued := range r.Claim.Issued {
		r.EndAccounts = r.EndAccounts || issued > 0
	}
	r.pastClaim(r.Claim, now)
	r.LastClaim, r.Claim = r.Claim, nil
	r.UpdatedAt = now
}

// cleanupLost takes a cleanup claim from an agent that did not finish it. It is made
// again, but not without end: each one comes with a login on the target.
func (r *operationRecord) cleanupLost(now time.Time) {
	r.endClaim(now)
	r.CleanupSince = now
	if r.CleanupAttempts >= maxCleanupAttempts {
		r.Cleanup = cleanupFailed
	}
}

// wantCleanup asks for a cleanup claim.
func (r *operationRecord) wantCleanup(now time.Time) {
	if r.Cleanup == cleanupNone || r.Cleanup == cleanupDone || r.Cleanup == cleanupAcknowledged {
		r.Cleanup, r.CleanupSince, r.Acknowledged = cleanupPending, now, nil
		r.ReceiptDue = r.ReceiptDue || r.ReceiptDigest != "" // what was attested is not all any more
	}
}

// fail ends the operation from the plugin's side: its agent is lost, late, or
// was refused. When the agent's events already told that the verified copy is in
// place, the operation has succeeded; what may be left is cleaned up either way.
func (r *operationRecord) fail(result wire.Result, now time.Time) error {
	return r.endByPlugin(wire.StateFailed, result, now)
}

// endByPlugin is fail for an end in another state.
func (r *operationRecord) endByPlugin(next wire.State, result wire.Result, now time.Time) error {
	var mayHaveLeft bool
	if c := r.Claim; c != nil && c.Phase == wire.PhaseRunning {
		mayHaveLeft = r.ShapeConfirmed // nothing is staged before
	}
	if r.Switched {
		next = wire.StateSucceeded
		result = wire.Result{Reason: "the copy is verified and in place; then: " + result.Reason, Step: result.Step}
		if r.State == wire.StateRunning {
			if err := r.become(wire.StateVerifying, now); err != nil {
				return err
			}
		}
	}
	if err := r.become(next, now); err != nil {
		return err
	}
	r.Result = &result
	r.endClaim(now)
	if mayHaveLeft {
		r.wantCleanup(now)
	}
	return nil
}

// maxDuration is how long planning and running may take together.
func (r *operationRecord) maxDuration() time.Duration {
	if d := r.Decision.MaxDuration; d > 0 {
		return min(d, longestDuration) // earlier versions took more
	}
	return defaultMaxDuration
}

// left is how much of max_duration is left, at least 0.
func (r *operationRecord) left(now time.Time) time.Duration {
	if r.Claim != nil && r.Claim.Phase == wire.PhaseCleanup {
		return max(0, r.Claim.ClaimedAt.Add(defaultMaxDuration).Sub(now))
	}
	return max(0, r.StartedAt.Add(r.maxDuration()).Sub(now))
}

// busy tells whether anything is still to be done about the operation.
func (r *operationRecord) busy() bool {
	return !r.State.Final() || r.Claim != nil || r.EndAccounts || r.Cleanup == cleanupPending || r.ReceiptDue
}

// heldBy returns the claim when agent holds it under fence. The errors are the
// answers to an agent that does not.
func (r *operationRecord) heldBy(agent, fence string) (*claimRecord, error) {
	if r.Claim != nil && r.Claim.Agent == agent {
		if r.Claim.Fence == fence {
			return r.Claim, nil
		}
		return nil, staleClaim(r.ID, fence)
	}
	if slices.Contains(r.Agents, agent) {
		return nil, staleClaim(r.ID, fence)
	}
	return nil, notYourOperation(r.ID, agent)
}

func staleClaim(id, fence string) *wire.Error {
	return &wire.Error{
		Code:   wire.CodeStaleClaim,
		Reason: fmt.Sprintf("claim %q of operation %s is not the current one", fence, id),
	}
}

func notYourOperation(id, agent string) *wire.Error {
	return &wire.Error{
		Code:   wire.CodeNotYourOperation,
		Reason: fmt.Sprintf("agent %s has no claim on operation %s", agent, id),
	}
}
