package policy

import (
	"fmt"
	"slices"
	"sort"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Window is the length of the sliding window of the hourly limits.
const Window = time.Hour

// Connection is one name of a database, as policies see it.
type Connection struct {
	Name      string
	Engine    wire.EngineType
	Labels    map[string]string
	Protected bool
	TLS       bool // the connection is encrypted
}

// History is what the stored operations say about the recent past. Times are
// those of admission, in any order; older ones than the window are ignored.
type History struct {
	Entity []time.Time // of operations of the same entity
	Source []time.Time // of operations from the same source
	Target []time.Time // of operations into the same target
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

	Isolated bool // it would run in a sandbox without a network
	Audited  bool // it would run only where audit devices work

	// History is nil when the operation was admitted before; limits on rates and
	// concurrency are then not applied again.
	History *History
	// Estimates is nil before there is a plan.
	Estimates *wire.Estimates
}

// Evaluate decides. The answer names every policy that matched and, on a refusal,
// the policy and the rule. A refusal that waiting cannot lift wins over one that
// it can; among those the latest RetryAt is told.
func Evaluate(policies []Policy, r Request, now time.Time) wire.Decision {
	if r.Entity == "" {
		return wire.Decision{
			Code: wire.CodeNoIdentity, Rule: RuleRequireAuthentication,
			Reason: "an operation needs an identity: the token has no entity",
		}
	}
	policies = slices.Clone(policies)
	sort.SliceStable(policies, func(i, j int) bool { return policies[i].Name < policies[j].Name })

	if d, ok := classified(policies, r); !ok {
		return d
	}

	var matching []Policy
	asAsked := false
	var names []string
	for _, p := range policies {
		matched, first := p.matches(r)
		if !matched {
			continue
		}
		matching = append(matching, p)
		names = append(names, p.Name)
		asAsked = asAsked || first
	}
	if !asAsked {
		return unspoken(r, names)
	}

	allowed := wire.Decision{Allowed: true, Policies: names, Reason: "allowed by every matching policy"}
	for _, p := range matching {
		if d, ok := p.permits(r); !ok {
			d.Policies, d.Policy = names, p.Name
			return d
		}
		allowed.MaxBytes = stricter(allowed.MaxBytes, p.MaxBytes)
		allowed.MaxRows = stricter(allowed.MaxRows, p.MaxRows)
		allowed.MaxDuration = stricter(allowed.MaxDuration, p.MaxDuration)
		allowed.RequireTLS = allowed.RequireTLS || p.RequireTLS
		if a := p.Approvals; a != nil && a.Count > 0 {
			allowed.Approvals = append(allowed.Approvals, wire.ApprovalNeed{Policy: p.Name, Count: a.Count, Groups: a.Groups, TTL: a.TTL})
		}
	}
	if r.History == nil {
		return allowed
	}

	var limited *wire.Decision
	for _, p := range matching {
		d, ok := p.withinLimits(*r.History, now)
		if ok {
			continue
		}
		if limited == nil || d.RetryAt.After(limited.RetryAt) {
			d.Policies, d.Policy = names, p.Name
			limited = &d
		}
	}
	if limited != nil {
		return *limited
	}
	return allowed
}

func unspoken(r Request, names []string) wire.Decision {
	return wire.Decision{
		Code: wire.CodeDenied, Rule: RuleDefaultDeny, Policies: names,
		Reason: fmt.Sprintf("no policy allows this entity to %s %s", r.Kind, describe(r)),
	}
}

// Foreclosed tells, from the names in the request alone, whether [Evaluate] can
// only come to the default denial, which it then returns: no policy speaks of
// this entity, this kind and these names, whatever the labels. Asked first, it
// keeps those nobody gave anything from learning which connections exist.
func Foreclosed(policies []Policy, r Request) (wire.Decision, bool) {
	for _, p := range policies {
		p.SourceLabels, p.TargetLabels = nil, nil
		if _, asAsked := p.matches(r); asAsked {
			return wire.Decision{}, false
		}
	}
	return unspoken(r, nil), true
}

// stricter returns the smaller of two limits, of which 0 means none.
func stricter[T int64 | time.Duration](a, b T) T {
	if a == 0 || (b != 0 && b < a) {
		return b
	}
	return a
}

func describe(r Request) string {
	switch {
	case len(r.Source) > 0 && len(r.Target) > 0:
		return r.Source[0].Name + " to " + r.Target[0].Name
	case len(r.Source) > 0:
		return r.Source[0].Name
	case len(r.Target) > 0:
		return "to " + r.Target[0].Name
	default:
		return "nothing"
	}
}

func classified(policies []Policy, r Request) (wire.Decision, bool) {
	for _, key := range LabelKeys(policies) {
		for _, side := range [][]Connection{r.Source, r.Target} {
			if len(side) == 0 {
				continue
			}
			if _, ok := side[0].Labels[key]; !ok {
				return wire.Decision{
					Code: wire.CodeUnclassified, Rule: RuleLabels,
					Reason: fmt.Sprintf("connection %s has no label %q, which policies mention", side[0].Name, key),
				}, false
			}
		}
	}
	return wire.Decision{}, true
}

// permits applies the rules that waiting does not change.
func (p Policy) permits(r Request) (wire.Decision, bool) {
	refuse := func(code wire.Code, rule, reason string) (wire.Decision, bool) {
		return wire.Decision{Code: code, Rule: rule, Reason: reason}, false
	}
	if !slices.Contains(p.AllowedOperations, Any) && !slices.Contains(p.AllowedOperations, string(r.Kind)) {
		return refuse(wire.CodeDenied, RuleAllowedOperations, fmt.Sprintf("operation %s is not allowed", r.Kind))
	}
	if !p.AllowCrossEngineOperations && len(r.Source) > 0 && len(r.Target) > 0 && r.Source[0].Engine != r.Target[0].Engine {
		return refuse(wire.CodeDenied, RuleAllowCrossEngineOperations,
			fmt.Sprintf("source is %s and target is %s", r.Source[0].Engine, r.Target[0].Engine))
	}
	if p.EnableNetworkIsolation && !r.Isolated {
		return refuse(wire.CodeDenied, RuleEnableNetworkIsolation, "the operation would not run isolated from networks")
	}
	if p.AuditOperations && !r.Audited {
		return refuse(wire.CodeDenied, RuleAuditOperations, "the operation would run where no audit device works")
	}
	for _, c := range r.Target {
		if c.Protected && !p.AllowProtectedTarget {
			return refuse(wire.CodeProtectedTarget, RuleAllowProtectedTarget, fmt.Sprintf("target %s is protected", c.Name))
		}
	}
	if p.RequireTLS {
		for _, side := range [][]Connection{r.Source, r.Target} {
			if len(side) > 0 && !side[0].TLS {
				return refuse(wire.CodeDenied, RuleRequireTLS, fmt.Sprintf("connection %s is not encrypted", side[0].Name))
			}
		}
	}
	if e := r.Estimates; e != nil {
		if p.MaxBytes > 0 && e.Bytes > p.MaxBytes {
			return refuse(wire.CodeLimitExceeded, RuleMaxBytes,
				fmt.Sprintf("the source has about %d bytes, more than %d", e.Bytes, p.MaxBytes))
		}
		if p.MaxRows > 0 && e.Rows > p.MaxRows {
			return refuse(wire.CodeLimitExceeded, RuleMaxRows,
				fmt.Sprintf("the source has about %d rows, more than %d", e.Rows, p.MaxRows))
		}
	}
	return wire.Decision{}, true
}

// withinLimits applies the limits that time lifts.
func (p Policy) withinLimits(h History, now time.Time) (wire.Decision, bool) {
	var worst *wire.Decision
	note := func(d wire.Decision) {
		if worst == nil || d.RetryAt.After(worst.RetryAt) {
			worst = &d
		}
	}
	for _, limit := range []struct {
		rule  string
		max   int
		times []time.Time
		whose string
	}{
		{RuleMaxOperationsPerHour, p.MaxOperationsPerHour, h.Entity, "of this entity"},
		{RuleMaxOperationsPerHourSource, p.MaxOperationsPerHourSource, h.Source, "from this source"},
		{RuleMaxOperationsPerHourTarget, p.MaxOperationsPerHourTarget, h.Target, "into this target"},
		{RuleMaxOperationsPerHourMount, p.MaxOperationsPerHourMount, h.Mount, "of this mount"},
	} {
		if retryAt, ok := withinRate(limit.times, limit.max, now); !ok {
			note(wire.Decision{
				Code: wire.CodeRateLimited, Rule: limit.rule, RetryAt: retryAt,
				Reason: fmt.Sprintf("%d operations %s in the last hour are the limit", limit.max, limit.whose),
			})
		}
	}
	if p.MaxConcurrent > 0 && h.Unfinished >= p.MaxConcurrent {
		note(wire.Decision{
			Code: wire.CodeRateLimited, Rule: RuleMaxConcurrent,
			Reason: fmt.Sprintf("%d unfinished operations of this entity are the limit", p.MaxConcurrent),
		})
	}
	if worst != nil {
		return *worst, false
	}
	return wire.Decision{}, true
}

// withinRate tells whether one more event may follow now, or from when on. When
// the clock went back, the latest known time stands for now: otherwise setting it
// back would open the window again.
func withinRate(times []time.Time, limit int, now time.Time) (retryAt time.Time, ok bool) {
	if limit <= 0 {
		return time.Time{}, true
	}
	for _, t := range times {
		if t.After(now) {
			now = t
		}
	}
	var recent []time.Time
	for _, t := range times {
		if now.Sub(t) < Window {
			recent = append(recent, t)
		}
	}
	if len(recent) < limit {
		return time.Time{}, true
	}
	sort.Slice(recent, func(i, j int) bool { return recent[i].Before(recent[j]) })
	return recent[len(recent)-limit].Add(Window), false
}
