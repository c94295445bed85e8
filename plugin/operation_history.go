package plugin

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/policy"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// How much of its past a record keeps. A normal operation has two claims and four
// accounts; one whose agents keep dying has more, and must not outgrow its entry.
const (
	maxPastClaims   = 32
	maxPastAccounts = 64
	maxPastPolicies = 256
	maxPastName     = 256 // bytes of a login's or policy's name
)

// operationHistory is what a record keeps of the past for the operation's receipt.
// Records of earlier versions have none of it.
type operationHistory struct {
	// Kept: the history is there from the beginning.
	Kept bool `json:"history,omitempty"`
	// PolicyVersions are those the request was decided on, by name. The plan's
	// stand in its pins.
	PolicyVersions  map[string]string   `json:"policy_versions,omitempty"`
	PastClaims      []wire.ReceiptClaim `json:"past_claims,omitempty"`
	ClaimsOmitted   int                 `json:"past_claims_omitted,omitempty"`
	PastAccounts    []pastAccount       `json:"past_accounts,omitempty"`
	AccountsOmitted int                 `json:"past_accounts_omitted,omitempty"`
	EndedAt         time.Time           `json:"ended_at,omitzero"`
	EndedBy         string              `json:"ended_by,omitempty"`

	// ReceiptDue: the operation has ended and its receipt is not made yet.
	ReceiptDue bool `json:"receipt_due,omitempty"`
	// Receipts counts those made; ReceiptDigest is the last one's.
	Receipts      int    `json:"receipts,omitempty"`
	ReceiptDigest string `json:"receipt_digest,omitempty"`
}

// pastAccount is a login that is gone.
type pastAccount struct {
	RecordID string       `json:"record_id"`
	Side     wire.Side    `json:"side"`
	Purpose  wire.Purpose `json:"purpose"`
	Username string       `json:"username"`
	Fence    string       `json:"fence,omitempty"`
	// Unconfirmed: the server never answered that it had made it.
	Unconfirmed bool      `json:"unconfirmed,omitempty"`
	IssuedAt    time.Time `json:"issued_at"`
	EndedAt     time.Time `json:"ended_at"`
}

// keep appends to a list of at most limit entries. What does not fit is taken
// from the middle and counted: how it began and how it ended say most.
func keep[T any](list []T, omitted *int, limit int, added T) []T {
	if len(list) >= limit {
		list = slices.Delete(list, limit/2, limit/2+1)
		*omitted++
	}
	return append(list, added)
}

// end notes that the operation has ended, by the plugin unless somebody says
// otherwise afterwards.
func (h *operationHistory) end(now time.Time) {
	h.EndedAt, h.EndedBy, h.ReceiptDue = now, wire.EndedByPlugin, true
}

// pastClaim notes a claim that ends now.
func (h *operationHistory) pastClaim(c *claimRecord, now time.Time) {
	h.PastClaims = keep(h.PastClaims, &h.ClaimsOmitted, maxPastClaims, wire.ReceiptClaim{
		Agent: c.Agent, Fence: c.Fence, Phase: c.Phase, From: c.ClaimedAt.UTC(), To: now.UTC(),
	})
}

// pastAccount notes a login that is gone. Noting one twice changes nothing.
func (h *operationHistory) pastAccount(record *accountRecord, now time.Time) (changed bool) {
	if slices.ContainsFunc(h.PastAccounts, func(a pastAccount) bool { return a.RecordID == record.ID }) {
		return false
	}
	h.PastAccounts = keep(h.PastAccounts, &h.AccountsOmitted, maxPastAccounts, pastAccount{
		RecordID: record.ID, Side: record.Side, Purpose: record.Purpose, Username: shortenTo(record.Username, maxPastName), Fence: record.Fence,
		Unconfirmed: record.Unconfirmed, IssuedAt: record.CreatedAt.UTC(), EndedAt: now.UTC(),
	})
	return true
}

// policyVersions are those of the named policies.
func policyVersions(policies []policy.Policy, names []string) map[string]string {
	versions := map[string]string{}
	for _, p := range policies {
		if len(versions) < maxPastPolicies && len(p.Name) <= maxPastName && slices.Contains(names, p.Name) {
			versions[p.Name] = strconv.FormatInt(p.Version, 10)
		}
	}
	return versions
}

// noteAccountEnded keeps a login that is gone in the history of its operation.
// It comes before the account's record is removed, so that none is missing.
func (b *backend) noteAccountEnded(ctx context.Context, s logical.Storage, record *accountRecord) error {
	if record.OperationID == "" {
		return nil
	}
	if err := b.loadOperations(ctx, s); err != nil {
		return err
	}
	_, err := b.updateOperation(ctx, s, record.OperationID, func(r *operationRecord) error {
		if !r.pastAccount(record, b.now()) {
			return errUnchanged
		}
		return nil
	})
	if errors.Is(err, errUnchanged) {
		return nil
	}
	return err
}

// noteChains adds to claims that have just ended where their agents' chains of
// events stand.
func (b *backend) noteChains(ctx context.Context, s logical.Storage, before, after *operationRecord) error {
	if before.Claim == nil || (after.Claim != nil && after.Claim.Fence == before.Claim.Fence) {
		return nil
	}
	for i := range after.PastClaims {
		claim := &after.PastClaims[i]
		if claim.Fence != before.Claim.Fence {
			continue
		}
		chain, err := b.chain(ctx, s, claim.Agent)
		if err != nil {
			return err
		}
		claim.Chain = &chain
	}
	return nil
}
