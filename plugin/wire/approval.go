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
	// NotCounted is why it counts for no need; empty when it does. While the operation
	// waits this is how it is now; of one that ran, how it was when the run's last login
	// was asked for.
	NotCounted NotCounted `json:"not_counted,omitempty"`
}

// NotCounted is why an approval counts for nothing.
type NotCounted string

// The reasons, from what is wrong with every approval of that kind to what is wrong with
// this one beside the others.
const (
	NotCountedPlan      NotCounted = "other_plan" // it names another plan
	NotCountedNobody    NotCounted = "no_entity"  // its giver is gone, disabled or merged away
	NotCountedRequester NotCounted = "requester"  // its giver shares a login with the requester
	NotCountedNoMember  NotCounted = "no_member"  // its giver is in none of the groups any more
	NotCountedExpired   NotCounted = "expired"
	NotCountedTwice     NotCounted = "twice" // its giver shares a login with another approver
)

// String says it in words.
func (n NotCounted) String() string {
	switch n {
	case "":
		return "counted"
	case NotCountedPlan:
		return "it names another plan"
	case NotCountedNobody:
		return "its giver was gone, disabled or merged into another"
	case NotCountedRequester:
		return "its giver shared a login with the requester"
	case NotCountedNoMember:
		return "its giver was no member of the group any more"
	case NotCountedExpired:
		return "it had expired"
	case NotCountedTwice:
		return "its giver shared a login with another approver"
	}
	return string(n)
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
