package wire

import (
	"fmt"
	"strings"
	"time"
)

// Approval is one person's consent to one plan.
type Approval struct {
	User
	Time time.Time `json:"time"`
	// PlanDigest is that of the plan the person named as reviewed.
	PlanDigest string `json:"plan_digest"`
	Comment    string `json:"comment,omitempty"`
}

// Rejection is one person's refusal. It ends the operation.
type Rejection struct {
	User
	Time       time.Time `json:"time"`
	PlanDigest string    `json:"plan_digest"`
	Reason     string    `json:"reason"`
}

// ApprovalStatus is one need and how far it is met by what counts now.
type ApprovalStatus struct {
	ApprovalNeed
	// By are the names of those whose approval counts.
	By []string `json:"by,omitempty"`
	// Missing is how many more people have to approve.
	Missing int `json:"missing"`
	// Until is when the first of the counted approvals stops to count.
	Until time.Time `json:"until,omitzero"`
}

// String says who is still needed, e.g. "needs 1 more of group g (policy p)", or
// by whom the need is met.
func (s ApprovalStatus) String() string {
	groups := "group " + strings.Join(s.Groups, " or ")
	if s.Missing > 0 {
		return fmt.Sprintf("needs %d more of %s (policy %s)", s.Missing, groups, s.Policy)
	}
	return fmt.Sprintf("approved by %s of %s (policy %s)", strings.Join(s.By, ", "), groups, s.Policy)
}
