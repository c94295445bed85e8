// Package approval decides whether what policies ask of approvers is met. It is
// pure: the same question gives the same answer, and nothing is read or written.
//
// What it guarantees:
//   - Whoever asked for an operation never counts as its approver, under no alias
//     that is or was theirs when they asked.
//   - Nobody counts twice for a need, neither as one entity nor as two that share
//     an alias.
//   - An approval counts for the plan it names, while it is younger than the
//     need's ttl, and while its giver exists, is not disabled and is a member of
//     one of the need's groups.
//   - One approval counts for every need it fits.
package approval

import (
	"slices"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// DefaultTTL is how long an approval holds where the policy does not say.
const DefaultTTL = 24 * time.Hour

// Given is an approval as it is stored.
type Given struct {
	wire.Approval
	// Aliases are the logins of the giver at that time.
	Aliases []string `json:"aliases,omitempty"`
}

// Person is an entity as identity knows it now.
type Person struct {
	Groups  []string // ids, inherited ones included
	Aliases []string // logins, in the form of [Given.Aliases]
}

// Question is everything the answer rests on.
type Question struct {
	Needs      []wire.ApprovalNeed
	PlanDigest string
	// Requester is the entity that asked, RequesterAliases its logins when it did.
	Requester        string
	RequesterAliases []string
	Given            []Given
	// People are the entities behind Requester and Given, by id. Who is missing
	// does not exist any more or is disabled.
	People map[string]Person
	Now    time.Time
}

// Status answers for each need how far it is met.
func Status(q Question) []wire.ApprovalStatus {
	all := make([]wire.ApprovalStatus, 0, len(q.Needs))
	for _, need := range q.Needs {
		s := wire.ApprovalStatus{ApprovalNeed: need}
		for _, g := range q.counted(need) {
			s.By = append(s.By, g.Name)
			if until := g.Time.Add(TTL(need)); s.Until.IsZero() || until.Before(s.Until) {
				s.Until = until
			}
		}
		s.Missing = max(0, need.Count-len(s.By))
		all = append(all, s)
	}
	return all
}

// Counts tells whether the approval of an entity counts for any need.
func Counts(q Question, entity string) bool {
	return slices.ContainsFunc(q.Needs, func(need wire.ApprovalNeed) bool {
		return slices.ContainsFunc(q.counted(need), func(g Given) bool { return g.EntityID == entity })
	})
}

// Verdicts answers for each approval, in their order, why it counts for no need; ""
// where it counts for one.
func Verdicts(q Question) []wire.NotCounted {
	all := make([]wire.NotCounted, len(q.Given))
	for n, need := range q.Needs {
		for i, why := range q.judge(need) {
			if n == 0 || (all[i] != "" && further(why, all[i])) {
				all[i] = why
			}
		}
	}
	return all
}

// further tells whether an approval refused for x got further than one refused for y.
func further(x, y wire.NotCounted) bool {
	order := []wire.NotCounted{
		wire.NotCountedPlan, wire.NotCountedNobody, wire.NotCountedRequester, wire.NotCountedNoMember, wire.NotCountedExpired, wire.NotCountedTwice, "",
	}
	return slices.Index(order, x) > slices.Index(order, y)
}

// counted returns the approvals that count for the need, the oldest first.
func (q Question) counted(need wire.ApprovalNeed) []Given {
	var counted []Given
	for i, why := range q.judge(need) {
		if why == "" {
			counted = append(counted, q.Given[i])
		}
	}
	slices.SortStableFunc(counted, byTime)
	return counted
}

func byTime(x, y Given) int { return x.Time.Compare(y.Time) }

// judge answers for each approval why it does not count for the need. Of two that stand
// for one person the older one counts.
func (q Question) judge(need wire.ApprovalNeed) []wire.NotCounted {
	now := q.Now
	for _, g := range q.Given { // a clock that went back lengthens no approval
		if g.Time.After(now) {
			now = g.Time
		}
	}
	order := make([]int, len(q.Given))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(x, y int) int { return byTime(q.Given[x], q.Given[y]) })
	all := make([]wire.NotCounted, len(q.Given))
	var counted []Given
	for _, i := range order {
		g := q.Given[i]
		person, exists := q.People[g.EntityID]
		g.Aliases = slices.Concat(g.Aliases, person.Aliases)
		switch {
		case g.PlanDigest != q.PlanDigest:
			all[i] = wire.NotCountedPlan
		case !exists:
			all[i] = wire.NotCountedNobody
		case q.IsRequester(g.EntityID, g.Aliases):
			all[i] = wire.NotCountedRequester
		case !Member(need, person.Groups):
			all[i] = wire.NotCountedNoMember
		case now.Sub(g.Time) >= TTL(need):
			all[i] = wire.NotCountedExpired
		case slices.ContainsFunc(counted, func(c Given) bool { return c.EntityID == g.EntityID || shared(c.Aliases, g.Aliases) }):
			all[i] = wire.NotCountedTwice
		default:
			counted = append(counted, g)
		}
	}
	return all
}

// IsRequester tells whether an entity with these logins is, or shares a login
// with, the one that asked.
func (q Question) IsRequester(entity string, aliases []string) bool {
	return entity == q.Requester || shared(aliases, q.RequesterAliases) || shared(aliases, q.People[q.Requester].Aliases)
}

func shared(x, y []string) bool {
	return slices.ContainsFunc(x, func(alias string) bool { return slices.Contains(y, alias) })
}

// Met tells whether nobody is needed any more.
func Met(all []wire.ApprovalStatus) bool {
	return !slices.ContainsFunc(all, func(s wire.ApprovalStatus) bool { return s.Missing > 0 })
}

// Missing returns the needs that are not met.
func Missing(all []wire.ApprovalStatus) []wire.ApprovalStatus {
	return slices.DeleteFunc(slices.Clone(all), func(s wire.ApprovalStatus) bool { return s.Missing == 0 })
}

// Member tells whether somebody of these groups may approve for the need.
func Member(need wire.ApprovalNeed, groups []string) bool { return shared(need.Groups, groups) }

// Approver tells whether somebody of these groups may approve for any of the needs.
func Approver(needs []wire.ApprovalNeed, groups []string) bool {
	return slices.ContainsFunc(needs, func(n wire.ApprovalNeed) bool { return Member(n, groups) })
}

// TTL is how long an approval counts for the need.
func TTL(need wire.ApprovalNeed) time.Duration {
	if need.TTL > 0 {
		return need.TTL
	}
	return DefaultTTL
}

// Wait is how long an operation may wait until all its needs are met: a day, or
// as long as an approval may hold where that is longer.
func Wait(needs []wire.ApprovalNeed) time.Duration {
	wait := DefaultTTL
	for _, need := range needs {
		wait = max(wait, TTL(need))
	}
	return wait
}
