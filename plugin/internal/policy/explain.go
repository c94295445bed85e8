package policy

import (
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Outcome is what a rule, or a policy as a whole, says to a request.
type Outcome string

// The outcomes.
const (
	OutcomePass       Outcome = "pass"       // nothing against it
	OutcomeRefuse     Outcome = "refuse"     // it refuses
	OutcomeObligation Outcome = "obligation" // it asks something of the operation
	OutcomeOff        Outcome = "off"        // the rule is not set
	OutcomeNoMatch    Outcome = "no_match"   // the policy does not speak about the request
)

// RuleReport is what one rule made of a request.
type RuleReport struct {
	Rule    string    `json:"rule"`
	Value   any       `json:"value"`         // as the policy has it; durations in seconds
	Saw     string    `json:"saw,omitempty"` // what it was held against
	Outcome Outcome   `json:"outcome"`
	Code    wire.Code `json:"code,omitempty"` // of a refusal
	Reason  string    `json:"reason,omitempty"`
	RetryAt time.Time `json:"retry_at,omitzero"`
}

// Report is what one policy made of a request, all of its rules applied even
// where one has refused.
type Report struct {
	Policy  string  `json:"policy"`
	Outcome Outcome `json:"outcome"` // pass, refuse or no_match
	// Why tells which part of who and what does not match, or that the policy
	// matches by another name of the same database only.
	Why string `json:"why,omitempty"`
	// Decides: the decision of all policies together is this one's.
	Decides bool         `json:"decides,omitempty"`
	Rules   []RuleReport `json:"rules"`
}

// Explain tells rule by rule what each policy makes of the request, beside the
// decision of all together. Rules are applied also by policies that do not match,
// to show what they would say.
func (s *Set) Explain(r Request, now time.Time) (wire.Decision, []Report) {
	decision := s.Evaluate(r, now)
	var f facts
	f.look(&r, now)
	match := s.matcher(&r)
	reports := make([]Report, len(s.policies))
	for i := range s.policies {
		p := &s.policies[i]
		report := Report{Policy: p.Name, Outcome: OutcomePass, Rules: p.explain(&f)}
		for _, rule := range report.Rules {
			if rule.Outcome == OutcomeRefuse {
				report.Outcome = OutcomeRefuse
			}
		}
		matches, why := match(i)
		report.Why = why
		if !matches {
			report.Outcome = OutcomeNoMatch
		}
		report.Decides = matches && decision.Policy == p.Name && decision.Policy != ""
		reports[i] = report
	}
	return decision, reports
}

// matcher tells of each policy whether it speaks about the request, and why not, or
// in which way only.
func (s *Set) matcher(r *Request) func(at int) (matches bool, why string) {
	none := func() members { return newMembers(len(s.policies)) }
	all, who, what := none(), none(), none()
	for i := range s.policies {
		all.add(i)
	}
	if r.Entity != "" {
		s.about(r, who)
	}
	s.aboutKind(r.Kind, what)
	source, firstSource, target, firstTarget := none(), none(), none(), none()
	s.source.anyOf(r.Source, all, source, firstSource, none())
	s.target.anyOf(r.Target, all, target, firstTarget, none())
	return func(at int) (bool, string) {
		switch {
		case !who.has(at):
			return false, "neither the entity nor a group of it is named"
		case !what.has(at):
			return false, "operations does not name " + string(r.Kind)
		case !source.has(at):
			return false, "sources and source_labels do not select the source"
		case !target.has(at):
			return false, "targets and target_labels do not select the target"
		case !firstSource.has(at) || !firstTarget.has(at):
			return true, "only by another name of the same database: it restricts and permits nothing"
		}
		return true, ""
	}
}

// explain applies every rule.
func (p *compiled) explain(f *facts) []RuleReport {
	identity := RuleReport{Rule: RuleRequireAuthentication, Value: p.RequireAuthentication, Saw: "entity " + f.Entity, Outcome: OutcomePass}
	if f.Entity == "" {
		identity.Saw, identity.Outcome, identity.Code = "no entity", OutcomeRefuse, wire.CodeNoIdentity
	}
	reports := []RuleReport{identity}
	for _, rule := range ruleTable {
		report := RuleReport{Rule: rule.name, Value: rule.value(p), Saw: rule.saw(f), Outcome: OutcomePass}
		switch {
		case !rule.set(p):
			report.Outcome = OutcomeOff
		case rule.live(f) && rule.refuses(p, f):
			d := rule.refuse(p, f)
			report.Outcome, report.Code, report.Reason, report.RetryAt = OutcomeRefuse, d.Code, d.Reason, d.RetryAt
		case rule.name == RuleMaxBytes || rule.name == RuleMaxRows || rule.name == RuleRequireTLS:
			report.Outcome = OutcomeObligation // goes on holding while the operation runs
		}
		reports = append(reports, report)
	}
	oblige := func(name string, value any, set bool) {
		report := RuleReport{Rule: name, Value: value, Outcome: OutcomeOff}
		if set {
			report.Outcome = OutcomeObligation
		}
		reports = append(reports, report)
	}
	oblige(RuleMaxDuration, int64(p.MaxDuration/time.Second), p.MaxDuration > 0)
	oblige(RuleAgents, map[string]any{"names": p.Agents, "labels": p.AgentLabels}, len(p.Agents) > 0 || len(p.AgentLabels) > 0)
	approvals := map[string]any{"count": 0}
	if a := p.Approvals; a != nil {
		approvals = map[string]any{"count": a.Count, "groups": a.Groups, "ttl": int64(a.TTL / time.Second)}
	}
	oblige(RuleApprovals, approvals, p.Approvals != nil && p.Approvals.Count > 0)
	oblige(RuleMask, p.Mask, p.Mask != "")
	oblige(RuleUndecidedColumns, p.undecided(), p.undecided() == UndecidedStop)
	oblige(RulePreview, p.Preview, false)
	oblige(RuleCloneTTL, int64(p.CloneTTL/time.Second), p.CloneTTL > 0 && f.Kind == wire.KindClone)
	return reports
}
